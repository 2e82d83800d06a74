"""The version of fedgen."""

__version__ = "0.1.0"
