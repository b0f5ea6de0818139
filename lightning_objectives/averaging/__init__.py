"""Weights over time, in memory."""

from lightning_objectives.averaging.ema import EMA, ema_decay

__all__ = ["EMA", "ema_decay"]
