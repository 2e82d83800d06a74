"""Federated methods, one file each: the client half and the server half."""
