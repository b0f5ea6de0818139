"""gradients of the terms -> weights."""
