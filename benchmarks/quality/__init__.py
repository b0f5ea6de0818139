"""Whether the headline systems help: a grid of claims, tasks, arms and seeds; ``python -m benchmarks.quality``."""
