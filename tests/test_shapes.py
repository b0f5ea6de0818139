"""Every public function: tensors of a wrong shape are refused in a sentence, and an empty batch is no special case."""

import importlib
import inspect
import re

import pytest
import torch

from lightning_objectives.adaptation import (
    feature_affinity,
    lame_logits,
    mixed_statistics,
    reliable_rows,
    softmax_entropy,
)
from lightning_objectives.averaging import BEMA, EMA, SWA
from lightning_objectives.batches import CutMix, Mixup, MixupOrCutMix, cutmix, cutmix_box, erase_boxes, mixup
from lightning_objectives.calibration import (
    TemperatureScaling,
    averaged_quantile_bins,
    best_matrix_and_bias,
    best_scale_and_bias,
    best_temperature,
    binned_rates,
    isotonic_regression,
    sigmoid_scale_and_bias,
    spline_recalibration,
)
from lightning_objectives.combination import (
    aligned_mtl_weights,
    cagrad_weights,
    gradient_alignment,
    mgda_weights,
    nash_mtl_weights,
    pcgrad_weights,
    upgrad_weights,
)
from lightning_objectives.discovery import ROOMS, methods
from lightning_objectives.distillation import binary_kl, dual_head_loss, vanilla_kd
from lightning_objectives.gradients import (
    ComponentwiseGradClip,
    OrthogonalGradient,
    clip_spikes,
    clip_to_norm,
    clip_to_weights,
    orthogonal_gradient,
)
from lightning_objectives.heads import multi_sample_dropout
from lightning_objectives.losses import adaptive_ldr_loss, adaptive_temperatures, ldr_loss, score_gaps, tempered_softmax
from lightning_objectives.merging import uniform_soup_coefficients, weighted_average_coefficients, wsm_coefficients
from lightning_objectives.metrics import (
    brier_score,
    calibration_error,
    classification_rows,
    fpr_at_95_tpr,
    margin_error,
    negative_log_likelihood,
    ood_scores,
    rank_me,
    top_k_accuracy,
)
from lightning_objectives.prediction_sets import aps_scores, conformal_quantile, lac_scores, raps_scores
from lightning_objectives.regularizers import (
    confidence_penalty,
    distance_covariance,
    log_partition_penalty,
    spectral_decoupling,
)
from lightning_objectives.shapes import check_shapes, forms
from lightning_objectives.surveys import feature_moments
from lightning_objectives.testing import build
from lightning_objectives.testing.signals import call, example_signals
from lightning_objectives.weighting import loss_based_weights

ZERO = torch.zeros(())
"""A tensor of no dimension."""


def table(*shape):
    return torch.zeros(shape)


def classes(*shape):
    return torch.zeros(shape, dtype=torch.long)


WITH_TARGET = {
    "no dimension": (ZERO, classes(4)),
    "one sample without its dimension": (table(3), classes(1)),
    "classes along the last of three": (table(4, 5, 3), classes(4, 5)),
    "images": (table(4, 3, 5), classes(4, 5)),
    "a target of one sample more": (table(4, 3), classes(5)),
    "a column of targets": (table(4, 3), classes(4, 1)),
    "one-hot whole numbers": (table(4, 3), classes(4, 3)),
    "classes as floats": (table(3, 3), table(3)),
    "probabilities of one class less": (table(4, 3), table(4, 2)),
    "a target of no dimension": (table(4, 3), classes()),
    "yes and no": (table(4, 3), torch.zeros(4, dtype=torch.bool)),
    "no class": (table(4, 0), classes(4)),
}
WITH_GROUPS = {
    "no dimension": (ZERO, classes(4)),
    "one sample without its dimension": (table(3), classes(1)),
    "a group of one sample more": (table(4, 3), classes(5)),
    "a column of groups": (table(4, 3), classes(4, 1)),
    "groups as floats": (table(4, 3), table(4)),
    "one class": (table(4, 1), classes(4)),
}
TWO_TABLES = {
    "no dimension": (ZERO, ZERO),
    "one dimension": (table(3), table(3)),
    "three dimensions": (table(4, 5, 3), table(4, 5, 3)),
    "another number of samples": (table(4, 3), table(1, 3)),
    "another number of classes": (table(4, 3), table(4, 1)),
    "no class": (table(4, 0), table(4, 0)),
}
ONE_TABLE = {"no dimension": (ZERO,), "one dimension": (table(3),), "three dimensions": (table(4, 3, 5),)}
ONE_CLASS = {"one class": (table(4, 1), classes(4))}
GAPS = {**ONE_TABLE, "one class": (table(4, 1),)}
TWO_CLASSES = {**TWO_TABLES, "one class": (table(4, 1), table(4, 1))}
PARTNERS = {
    "inputs of no dimension": (ZERO, classes(1)),
    "one partner for all": (table(4, 3, 5, 5), classes(1)),
    "a table of partners": (table(4, 3, 5, 5), classes(4, 2)),
    "a mask": (table(4, 3, 5, 5), torch.zeros(4, dtype=torch.bool)),
    "floats": (table(4, 3, 5, 5), table(4)),
}
COLUMNS = {
    "no dimension": (ZERO, ZERO),
    "a table": (table(4, 3), table(4)),
    "a target of one sample more": (table(4), table(5)),
    "whole numbers": (table(4), classes(4)),
}
BOXES = {"beyond": (0, 6, 0, 2), "before": (-1, 2, 0, 2), "turned round": (3, 2, 0, 2), "beside": (0, 2, 0, 9)}
WRONG = {
    loss_based_weights: {"no dimension": (ZERO,), "a table": (table(4, 6),), "a column": (table(4, 1),)},
    score_gaps: WITH_TARGET | ONE_CLASS,
    ldr_loss: WITH_TARGET | ONE_CLASS,
    adaptive_ldr_loss: WITH_TARGET | ONE_CLASS,
    adaptive_temperatures: GAPS,
    tempered_softmax: GAPS,
    binary_kl: TWO_TABLES,
    dual_head_loss: TWO_TABLES,
    vanilla_kd: TWO_CLASSES,
    log_partition_penalty: {**ONE_TABLE, "no class": (table(4, 0),)},
    spectral_decoupling: ONE_TABLE,
    confidence_penalty: ONE_TABLE,
    feature_moments: ONE_TABLE,
    distance_covariance: WITH_GROUPS,
    multi_sample_dropout: {name: (x, torch.nn.Identity()) for name, x in {"none": ZERO, "one": table(3)}.items()},
    gradient_alignment: {**ONE_TABLE, "no term": (table(0, 3),)},
    pcgrad_weights: {**ONE_TABLE, "no term": (table(0, 3),)},
    mgda_weights: {**ONE_TABLE, "no term": (table(0, 3),)},
    nash_mtl_weights: {**ONE_TABLE, "no term": (table(0, 3),)},
    aligned_mtl_weights: {**ONE_TABLE, "no term": (table(0, 3),)},
    upgrad_weights: {**ONE_TABLE, "no term": (table(0, 3),)},
    cagrad_weights: {**ONE_TABLE, "no term": (table(0, 3),)},
    mixup: {name: (*tensors, 0.5) for name, tensors in PARTNERS.items()}
    | {"a share beyond 1": (table(2, 3), classes(2), 1.5)},
    cutmix: {name: (*tensors, (0, 1, 0, 1)) for name, tensors in PARTNERS.items()}
    | {name: (table(2, 3, 5, 5), classes(2), box) for name, box in BOXES.items()}
    | {"no image": (table(2, 3), classes(2), (0, 1, 0, 1)), "no pixel": (table(2, 3, 0), classes(2), (0, 0, 0, 0))},
    cutmix_box: {"a share beyond 1": (5, 5, 1.5, (2, 2)), "below 0": (5, 5, -0.5, (2, 2))},
    erase_boxes: {
        "no image": (table(4, 5), classes(4, 4)),
        "one box for all": (table(4, 3, 5, 5), classes(1, 4)),
        "boxes of three numbers": (table(4, 3, 5, 5), classes(4, 3)),
        "floats": (table(4, 3, 5, 5), table(4, 4)),
    },
    clip_to_norm: {"whole numbers": (classes(3),)},
    clip_spikes: {"whole numbers": (classes(3), ZERO), "a threshold for each": (table(3), table(3))},
    clip_to_weights: {
        "broadcast": (table(4, 3), table(3)),
        "no dimension": (table(3), ZERO),
        "whole numbers": (classes(3), table(3)),
    },
    orthogonal_gradient: {
        "broadcast": (table(4, 3), table(3)),
        "no dimension": (table(3), ZERO),
        "whole numbers": (classes(3), table(3)),
    },
    best_matrix_and_bias: WITH_TARGET | ONE_CLASS,
    best_scale_and_bias: WITH_TARGET | ONE_CLASS,
    sigmoid_scale_and_bias: WITH_TARGET | ONE_CLASS,
    best_temperature: WITH_TARGET | ONE_CLASS,
    isotonic_regression: COLUMNS,
    averaged_quantile_bins: COLUMNS,
    binned_rates: COLUMNS,
    spline_recalibration: COLUMNS,
    aps_scores: {
        "no dimension": (ZERO, ZERO),
        "one sample without its dimension": (table(3), table(1)),
        "images": (table(4, 3, 5), table(4)),
        "a draw for each class": (table(4, 3), table(4, 3)),
        "a draw for all": (table(4, 3), table(1)),
        "whole numbers": (classes(4, 3), table(4)),
        "no class": (table(4, 0), table(4)),
    },
    raps_scores: {
        "no dimension": (ZERO, ZERO),
        "one sample without its dimension": (table(3), table(1)),
        "images": (table(4, 3, 5), table(4)),
        "a draw for each class": (table(4, 3), table(4, 3)),
        "a draw for all": (table(4, 3), table(1)),
        "whole numbers": (classes(4, 3), table(4)),
        "no class": (table(4, 0), table(4)),
    },
    lac_scores: {**ONE_TABLE, "whole numbers": (classes(4, 3),), "no class": (table(4, 0),)},
    conformal_quantile: {"no dimension": (ZERO,), "a table": (table(4, 1),), "int": (classes(4),)},
    brier_score: WITH_TARGET,
    margin_error: {**WITH_TARGET, **ONE_CLASS},
    negative_log_likelihood: WITH_TARGET,
    top_k_accuracy: WITH_TARGET,
    fpr_at_95_tpr: {
        "a table": (table(4, 3), table(4)),
        "no dimension": (table(4), ZERO),
        "int": (classes(4), table(4)),
    },
    ood_scores: GAPS,
    rank_me: ONE_TABLE,
    calibration_error: WITH_TARGET,
    classification_rows: {
        "no dimension": (ZERO, classes()),
        "a target of one sample more": (table(4, 3), classes(5)),
        "a column of targets": (table(4, 3), classes(4, 1)),
        "whole numbers": (classes(4, 3), classes(4)),
        "no class": (table(4, 0), classes(4)),
    },
    softmax_entropy: GAPS,
    reliable_rows: GAPS,
    feature_affinity: ONE_TABLE,
    lame_logits: {
        "no dimension": (ZERO, table(4, 2)),
        "one class": (table(4, 1), table(4, 2)),
        "features of one dimension": (table(4, 3), table(4)),
        "features of one sample more": (table(4, 3), table(5, 2)),
    },
    mixed_statistics: {
        "one dimension": (table(4), table(4), table(4)),
        "means of other channels": (table(4, 2), table(3), table(2)),
        "variances of other channels": (table(4, 2), table(2), table(1)),
    },
    uniform_soup_coefficients: {"none": ([],), "parts of steps": ([0.5, 1.5],), "equal": ([1, 1],)},
    weighted_average_coefficients: {"none": ([],), "parts of steps": ([0.5, 1.5],), "equal": ([1, 1],)},
    wsm_coefficients: {"none": ([],), "parts of steps": ([0.5, 1.5],), "equal": ([1, 1],)},
}
"""Each public function that takes tensors or lists, with arguments that it refuses."""
NUMBERS = {
    "progressive_size",
    "class_balanced_weights",
    "draw_boxes",
    "dropout_factor",
    "ema_decay",
    "polyak_weight",
    "post_hoc_ema_coefficients",
    "simplex_vectors",
    "power_ema_decay",
    "power_ema_exponent",
    "swa_weight",
    "bema_ema_weight",
    "bema_bias_weight",
    "warmup_factor",
    "wsd_factor",
    "wsd_s_factor",
}
"""Functions of plain numbers."""
ELSEWHERE = {
    "risk_threshold",
    "progressive_self_kd_loss",
    "candidate_weights",
    "soft_score_labels",
    "purified_weights",
    "post_hoc_ema",
    "attention_concentration",
    "spectral_penalty",
    "attention_distance",
    "ascended_multipliers",
    "divergence_from_centroids",
    "early_learning_penalty",
    "past_cross_entropy",
    "early_learning_targets",
    "r_drop",
    "symmetric_kl",
    "gaussian_shape",
    "generalized_gaussian_prior",
    "irm_v2_penalty",
    "orthogonal_conv",
    "kernel_orthogonality",
    "input_gradient_penalty",
    "jacobian_penalty",
    "adversarial_direction",
    "virtual_adversarial_loss",
    "sam_offsets",
    "selected_weights",
    "asam_offsets",
    "breadcrumbs_merge",
    "dare_merge",
    "della_merge",
    "magnitude_drop_rates",
    "model_stock_merge",
    "slerp_merge",
    "task_arithmetic_merge",
    "ties_merge",
    "fisher_merge",
    "greedy_soup_coefficients",
    "default_metrics",
    "regression_metrics",
    "set_metrics",
    "export_checkpoint",
    "merge_checkpoints",
    "adaptive_calibration_error",
    "aurc",
    "neural_collapse",
    "frechet_mean_logits",
    "linear_cka",
    "h_calibration_loss",
    "stable_rank",
    "schedule_rates",
    "mixed_logits",
    "classwise_calibration_error",
    "class_counts",
    "class_sums",
    "fisher_sums",
    "naive_bayes_sums",
    "naive_bayes_weights",
    "dkd",
    "dist_loss",
    "rkd_loss",
    "nested_dropout",
    "normalized_kd",
    "similarity_preserving_loss",
    "pkt_loss",
    "sinkhorn_kd",
    "balanced_divergence_kd",
}
"""Functions of settings, files and further passes, whose refusals their own tests show."""


BY_ROWS = [cls for room, cls in methods("losses", "weighting")]
"""Methods of one value a row, whose refusals the laws check, with those of their functions."""


def test_no_public_function_is_forgotten():
    rooms = [importlib.import_module(f"lightning_objectives.{room}") for room in ROOMS]
    functions = {name for room in rooms for name in room.__all__ if inspect.isfunction(getattr(room, name))}
    here = {function.__name__ for function in WRONG} | NUMBERS | ELSEWHERE
    assert here <= functions
    assert functions - here <= {cls.function.__name__ for cls in BY_ROWS if cls.function}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(f, args) for f, cases in WRONG.items() for args in cases.values()],
    ids=[f"{f.__name__}-{name}" for f, cases in WRONG.items() for name in cases],
)
def test_a_wrong_shape_is_a_sentence(function, arguments):
    """With the value, and with what to do."""
    with pytest.raises(ValueError, match=r"must|expected|does not fit|: give") as error:
        function(*arguments)
    shapes = [str(tuple(argument.shape)) for argument in arguments if isinstance(argument, torch.Tensor)]
    text = str(error.value)
    assert any(shape in text for shape in shapes) or re.search(r"box=|share=|steps=|torch\.int64", text)


def test_whole_inputs_cannot_be_mixed():
    with pytest.raises(ValueError, match="cannot be mixed"):
        mixup(classes(2, 3), classes(2), 0.5)


@pytest.mark.parametrize(
    "method", [CutMix(prob=0.5), MixupOrCutMix(), Mixup()], ids=lambda method: type(method).__name__
)
def test_a_transform_refuses_at_every_draw(method):
    """Not only if the draw decides to mix, or for CutMix."""
    inputs = ZERO if isinstance(method, Mixup) else table(4, 5)
    for seed in range(8):
        with pytest.raises(ValueError, match="inputs of the shape"):
            method(inputs, torch.Generator().manual_seed(seed))


def test_mixup_alone_takes_inputs_that_are_no_images():
    mixed, *_ = MixupOrCutMix(switch_prob=0.0)(table(4, 5), torch.Generator())
    assert mixed.shape == (4, 5)


EMPTY = {
    loss_based_weights: ((table(0),), (0,)),
    score_gaps: ((table(0, 3), classes(0)), (0, 3)),
    ldr_loss: ((table(0, 3), classes(0)), (0,)),
    adaptive_ldr_loss: ((table(0, 3), classes(0)), (0,)),
    adaptive_temperatures: ((table(0, 3),), (0, 1)),
    binary_kl: ((table(0, 3), table(0, 3)), (0,)),
    dual_head_loss: ((table(0, 3), table(0, 3)), (0,)),
    vanilla_kd: ((table(0, 3), table(0, 3)), (0,)),
    log_partition_penalty: ((table(0, 3),), (0,)),
    spectral_decoupling: ((table(0, 3),), (0,)),
    multi_sample_dropout: ((table(0, 5), torch.nn.Linear(5, 3)), (8, 0, 3)),
    gradient_alignment: ((table(2, 0),), (2,)),
    pcgrad_weights: ((table(2, 0),), (2,)),
    mixup: ((table(0, 3), classes(0), 0.5), (0, 3)),
    clip_to_norm: ((table(0),), (0,)),
    orthogonal_gradient: ((table(0, 3), table(0, 3)), (0, 3)),
    brier_score: ((table(0, 3), classes(0)), (0,)),
    negative_log_likelihood: ((table(0, 3), classes(0)), (0,)),
    top_k_accuracy: ((table(0, 3), classes(0)), (0,)),
    calibration_error: ((table(0, 3), classes(0)), ()),
}


@pytest.mark.parametrize("cls", BY_ROWS, ids=lambda cls: cls.__name__)
def test_an_empty_batch_has_no_values(cls):
    assert call(build(cls), example_signals(rows=0)).shape == (0,)


@pytest.mark.parametrize("function", EMPTY, ids=lambda function: function.__name__)
def test_an_empty_batch_has_an_empty_result(function):
    arguments, shape = EMPTY[function]
    assert function(*arguments).shape == shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize(
    "function",
    [
        ldr_loss,
        adaptive_ldr_loss,
        best_temperature,
        brier_score,
        negative_log_likelihood,
        top_k_accuracy,
        calibration_error,
    ],
    ids=lambda function: function.__name__,
)
def test_classes_in_any_whole_type(function, dtype):
    """Torch's own indexing takes int64 alone, and reads uint8 as a mask."""
    logits, target = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    torch.testing.assert_close(function(logits, target.to(dtype)), function(logits, target))


def test_partners_in_any_whole_type():
    inputs, partner = torch.randn(4, 2, 3), torch.tensor([1, 0, 3, 2])
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(mixup(inputs, partner.to(dtype), 0.3), mixup(inputs, partner, 0.3))
        assert torch.equal(cutmix(inputs, partner.to(dtype), (0, 1, 0, 2))[0], cutmix(inputs, partner, (0, 1, 0, 2))[0])


def test_whole_losses_and_logits_still_count():
    assert torch.equal(loss_based_weights(torch.tensor([0, 1, 2])), loss_based_weights(torch.tensor([0.0, 1.0, 2.0])))
    assert spectral_decoupling(torch.tensor([[1, -3]])).tolist() == [5.0]


def test_temperature_scaling_refuses_logits_that_are_no_table():
    for logits, words in ((table(3), r"\(3,\)"), (table(4, 1), "two or more"), (table(4, 3, 2), r"\(4, 3, 2\)")):
        with pytest.raises(ValueError, match=words):
            TemperatureScaling()(logits)


@pytest.mark.parametrize("rule", [EMA(), BEMA(), SWA()], ids=lambda rule: type(rule).__name__)
def test_averages_refuse_weights_of_another_form(rule):
    """A tensor of one element would be broadcast over the average in silence."""
    weights = [table(3), table(2, 2)]
    for wrong, words in (
        ([table(1), table(2, 2)], r"average\[0\] of the shape \(3,\)"),
        ([table(3)], "average of 2 tensors"),
    ):
        with pytest.raises(ValueError, match=words):
            rule.update(rule.init(weights), wrong, step=1)


def test_reading_bema_refuses_weights_of_another_form():
    with pytest.raises(ValueError, match=r"average\[0\] of the shape \(3,\)"):
        BEMA().read(BEMA().init([table(3)]), [table(1)], step=1)


@pytest.mark.parametrize("method", [ComponentwiseGradClip(), OrthogonalGradient()], ids=lambda m: type(m).__name__)
def test_transforms_refuse_gradients_that_do_not_fit(method):
    params = [table(3), table(2, 2)]
    for wrong, words in (
        ([table(3)], "gradients of 1 tensors"),
        ([None, table(2)], r"gradients\[1\] of the shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            method.update(wrong, params, method.init(params))


MESSAGES = {
    "a table of losses": (
        {"losses": table(4, 6)},
        "losses of the shape (4, 6), torch.float32, must be (N,), or the result would be wrong. Take the mean of each "
        "row, as losses.flatten(1).mean(1), or make each element a row: losses.flatten().",
    ),
    "a scalar": ({"losses": ZERO}, "Add the missing dimension, as losses[None] for one sample."),
    "a column": ({"logits": table(4)}, "as logits[None] for one sample, or logits[:, None] for one column."),
    "positions": ({"logits": table(4, 3, 5)}, "Make each position a row: logits.movedim(1, -1).flatten(0, -2)"),
    "floats": ({"logits": table(4, 3), "target": table(4)}, "as target.long()."),
    "one-hot": ({"logits": table(4, 3), "target": classes(4, 3)}, "as target.float()."),
    "a mask": ({"index": torch.zeros(3, dtype=torch.bool)}, "as index.long()."),
    "lengths": ({"logits": table(4, 3), "target": classes(5)}, "(N,) int or (N, C) float with N = 4, C = 3"),
    "no class": ({"logits": table(4, 0)}, "There are no classes: pass one or more."),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_the_way_out(name):
    tensors, words = MESSAGES[name]
    with pytest.raises(ValueError, match=re.escape(words)):
        check_shapes(**tensors)


def test_other_forms():
    check_shapes({"inputs": forms("(N, ..., H, W)")}, inputs=table(2, 5, 4))
    with pytest.raises(
        ValueError, match=re.escape("inputs of the shape (2, 5), torch.float32, must be (N, ..., H, W)")
    ):
        check_shapes({"inputs": forms("(N, ..., H, W)")}, inputs=table(2, 5))


def test_a_check_reads_no_value():
    """On the meta device there are none, as on a GPU that is still busy."""
    with torch.device("meta"):
        check_shapes(logits=table(4, 3), target=classes(4))
        loss_based_weights(table(4)), vanilla_kd(table(4, 3), table(4, 3)), spectral_decoupling(table(4, 3))


def test_a_check_is_part_of_one_graph():
    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def step(logits, target, losses):
        return ldr_loss(logits, target), loss_based_weights(losses), binary_kl(logits, logits)

    for rows in (4, 7, 9):
        step(table(rows, 3), classes(rows), table(rows))
