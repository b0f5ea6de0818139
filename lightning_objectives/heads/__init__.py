"""features -> logits: heads and their stacks."""

from lightning_objectives.heads.multi_sample_dropout import MultiSampleDropout, multi_sample_dropout

__all__ = ["MultiSampleDropout", "multi_sample_dropout"]
