"""Averages the weights of a network over time, in memory."""

from lightning_objectives.averaging.bema import BEMA, bema_bias_weight, bema_ema_weight
from lightning_objectives.averaging.ema import EMA, ema_decay
from lightning_objectives.averaging.lawa import LAWA
from lightning_objectives.averaging.polyak import PolyakAveraging, polyak_weight
from lightning_objectives.averaging.post_hoc_ema import PostHocProfile, post_hoc_ema, post_hoc_ema_coefficients
from lightning_objectives.averaging.power_ema import PowerEMA, power_ema_decay, power_ema_exponent
from lightning_objectives.averaging.swa import SWA, swa_weight

__all__ = [
    "BEMA",
    "EMA",
    "LAWA",
    "SWA",
    "PolyakAveraging",
    "PostHocProfile",
    "PowerEMA",
    "bema_bias_weight",
    "bema_ema_weight",
    "ema_decay",
    "polyak_weight",
    "post_hoc_ema",
    "post_hoc_ema_coefficients",
    "power_ema_decay",
    "power_ema_exponent",
    "swa_weight",
]
