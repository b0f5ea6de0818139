"""What the methods cost, as ratios; run with ``python -m benchmarks``."""
