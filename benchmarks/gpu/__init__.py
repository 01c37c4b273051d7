"""What only a GPU shows: one module a part, each measured by itself; `python -m benchmarks.gpu` runs them all."""
