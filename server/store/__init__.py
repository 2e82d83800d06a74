"""What a run keeps: its folder, logs, checkpoints, what clients keep, and the source of the user's own modules.

It may import the modules beside these packages, and none of the other packages of the server.
"""
