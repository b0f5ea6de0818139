"""Lists the laws of each kind, and checks a method against them."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from lightning_objectives import kinds
from lightning_objectives.testing import (
    adaptation,
    averaging,
    batches,
    calibration,
    combination,
    devices,
    gradients,
    heads,
    merging,
    metrics,
    objectives,
    perturbations,
    prediction_sets,
    schedules,
    shapes,
    surgery,
    surveys,
    weighting,
)
from lightning_objectives.testing.common import (
    a_copy_is_the_same,
    going_on_from_a_state_is_going_on,
    it_leaves_the_global_random_stream_alone,
    it_writes_to_nothing_that_it_is_given,
    the_module_equals_its_function,
)

Law = Callable[[Any], None]

_EVERY_MODULE: tuple[Law, ...] = (
    devices.it_waits_for_no_gpu,
    it_writes_to_nothing_that_it_is_given,
    the_module_equals_its_function,
    a_copy_is_the_same,
    going_on_from_a_state_is_going_on,
    shapes.signals_of_a_wrong_shape_are_refused,
)
_WITHOUT_DRAWS: tuple[Law, ...] = (it_leaves_the_global_random_stream_alone, *_EVERY_MODULE)

LAWS: dict[type[Any], tuple[Law, ...]] = {
    kinds.BatchTransform: (
        batches.the_shape_of_the_inputs_is_kept,
        batches.the_labels_are_mixed_in_shares,
        batches.the_generator_alone_decides,
        *_WITHOUT_DRAWS,
    ),
    kinds.Surgery: (
        surgery.it_defines_a_place,
        surgery.an_output_keeps_its_form,
        surgery.the_layer_is_left_as_it_was,
        surgery.the_global_stream_alone_decides,
        surgery.preparing_twice_is_preparing_once,
        surgery.freezing_depends_on_the_place_alone,
        devices.it_waits_for_no_gpu,
        a_copy_is_the_same,
    ),
    kinds.Head: (
        heads.each_stack_has_the_shape_of_the_heads_logits,
        heads.each_stack_uses_the_heads_weights,
        heads.the_rows_are_independent,
        heads.the_features_of_the_stacks_give_the_stacks,
        heads.evaluation_is_the_plain_heads,
        *_EVERY_MODULE,
    ),
    kinds.Loss: (
        objectives.one_value_a_row,
        objectives.each_row_is_computed_by_itself,
        objectives.the_order_of_the_rows_means_nothing,
        objectives.the_gradient_is_that_of_finite_differences,
        objectives.large_logits_stay_finite,
        *_WITHOUT_DRAWS,
    ),
    kinds.Weighting: (
        weighting.one_weight_a_sample_and_their_mean_is_one,
        weighting.equal_samples_weigh_the_same,
        objectives.the_order_of_the_rows_means_nothing,
        weighting.no_gradient_flows_through_the_weights,
        weighting.one_bad_loss_leaves_the_other_weights_finite,
        *_WITHOUT_DRAWS,
    ),
    kinds.Distillation: (
        objectives.one_value_a_row,
        objectives.each_row_is_computed_by_itself,
        objectives.the_order_of_the_rows_means_nothing,
        objectives.large_logits_stay_finite,
        objectives.it_is_least_where_the_student_equals_the_teacher,
        objectives.the_student_alone_gets_a_gradient,
        *_WITHOUT_DRAWS,
    ),
    kinds.Regularizer: (
        objectives.one_value_or_one_a_row,
        objectives.each_row_is_computed_by_itself,
        objectives.the_gradient_is_that_of_finite_differences,
        *_WITHOUT_DRAWS,
    ),
    kinds.Combination: (
        combination.one_weight_a_term,
        combination.one_term_alone_keeps_its_weight,
        *_WITHOUT_DRAWS,
    ),
    kinds.Perturbation: (
        perturbations.each_offset_has_the_form_of_its_parameter,
        perturbations.neither_parameters_nor_gradients_are_written_to,
        perturbations.gradients_of_zero_move_nothing,
        perturbations.no_offset_points_down_the_gradient,
        perturbations.without_a_size_it_is_idle,
        perturbations.all_draws_come_from_the_generator,
        perturbations.gradients_that_do_not_fit_are_refused,
        perturbations.offsets_equal_those_of_the_function,
        devices.it_waits_for_no_gpu,
        a_copy_is_the_same,
    ),
    kinds.GradientTransform: (
        gradients.the_gradients_keep_their_form,
        gradients.a_missing_gradient_stays_missing,
        gradients.nothing_but_the_state_is_written_to,
        gradients.all_ranks_get_the_same,
        gradients.going_on_from_a_file_is_going_on,
        gradients.gradients_that_do_not_fit_are_refused,
        devices.it_waits_for_no_gpu,
        a_copy_is_the_same,
    ),
    kinds.Rule: (
        averaging.the_average_has_the_form_of_the_weights,
        averaging.constant_weights_stay,
        averaging.going_on_from_a_file_is_going_on,
        averaging.parts_of_the_weights_make_no_difference,
        averaging.reading_changes_nothing,
        averaging.the_live_weights_are_neither_changed_nor_aliased,
        averaging.weights_that_do_not_fit_are_refused,
        devices.it_waits_for_no_gpu,
        a_copy_is_the_same,
    ),
    kinds.Calibrator: (
        calibration.the_rows_are_probabilities,
        calibration.the_fitted_set_is_no_worse,
        calibration.the_top_class_is_kept_where_declared,
        calibration.going_on_from_a_file_is_going_on,
        calibration.a_fit_refuses_signals_of_a_wrong_shape,
        objectives.large_logits_stay_finite,
        *_WITHOUT_DRAWS,
    ),
    kinds.Adapter: (
        adaptation.what_it_adapts_are_parameters_of_the_network,
        adaptation.a_network_without_what_it_adapts_is_refused,
        adaptation.an_update_moves_what_it_names_and_nothing_else,
        adaptation.a_reset_begins_anew,
        adaptation.statistics_have_the_form_of_those_they_replace,
        adaptation.predictions_have_the_form_of_the_logits,
        adaptation.predictions_follow_the_order_of_the_rows,
        adaptation.predictions_refuse_signals_of_a_wrong_shape,
        adaptation.nothing_is_drawn_from_the_global_stream,
        adaptation.an_adapter_equals_its_function,
        devices.it_waits_for_no_gpu,
        a_copy_is_the_same,
    ),
    kinds.SetPredictor: (
        prediction_sets.each_row_has_a_set,
        prediction_sets.the_fitted_rows_are_covered,
        prediction_sets.a_larger_alpha_gives_subsets,
        prediction_sets.the_order_of_the_classes_means_nothing,
        prediction_sets.the_order_of_the_fitted_rows_means_nothing,
        prediction_sets.few_rows_give_every_class,
        prediction_sets.all_draws_come_from_the_generator,
        calibration.going_on_from_a_file_is_going_on,
        calibration.a_fit_refuses_signals_of_a_wrong_shape,
        *_WITHOUT_DRAWS,
    ),
    kinds.Merge: (
        merging.one_finite_coefficient_a_checkpoint,
        merging.the_coefficients_sum_to_one,
        merging.only_the_distances_of_the_steps_matter,
        merging.steps_that_do_not_increase_are_refused,
        merging.identical_checkpoints_merge_into_themselves,
        merging.where_every_file_equals_the_base_it_stays,
        merging.the_order_of_the_files_means_nothing,
        merging.a_linear_merge_is_linear,
        merging.parts_of_a_tensor_make_no_difference,
        merging.nothing_is_written_to,
        merging.all_draws_come_from_the_generator,
        merging.a_merge_equals_its_function,
        a_copy_is_the_same,
    ),
    kinds.Survey: (
        surveys.the_sums_are_tensors_without_gradients,
        surveys.two_batches_are_one,
        surveys.the_order_of_the_rows_means_nothing,
        surveys.the_result_is_made_of_the_sums_alone,
        *_WITHOUT_DRAWS,
    ),
    LRScheduler: (
        schedules.the_rate_stays_within_the_peak,
        schedules.going_on_from_a_state_is_going_on,
    ),
    Metric: (
        metrics.a_copy_goes_on,
        metrics.two_batches_are_one,
        metrics.two_ranks_are_one,
        metrics.reset_forgets,
        metrics.tensor_states_do_not_grow,
        metrics.tensors_that_do_not_fit_each_other_are_refused,
        devices.it_waits_for_no_gpu,
    ),
}
"""The laws of each kind. Write the laws of a new kind here before its first method arrives."""


def laws_of(method: Any) -> tuple[Law, ...]:
    """Find the laws of a method's kind.

    Args:
        method: an instance or a class.

    Returns:
        functions that take an instance, and raise an AssertionError with a sentence if the instance breaks the law. Of
        a law in the method's ``unkept_laws`` the function raises it if the instance keeps the law.

    Raises:
        TypeError: the kind has no laws yet, or ``unkept_laws`` names none of them.

    >>> from lightning_objectives.averaging import EMA
    >>> [law.__name__ for law in laws_of(EMA)][1]
    'constant_weights_stay'
    """
    cls = method if isinstance(method, type) else type(method)
    for kind, laws in LAWS.items():
        if issubclass(cls, kind):
            return _as_declared(cls, laws)
    known = ", ".join(kind.__name__ for kind in LAWS)
    raise TypeError(
        f"{cls.__name__} is of no kind that has laws ({known}). Write those of its kind in testing/laws.py."
    )


def _as_declared(cls: type[Any], laws: tuple[Law, ...]) -> tuple[Law, ...]:
    unkept = getattr(cls, "unkept_laws", {})
    unknown = unkept.keys() - {law.__name__ for law in laws}
    if unknown:
        raise TypeError(f"{cls.__name__}.unkept_laws names {sorted(unknown)[0]!r}, which is no law of its kind.")
    return tuple(_is_broken(law, unkept[law.__name__]) if law.__name__ in unkept else law for law in laws)


def _is_broken(law: Law, reason: str) -> Law:
    """The law that the method breaks this law."""

    @wraps(law)
    def check(method: Any) -> None:
        try:
            law(method)
        except AssertionError:
            return
        raise AssertionError(
            f"{method}: unkept_laws says that it does not keep the law {law.__name__} ({reason}), but it does: remove "
            "the entry."
        )

    return check


def assert_laws(method: Any) -> None:
    """Check a method against all the laws of its kind.

    Args:
        method: an instance, of this package or of your own.

    Raises:
        AssertionError: it breaks one of them.
        TypeError: its kind has none yet.

    Example:
        >>> from lightning_objectives.kinds import Weighting
        >>> class Plain(Weighting):
        ...     def forward(self, losses):
        ...         return losses / losses.mean()
        >>> assert_laws(Plain())
        Traceback (most recent call last):
            ...
        AssertionError: Plain(): no gradient may flow through the weights: detach the losses.
    """
    for law in laws_of(method):
        law(method)
