"""Data sets and how they are divided among clients; the one place of fedgen that opens files."""
