"""Laws of losses, distances to a teacher and added terms."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_objectives.kinds import Distillation
from lightning_objectives.signals import BY_ROW, signals_of
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.signals import call, example_signals, require_grad, take_rows

DIFFERENTIABLE = ("logits", "features", "losses", "inputs")


def one_value_a_row(method: Any) -> None:
    """N rows give N values, for N of 1 and 6, because the callback does the reduction."""
    for rows in (1, 6):
        shape = tuple(call(method, example_signals(rows=rows)).shape)
        require(shape == (rows,), method, f"{rows} rows need {rows} values, unreduced, not the shape {shape}.")


def one_value_or_one_a_row(method: Any) -> None:
    """The result is a scalar or one value per row."""
    shape = tuple(call(method, example_signals(rows=6)).shape)
    require(shape in {(), (6,)}, method, f"6 rows need a scalar or 6 values, not the shape {shape}.")


def the_order_of_the_rows_means_nothing(method: Any) -> None:
    """A permutation of the rows permutes the values."""
    signals, order = example_signals(), torch.tensor([3, 0, 5, 1, 4, 2])
    same = close(call(method, take_rows(signals, order)), call(method, signals)[order])
    require(same, method, "a permutation of the rows must permute the values.")


def each_row_is_computed_by_itself(method: Any) -> None:
    """Some of the rows give the values that they have among all; a method that couples its rows says why."""
    if "generator" in signals_of(method):
        return  # Fewer rows draw other numbers.
    signals, some = example_signals(), torch.tensor([4, 1, 2])
    whole = call(method, signals)
    alone = whole.dim() == 1 and close(call(method, take_rows(signals, some)), whole[some])
    require(alone or method.coupled, method, "a row's value must not depend on other rows, or `coupled` must say why.")
    require(not alone or not method.coupled, method, f"it says that its rows are coupled ({method.coupled}), not so.")


def the_gradient_is_that_of_finite_differences(method: Any) -> None:
    """The gradient agrees with central differences to 1e-3, so that a method that computes in float32 passes too."""
    names = [name for name in signals_of(method) if name in DIFFERENTIABLE]
    signals = example_signals()

    def value(*inputs: Tensor) -> Tensor:
        result: Tensor = call(method, {**signals, **dict(zip(names, inputs))})
        return result.double()

    inputs = tuple(signals[name].requires_grad_() for name in names)
    agrees = not names or torch.autograd.gradcheck(
        value, inputs, eps=1e-3, atol=1e-3, rtol=1e-3, raise_exception=False, check_undefined_grad=False
    )
    require(agrees, method, f"the gradient for {', '.join(names)} must be that of finite differences.")


def large_logits_stay_finite(method: Any) -> None:
    """Value and gradient are finite at logits of 1e4 and -1e4 in float32, also if the teacher disagrees."""
    signals = {k: v.float() if k in BY_ROW and v.is_floating_point() else v for k, v in example_signals().items()}
    for name in ("logits", "teacher_logits"):
        signals[name] = 1e4 * signals[name].sign()
    signals = require_grad(signals, "logits", "features", "hidden")
    value = call(method, signals)
    require(value.isfinite().all(), method, f"logits of 1e4 must give finite values, not {value.tolist()}.")
    value.sum().backward()
    for name in ("logits", "features", "hidden"):
        gradients = [leaf.grad for leaf in tree_leaves(signals[name])]
        finite = all(gradient is None or gradient.isfinite().all() for gradient in gradients)
        require(finite, method, f"logits of 1e4 must give a finite gradient for the {name}.")


def it_is_least_where_the_student_equals_the_teacher(method: Distillation) -> None:
    """No change of the student's logits and features from the teacher's makes the distance smaller."""
    signals = example_signals()
    names = "logits", "features", "hidden"
    signals |= {name: signals[f"teacher_{name}"] for name in names}
    least = call(method, signals)
    for seed in range(1, 6):
        noise = example_signals(seed=seed)
        moved = {name: tree_map(lambda v, by: v + by / 2, signals[name], noise[name]) for name in names}
        value = call(method, {**signals, **moved})
        require((value >= least - 1e-6).all(), method, "it must be least where the student equals the teacher.")


def the_student_alone_gets_a_gradient(method: Distillation) -> None:
    """The student gets a gradient, and the teacher is a constant."""
    student, teacher = ("logits", "features", "hidden"), ("teacher_logits", "teacher_features", "teacher_hidden")
    signals = require_grad(example_signals(), *student, *teacher)
    value = call(method, signals)
    if value.requires_grad:
        value.sum().backward()
    trained, frozen = ([v for name in names for v in tree_leaves(signals[name])] for names in (student, teacher))
    require(any(v.grad is not None for v in trained), method, "the student must get a gradient.")
    require(all(v.grad is None for v in frozen), method, "the teacher must get no gradient.")
