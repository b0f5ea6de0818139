"""What the parts cost (`speed`), and whether the methods help (`quality`)."""
