"""The systems that benchmarks.engines measures fedgen against, each in a script of its own."""
