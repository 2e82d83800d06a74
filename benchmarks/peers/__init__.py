"""The systems with which benchmarks.engines compares fedgen, one script per system."""
