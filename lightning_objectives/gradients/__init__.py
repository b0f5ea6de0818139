"""gradients -> gradients, before the optimizer."""
