"""step -> learning rate."""
