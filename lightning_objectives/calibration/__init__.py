"""logits -> probabilities, post hoc."""
