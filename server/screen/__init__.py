"""The views of a run on a terminal or in a log; a view is an observer.

May import the modules beside these packages.
"""
