"""Who hears whom in gossip: graphs, mixing matrices, and how fast they bring peers together."""
