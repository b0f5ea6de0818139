"""Averages of a network's weights: over time, swapped in, and saved."""
