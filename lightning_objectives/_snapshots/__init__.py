"""The last snapshots of a training, which a merge is made of."""
