"""Keeps the last snapshots of a training, and merges them."""
