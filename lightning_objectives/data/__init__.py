"""Data modules that need no download, or fetch what they need; and `with_index`."""
