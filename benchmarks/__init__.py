"""The measurements of docs/benchmarks/, one command per table."""
