"""Pools, which compute blocks in this process or on Ray workers; and rows whose slices stay with the workers.

May import `store` and the modules beside these packages.
"""
