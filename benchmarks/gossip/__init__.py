"""Measurements of gossip: rounds to an accuracy, attacks, lossy networks, virtual time, speed; see `__main__`."""
