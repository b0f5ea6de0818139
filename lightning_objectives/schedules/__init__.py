"""Sets the learning rate: step -> learning rate."""

from lightning_objectives.schedules.warmup_stable import WarmupStableSchedule, warmup_factor
from lightning_objectives.schedules.wsd import WSDSchedule, wsd_factor

__all__ = ["WSDSchedule", "WarmupStableSchedule", "warmup_factor", "wsd_factor"]
