"""Keeps what a fit decides in buffers of any shape, which are saved and loaded as all buffers are."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives.shapes import Form, check_classes, check_shapes, forms


class FittedBuffers(nn.Module):
    """A module with buffers that are empty before the first fit.

    :meth:`load_state_dict` takes them in any shape that fits the declared ones.
    """

    fitted_shapes: ClassVar[Mapping[str, str]] = {}
    """The shapes that a fit decides, by the name of the buffer, such as ``{"scale": "(C,) float"}``. A letter is the
    same size in all of them, and C is the number of classes."""

    def __init__(self) -> None:
        super().__init__()
        for name, form in self._forms().items():
            number = torch.int64 if form.number == "int" else torch.float64
            self.register_buffer(name, torch.zeros([0] * form.dims, dtype=number))

    def check_logits(self, logits: Tensor) -> bool:
        """Refuse logits that are not (N, C) with two classes or more, or have other classes than those of the fit.

        Returns:
            whether the buffers of ``fitted_shapes`` are fitted.

        Raises:
            ValueError: with the shape and the way out.
        """
        check_shapes(logits=logits)
        check_classes(logits)
        fitted = False
        for name, form in self._forms().items():
            shape = getattr(self, name).shape
            fitted = 0 not in shape
            if fitted and "C" in form.first and shape[form.first.index("C")] != logits.shape[1]:
                raise ValueError(
                    f"logits of the shape {tuple(logits.shape)} have {logits.shape[1]} classes, but {self!r} was "
                    f"fitted on {shape[form.first.index('C')]}. Pass logits of the same classes, or fit it again."
                )
        return fitted

    @classmethod
    def _forms(cls) -> dict[str, Form]:
        return {name: forms(shape)[0] for name, shape in cls.fitted_shapes.items()}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # torch would refuse every shape but that of the buffer, which is empty before the first fit.
        saved = {name: state_dict.get(prefix + name) for name in self.fitted_shapes}
        tensors = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
        allowed = {name: (form,) for name, form in self._forms().items()}
        try:
            for name in saved.keys() - tensors.keys():
                raise ValueError(f"the state has no {name!r}. Load a state that this class has saved.")
            if any(t.dim() != allowed[name][0].dims or t.numel() for name, t in tensors.items()):
                check_shapes(allowed, **tensors)
        except ValueError as error:
            error_msgs.append(f"{type(self).__name__} keeps its own state: {error}")
            return
        with torch.inference_mode(False):
            for name, tensor in tensors.items():
                setattr(self, name, getattr(self, name).new_empty(tensor.shape))
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
