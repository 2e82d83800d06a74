"""Gossip measured: rounds to an accuracy, liars, lossy networks, virtual time, speed; see `__main__`."""
