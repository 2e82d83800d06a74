"""Measurements behind docs/benchmarks.md: one command a table."""
