"""Training engines: a block of clients from start rows to trained rows."""
