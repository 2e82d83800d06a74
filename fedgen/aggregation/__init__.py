"""Aggregation rules, one file each."""
