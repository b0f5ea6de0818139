"""Computes several stacks of logits in place of one: features -> logits."""

from lightning_objectives.heads.multi_sample_dropout import MultiSampleDropout, multi_sample_dropout
from lightning_objectives.heads.nested_dropout import NestedDropout, nested_dropout

__all__ = ["MultiSampleDropout", "NestedDropout", "multi_sample_dropout", "nested_dropout"]
