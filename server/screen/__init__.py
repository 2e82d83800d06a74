"""What a terminal or a log shows of a run while it lasts; an observer like any other.

It may import the modules beside these packages.
"""
