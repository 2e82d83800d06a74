"""Measurements behind docs/benchmarks/: one command per table."""
