"""Each module is one command; results go to benchmarks/results."""
