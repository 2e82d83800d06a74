"""A run from its folder to its end: start and resume, signals, loops by experiment, observers, the result.

It stands above all other packages of the server and may import each of them; only the command line imports it.
"""
