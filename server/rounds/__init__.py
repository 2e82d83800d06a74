"""The rounds of a star, of gossip in rounds and of gossip in virtual time, computed on a pool.

May import `store`, `pools` and the modules beside these packages; not `run`, `screen` or `report`.
"""
