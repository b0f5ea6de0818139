"""The engine of the training step and of the evaluation steps."""
