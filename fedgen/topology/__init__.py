"""Communication graphs of gossip, mixing matrices, and how fast they reach consensus."""
