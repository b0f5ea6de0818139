"""(logits, target) -> (N,): per-sample criteria."""
