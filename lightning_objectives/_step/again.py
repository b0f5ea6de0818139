"""Calls the network of a step once more, with other inputs and with draws of its own."""

from typing import Any

from torch import Tensor

from lightning_objectives._step.batch import changed
from lightning_objectives._step.capture import NetworkCall
from lightning_objectives._step.frozen import logits_of
from lightning_objectives._step.network import network_call
from lightning_objectives._step.passes import Muted, unchanged_state
from lightning_objectives._step.step import Step
from lightning_objectives._step.trace import Replay
from lightning_objectives._trainer.random import Streams, batch_seed, private_stream

_STREAM = 1000
"""The number of these draws among those of one batch."""


class Again:
    """The signal ``again`` of one step: ``again(inputs, seed=0)`` -> (N, C) logits of a further pass.

    The network gets what it got from the step, masks and keywords included, with ``inputs`` in place of the batch's
    own; what the step does to the inputs before, and to the logits afterwards, is done to these too. The pass keeps no
    trace: buffers (the statistics of BatchNorm), metrics, logs and the global random streams stay as they are.

    Raises:
        ValueError: the step calls its network several times, or with something else than the inputs, or does something
            to the logits that cannot be repeated.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.user = f"{type(step.module).__name__}.training_step"
        self.call = self._call()
        self.inputs: Tensor = step.get("inputs")

    def __call__(self, inputs: Tensor, seed: int = 0) -> Tensor:
        """The logits for other inputs; in one step equal seeds draw the same."""
        step, call = self.step, self.call
        args, kwargs = self._with(inputs)
        device = inputs.device
        streams = Streams(device)
        own = batch_seed(seed, step.trainer, stream=_STREAM)
        repeating = step.plan.capture.repeating()
        try:
            with repeating, private_stream(own, device), unchanged_state(call.owner), Muted(step.module):
                output = call.owner(*args, **kwargs)
        finally:
            streams.restore()
        return self._as_logits(logits_of(output))

    def _call(self) -> NetworkCall:
        call = network_call(self.step, like=self.step.plan.network)
        if call is not None:
            return call
        calls = len([c for c in self.step.plan.capture.network_calls if c.owner is self.step.plan.network])
        what = "does not call its network with the inputs of the batch"
        if calls != 1:
            what = f"calls its network {calls} times"
        raise ValueError(
            f"The signal `again` repeats the one call of the network, but {self.user} {what}. Use a method that does "
            "not ask for `again`, or call the network once, with tensors of the batch."
        )

    def _with(self, inputs: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call with other inputs."""
        trace = self.step.plan.capture.trace
        root, found = trace.node_of(self.inputs), False

        def substitute(value: Any) -> Any:
            nonlocal found
            if value is self.inputs:
                found = True
                return inputs
            node = trace.node_of(value) if isinstance(value, Tensor) and root is not None else None
            if node is None or root is None or node.obstacle is not None or node.roots() != {root}:
                return value
            found = True
            return Replay(root, inputs)(node)

        args, kwargs = changed((self.call.args, self.call.kwargs), substitute)
        if not found:
            raise ValueError(
                f"The signal `again` puts other inputs in the place of the batch's, but {self.user} does not call its "
                f"network with the inputs of shape {tuple(self.inputs.shape)}: what it does to them before cannot be "
                "repeated. Name the network's input in the batch with input=, or do that work inside the network."
            )
        return args, kwargs

    def _as_logits(self, logits: Tensor) -> Tensor:
        """What the criterion would compare if the network had returned these logits, as (N, C)."""
        step, trace = self.step, self.step.plan.capture.trace
        own, criterion = logits_of(self.call.output), step.user_call
        assert criterion is not None
        goal, start = trace.node_of(criterion.input), trace.node_of(own)
        if goal is not None and start is not None and goal.obstacle is None:
            logits = Replay(start, logits)(goal)
        elif criterion.input is not own:
            why = f"applies {goal.obstacle!r}" if goal is not None and goal.obstacle else "does something unknown"
            raise ValueError(
                f"The signal `again` needs the way of the logits from the network to the criterion, but {self.user} "
                f"{why} in between. Casts, shapes, selections and arithmetic can be repeated; move anything else into "
                "the network."
            )
        return criterion.on(lambda tensor: logits if tensor is criterion.input else tensor).logits
