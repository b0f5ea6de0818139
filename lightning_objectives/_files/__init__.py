"""Reads, checks, writes, merges and exports files of weights, and keeps a teacher's logits on disk."""
