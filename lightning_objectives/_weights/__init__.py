"""Averages a network's weights over time, swaps an average in, and saves it."""
