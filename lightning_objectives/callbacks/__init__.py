"""The callbacks: one per kind."""
