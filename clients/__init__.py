"""The participant: one block of simulated clients, the Ray worker, the gossip peer."""
