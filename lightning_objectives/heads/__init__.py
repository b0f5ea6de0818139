"""Computes several stacks of logits in place of one: features -> logits."""

from lightning_objectives.heads.multi_sample_dropout import MultiSampleDropout, multi_sample_dropout

__all__ = ["MultiSampleDropout", "multi_sample_dropout"]
