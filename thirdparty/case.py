"""What a package file says of one unedited module, and how it is trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Case:
    """One module of a package, trained for a few steps."""

    name: str
    about: str
    """What is trained, and how, in a sentence."""
    lightning: str = "lightning.pytorch"
    """The name under which the package imports Lightning."""
    module: Callable[[], Any] | None = None
    """Builds the module. None if the package builds it inside ``train``."""
    data: Callable[[], tuple[Any, Any]] | None = None
    """Builds the loaders of the training and of the validation."""
    train: Callable[[list[Any], dict[str, Any]], Any] | None = None
    """``(callbacks, trainer_options)`` -> the trained module, if the package makes the Trainer itself."""
    reopen: Callable[[str], Any] | None = None
    """Opens the files that ``train`` saves in the folder ``saved`` by the package's own means."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the Trainer."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What a user tells callbacks that cannot find it: ``head``, ``criterion``, ``input``, ``which``. Under the name
    of a callback stands what this one is told instead."""
    classifies: bool = True
    """Whether the loss compares logits of classes with one class per row."""
    one_logit: bool = False
    """Whether it compares one logit with one of two classes, which methods for classes get as two columns."""
    manual: bool = False
    """Whether the module optimizes by hand, so that no callback can act in its step."""
    samples: int | None = None
    """The number of samples in a batch, which weightings must see as rows."""
    teacher: Callable[[Any], nn.Module] = lambda module: module
    """``(module)`` -> the network of another such module; it teaches."""
    same_teacher: bool = False
    """Whether the network computes the same in training as in evaluation, so that its copy is at the distance 0."""
    drawless: bool = False
    """Whether the network draws nothing in training (no dropout), so that its losses can be computed by hand."""
    evaluate: Callable[[Any], tuple[Tensor, Tensor]] | None = None
    """``(module)`` -> the (N, C) or (N,) logits and (N,) targets of the validation, by the user's own code; -100 is
    ignored."""

    def told(self, callback: str) -> dict[str, Any]:
        """What the user tells this callback."""
        own = self.settings.get(callback)
        if isinstance(own, Mapping):
            return dict(own)
        return {name: value for name, value in self.settings.items() if not isinstance(value, Mapping)}

    def fresh(self) -> Any:
        """The module before its training, always with the same weights."""
        assert self.module is not None
        import_module(self.lightning).seed_everything(0, verbose=False)
        return self.module()

    def fit(self, callbacks: list[Any], options: dict[str, Any]) -> Any:
        """Train anew, from the same random state, and return the module."""
        options = {**options, **self.options}
        if self.train is not None:
            import_module(self.lightning).seed_everything(0, verbose=False)
            return self.train(callbacks, options)
        assert self.data is not None
        module, (train, validation) = self.fresh(), self.data()
        trainer = import_module(self.lightning).Trainer(callbacks=callbacks, **options)
        trainer.fit(module, train, validation)
        return module


def logits_of(network: Callable[..., Any], batches: Any) -> tuple[Tensor, Tensor]:
    """The logits and targets of (input, target) batches, in evaluation mode."""
    with torch.no_grad():
        pairs = [(network(x), y) for x, y in batches]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([target for _, target in pairs])
