"""Checkpoints and weights on disk: reading, writing, merging, and what is kept of a teacher."""
