"""batch -> batch: the batch transforms."""
