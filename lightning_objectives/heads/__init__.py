"""features -> logits: heads and their stacks."""
