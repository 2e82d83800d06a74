"""The coordinator: command line, run life, loops, pools, checkpoints, reports, metrics."""
