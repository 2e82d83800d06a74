"""The storage of a run: its folder, logs, checkpoints, client state, and hashes of the user's own modules.

May import the modules beside these packages, and no other package of the server.
"""
