"""Connects the callbacks with Lightning: base classes, checkpoints, ranks, patches, and its two names."""
