"""checkpoints on disk -> one."""
