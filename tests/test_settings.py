"""A setting that a class refuses is refused by the functions beside it too: each would give a number without meaning.

Methods and functions are discovered; none is named here but those that take something else than signals.
"""

import importlib
import inspect
import math
import re
import sys
from functools import partial

import pytest
import torch

from lightning_objectives.discovery import methods
from lightning_objectives.testing.signals import call, example_signals

VALUES = (-100, -1, -0.5, 0, 0.5, 1, 1.5, 2, 100, 10**6, math.nan, math.inf, -math.inf, "bogus", [-1.0], [math.nan])
"""Some of them are bad for each setting; which, its class says."""
OTHER_NAMES = {
    ("bema_bias_weight", "bias_power"): "power",
    ("bema_ema_weight", "ema_power"): "power",
    ("bema_ema_weight", "min_ema"): "minimum",
    ("tempered_softmax", "t2"): "temperature",
}
"""Settings that a function calls otherwise than the class does."""


def table(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


ARGUMENTS = {
    "risk_threshold": lambda: (torch.rand(4), torch.ones(4), torch.ones(4)),
    "progressive_self_kd_loss": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0]), table(4, 3)),
    "adaptive_calibration_error": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "adaptive_temperatures": lambda: (table(4, 3),),
    "ascended_multipliers": lambda: (table(4, 1)[:, 0], torch.zeros(4)),
    "asam_offsets": lambda: ({"weight": table(2, 3)}, {"weight": table(2, 3)}),
    "averaged_quantile_bins": lambda: (torch.rand(4), torch.ones(4)),
    "bema_bias_weight": lambda: (10,),
    "bema_ema_weight": lambda: (10,),
    "binned_rates": lambda: (torch.rand(4), torch.ones(4)),
    "brier_score": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "calibration_error": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "classwise_calibration_error": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "false_head_rate": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "purified_weights": lambda: (table(4, 3).softmax(1),),
    "soft_score_labels": lambda: (torch.rand(4), torch.rand(4)),
    "clip_to_norm": lambda: (table(4, 3),),
    "breadcrumbs_merge": lambda: ([table(2, 3), table(2, 3)],),
    "dare_merge": lambda: ([table(2, 3), table(2, 3)],),
    "della_merge": lambda: ([table(2, 3), table(2, 3)],),
    "clip_to_weights": lambda: (table(4, 3), table(4, 3)),
    "draw_boxes": lambda: (4, 8, 8, torch.Generator()),
    "early_learning_targets": lambda: (table(4, 3).softmax(1), table(4, 3).softmax(1)),
    "ema_decay": lambda: (10,),
    "fisher_merge": lambda: ([table(2, 3), table(2, 3)],),
    "frank_wolfe_coefficients": lambda: (torch.neg, [1, 2]),
    "greedy_soup_coefficients": lambda: ([1, 2], lambda coefficients: 0.0),
    "magnitude_drop_rates": lambda: (table(2, 3),),
    "margin_error": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "mixed_statistics": lambda: (table(4, 3), torch.zeros(3), torch.ones(3)),
    "naive_bayes_weights": lambda: (table(3, 4), torch.ones(3), torch.full((4,), 9.0)),
    "negative_log_likelihood": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "polyak_weight": lambda: (10,),
    "progressive_size": lambda: (30, 32, 0.5),
    "power_ema_decay": lambda: (10,),
    "raps_scores": lambda: (table(4, 3).softmax(1), torch.full((4,), 0.5)),
    "reg_mean_merge": lambda: ([table(2, 3), table(2, 3)],),
    "sam_offsets": lambda: ({"weight": table(2, 3)}, {"weight": table(2, 3)}),
    "selected_weights": lambda: (table(4, 3),),
    "slerp_merge": lambda: ([table(2, 3), table(2, 3)],),
    "task_arithmetic_merge": lambda: ([table(2, 3), table(2, 3)],),
    "spline_recalibration": lambda: (torch.rand(4), torch.ones(4)),
    "ties_merge": lambda: ([table(2, 3), table(2, 3)],),
    "tempered_softmax": lambda: (table(4, 3),),
    "top_k_accuracy": lambda: (table(4, 3), torch.tensor([0, 1, 2, 0])),
    "weighted_average_coefficients": lambda: ([1, 2, 3],),
    "wsm_coefficients": lambda: ([1, 2, 3],),
}
"""The other arguments of functions that take no signals."""
KEYWORDS = {
    "soft_score_labels": {"levels": 5},
    "breadcrumbs_merge": {"base": torch.zeros(2, 3)},
    "dare_merge": {"base": torch.zeros(2, 3)},
    "della_merge": {"base": torch.zeros(2, 3)},
    "reg_mean_merge": {"importance": [torch.eye(3), torch.eye(3)]},
    "fisher_merge": {"importance": [torch.ones(2, 3), torch.ones(2, 3)]},
    "task_arithmetic_merge": {"base": torch.zeros(2, 3)},
    "ties_merge": {"base": torch.zeros(2, 3)},
}


def functions_of(room, cls):
    """The public functions in the file of a class."""
    exported = importlib.import_module(f"lightning_objectives.{room}").__all__
    values = vars(sys.modules[cls.__module__]).values()
    return [f for f in values if inspect.isfunction(f) and f.__module__ == cls.__module__ and f.__name__ in exported]


def bad_values(cls, setting):
    """Those that the class refuses in a sentence."""
    base = getattr(cls, "example", {})
    for value in VALUES:
        try:
            cls(**{**base, setting: value})
        except ValueError:
            yield value
        except Exception:  # Another type than the annotation says.
            continue


def pairs():
    """Each public function beside a class, a setting of the class, and its name in the function."""
    for room, cls in methods():
        for function in functions_of(room, cls):
            parameters = inspect.signature(function).parameters
            for setting in inspect.signature(cls).parameters:
                name = OTHER_NAMES.get((function.__name__, setting), setting)
                if name in parameters and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
                    yield cls, function, setting, name


PAIRS = sorted(pairs(), key=lambda pair: (pair[1].__name__, pair[2]))


def test_a_function_that_calls_a_setting_otherwise_is_not_forgotten():
    assert OTHER_NAMES.keys() <= {(function.__name__, setting) for _, function, setting, _ in PAIRS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("cls", "function", "setting", "name"), PAIRS, ids=[f"{f.__name__}-{name}" for _, f, _, name in PAIRS]
)
def test_a_setting_that_the_class_refuses_is_refused_by_its_functions(cls, function, setting, name):
    settings = {k: v for k, v in getattr(cls, "example", {}).items() if k in inspect.signature(function).parameters}
    settings |= KEYWORDS.get(function.__name__, {})
    for value in bad_values(cls, setting):
        settings[name] = value
        own = ARGUMENTS.get(function.__name__)
        run = partial(call, function, example_signals()) if own is None else partial(function, *own())
        with pytest.raises(ValueError, match=rf"\b({name}|{setting})(=|\[)") as error:
            run(**settings)
        assert re.search(r"must|needs|expected", str(error.value)), error.value
