"""Changes layers of the network for a training: what they compute, and whether they are trained."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_objectives._step.batch import batch_size_of, told_batch_size, unwrap
from lightning_objectives._step.compiled import lies_in_compiled
from lightning_objectives._step.head import resolve
from lightning_objectives._step.taps import find_taps
from lightning_objectives._trainer.callback import Callback
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.progress import progress_of
from lightning_objectives.kinds import LayerPlace, Surgery

_COMPILED = ("a_compiled_part", "a_part_compiled_in_place", "a_part_compiled_late", "a_compiled_module")
_UNSEEN = "it lies in a compiled module, whose code does not see the change; compile parts without these layers"


@dataclass(eq=False)
class _Layer:
    """A layer of the network, and what the surgery has done to it."""

    path: str
    layer: nn.Module
    called: bool = False
    patch: Patch | None = None
    frozen: bool = False
    withheld: list[nn.Parameter] = field(default_factory=list)
    """The parameters that need no gradient while the layer is frozen."""
    resting: list[nn.Module] = field(default_factory=list)
    """The parts whose running statistics stay as they are while the layer is frozen."""

    def freeze(self, *, withholds: bool) -> None:
        self.frozen = True
        self.resting = [part for part in self.layer.modules() if isinstance(part, _BatchNorm) and part.training]
        for part in self.resting:
            part.training = False
        self.withheld = [p for p in self.layer.parameters() if p.requires_grad] if withholds else []
        for parameter in self.withheld:
            parameter.requires_grad_(False)

    def thaw(self) -> None:
        for part in self.resting:
            part.training = True
        for parameter in self.withheld:
            parameter.requires_grad_(True)
        self.frozen, self.resting, self.withheld = False, [], []


@dataclass(eq=False)
class ChangeLayers(Callback):
    """Changes what layers of the network compute in training, or freezes them, without touching your code.

    The layers act only while they are in training mode: validation, testing and prediction are those of the plain
    network. When the training is over, also after an exception or Ctrl-C, each layer is as it was, but for weights that
    the method sets on purpose and says so. Nothing is added to checkpoints.

    A frozen layer keeps its weights to the bit, whatever weight decay and momentum say, and its BatchNorm keeps its
    running statistics. With one process its gradient is not even computed; with several, torch needs the gradients of
    all parameters, so they are computed and dropped.

    Args:
        surgery: the method.
        layers: the paths in the module of the layers to change, or patterns such as ``"net.blocks.*.attn"``. By default
            those that the method is made for.
        batch_size: the number of samples in each batch, or its path in the batch (``"num_graphs"``), if it is not the
            length of the batch's first tensor; for methods that act on each sample.

    Raises:
        ValueError: in a fit, layers that do not exist, that the method cannot change or that lie in a compiled module;
            in the first step, a layer that the step does not call; a frozen layer that shares a weight with another,
            or beside which nothing is trained.

    Cost: that of the method, and one call of Python for each layer.

    Example:
        >>> from lightning_objectives.surgery import StochasticDepth
        >>> ChangeLayers(StochasticDepth(rate=0.1), layers="net.layer3.*.bn2").surgery
        StochasticDepth(rate=0.1, part='branch', mode='row', growing=True, sample_dim=0)
    """

    kind = Surgery
    draws = True

    surgery: Surgery
    _: KW_ONLY
    layers: str | Sequence[str] | None = None
    batch_size: int | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.surgery, Surgery):
            raise ValueError(f"surgery={self.surgery!r} must be a surgery, such as StochasticDepth().")
        self._layers: list[_Layer] = []
        self._step: Patch | None = None
        self._is_tried = False
        """Whether a step has shown that all layers are called."""
        self._acts = False
        """Whether the surgery acts in the running step; it holds until the next, for checkpointing's backward pass."""
        self._samples: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy keeps the settings, and patches the layers of its own run. Other processes get copies too.
        return {**vars(self), "_layers": [], "_step": None, "_is_tried": False, "_acts": False}

    def methods(self) -> list[Any]:
        """The surgery."""
        return [self.surgery]

    @property
    def needs_layers(self) -> bool:
        """Whether the method has no layers of its own choice."""
        return not self.surgery.changes

    def unsupported(self) -> dict[str, str]:
        """Add compiled modules, if the method changes what a layer computes."""
        refused = dict.fromkeys(_COMPILED, _UNSEEN) if self.surgery.defines("call") else {}
        return refused | super().unsupported()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit."""
        super().setup(trainer, pl_module, stage)
        self._restore()
        if stage == "fit":
            # By the step and not by a hook: a search for the learning rate trains without the callbacks.
            self._step = Patch(pl_module, "training_step", partial(self._training_step, trainer, pl_module))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the layers, and set the weights that the method sets, before others read them."""
        if self.surgery.active(step=trainer.global_step):
            self._find(trainer, pl_module)

    def _training_step(self, trainer: Any, module: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._acts = self.surgery.active(step=trainer.global_step)
        if not self._acts and not any(layer.frozen for layer in self._layers):
            return inner(*args, **kwargs)
        self._find(trainer, module)
        if self.surgery.defines("frozen"):
            self._freeze(trainer, module)
        if self.surgery.defines("call"):
            self._samples = self._count(module, args[0] if args else kwargs.get("batch"))
        if self._is_tried:
            return inner(*args, **kwargs)
        self._refuse_compiled(module, self._layers)  # The user may have compiled them since the fit began.
        output = inner(*args, **kwargs)
        self._refuse_uncalled(module)
        return output

    def _count(self, module: Any, batch: Any) -> int | None:
        """The number of samples in the batch; None if the step draws its batches itself."""
        batch = None if isinstance(batch, Iterator) else unwrap(batch)[0]
        told = told_batch_size(module, batch, self.batch_size)
        return batch_size_of(batch) if told is None else told

    def _find(self, trainer: Any, module: Any) -> None:
        """Find the layers and patch them, once in each fit."""
        if self._layers:
            return
        layers = [_Layer(path, module.get_submodule(path)) for path in self._paths(module)]
        for layer in layers:
            try:
                self.surgery.check(layer.layer, len(layers))
            except ValueError as error:
                raise ValueError(f"{self.surgery} cannot change {layer.path!r}: {error}") from error
        self._refuse_compiled(module, layers)
        if self.surgery.defines("frozen"):
            _refuse_shared(module, layers)
        self._layers = layers
        for number, layer in enumerate(layers):
            place = self._place(trainer, number)
            if self.surgery.defines("prepare"):
                self.surgery.prepare(layer.layer, place)
            if self.surgery.defines("call"):
                layer.patch = Patch(layer.layer, "forward", partial(self._call, trainer, number))

    def _paths(self, module: Any) -> list[str]:
        if self.layers is not None:
            return [tap.path for tap in find_taps(module, self.layers, option="layers")]
        changes = self.surgery.changes
        if not changes:
            raise ValueError(
                f"{self.surgery} does not know which layers to change: name them with layers=, such as "
                "layers='net.blocks.*'. print(dict(module.named_modules()).keys()) shows all."
            )
        if changes == "head":
            return [resolve(module, None)[0]]
        paths = [path for path, part in module.named_modules() if isinstance(part, changes)]
        if not paths:
            classes = ", ".join(cls.__name__.lstrip("_") for cls in changes)
            raise ValueError(
                f"{type(module).__name__} has no layer that {self.surgery} is made for ({classes}). Name the layers to "
                "change with layers=."
            )
        return paths

    def _place(self, trainer: Any, number: int) -> LayerPlace:
        path = self._layers[number].path
        return LayerPlace(number, len(self._layers), path, self._samples, partial(progress_of, trainer))

    def _call(self, trainer: Any, number: int, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        layer = self._layers[number]
        layer.called = True
        if not (self._acts and layer.layer.training):
            return inner(*args, **kwargs)
        return self.surgery.call(layer.layer, self._place(trainer, number), inner, *args, **kwargs)

    def _refuse_compiled(self, module: Any, layers: Sequence[_Layer]) -> None:
        compiled = [layer.path for layer in layers if lies_in_compiled(module, layer.path)]
        if compiled and self.surgery.defines("call"):
            raise ValueError(f"{self.surgery} cannot change {compiled[0]!r}: {_UNSEEN}.")

    def _refuse_uncalled(self, module: Any) -> None:
        uncalled = [layer.path for layer in self._layers if not layer.called]
        if uncalled and self.surgery.defines("call"):
            raise ValueError(
                f"The first training step of {type(module).__name__} does not call the layer {uncalled[0]!r}"
                f"{' and others' if uncalled[1:] else ''}, so {self.surgery} would not act on it. Other code may use "
                "its weights, as nn.MultiheadAttention does with its out_proj: name the layer around it."
            )
        self._is_tried = True

    # -- frozen layers -------------------------------------------------------------------------------------------------

    def _freeze(self, trainer: Any, module: Any) -> None:
        """Freeze and thaw the layers that are due."""
        before = [layer.frozen for layer in self._layers]
        for number, layer in enumerate(self._layers):
            due = self._acts and self.surgery.frozen(self._place(trainer, number))
            if due and not layer.frozen:
                layer.freeze(withholds=_has_one_process(trainer))
            elif layer.frozen and not due:
                layer.thaw()
        if before == [layer.frozen for layer in self._layers]:
            return
        self._drop_gradients()
        frozen = {parameter for layer in self._layers if layer.frozen for parameter in layer.layer.parameters()}
        if not any(p.requires_grad and p not in frozen for p in module.parameters()):
            raise ValueError(
                f"{self.surgery} freezes {', '.join(layer.path for layer in self._layers)}, beside which "
                f"{type(module).__name__} has nothing to train. Leave a layer out of layers=, such as the head."
            )

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Drop the gradients of frozen layers, so that no optimizer moves them by decay or momentum either."""
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for layer in self._layers:
            for parameter in layer.layer.parameters() if layer.frozen else ():
                parameter.grad = None

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the layers back."""
        self._restore()
        super().release(trainer, pl_module)

    def _restore(self) -> None:
        for layer in self._layers:
            layer.thaw()
            if layer.patch is not None:
                layer.patch.remove()
        self._layers, self._is_tried, self._acts = [], False, False
        if self._step is not None:
            self._step.remove()
            self._step = None


def _has_one_process(trainer: Any) -> bool:
    """Whether no other process waits for the gradients."""
    return any(cls.__name__ == "SingleDeviceStrategy" for cls in type(trainer.strategy).__mro__)


def _refuse_shared(module: nn.Module, layers: Sequence[_Layer]) -> None:
    """Refuse a layer that shares a parameter with one that is not named."""
    inside = {parameter: layer.path for layer in layers for parameter in layer.layer.parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        path = inside.get(parameter)
        if path is not None and not any(name.startswith(f"{layer.path}.") for layer in layers):
            raise ValueError(
                f"The layer {path!r} shares a weight with {name!r}, which would be frozen with it. Leave the layer out "
                "of layers=, or name both."
            )
