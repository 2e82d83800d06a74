"""A run: start and resume, signals, the choice of loop and backend, observers, the result.

May import all other packages of the server; only the command line imports it.
"""
