"""Sets the learning rate: step -> learning rate."""

from lightning_objectives.schedules.bound import ScheduleBound, schedule_rates
from lightning_objectives.schedules.warmup_stable import WarmupStableSchedule, warmup_factor
from lightning_objectives.schedules.wsd import WSDSchedule, wsd_factor
from lightning_objectives.schedules.wsd_s import WSDSSchedule, wsd_s_factor

__all__ = [
    "ScheduleBound",
    "WSDSSchedule",
    "WSDSchedule",
    "WarmupStableSchedule",
    "schedule_rates",
    "warmup_factor",
    "wsd_factor",
    "wsd_s_factor",
]
