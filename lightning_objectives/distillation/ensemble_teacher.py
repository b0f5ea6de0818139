"""Several trained networks as one teacher."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_objectives.distillation._classes import wide


class EnsembleTeacher(nn.Module):
    r"""Makes one teacher of several trained networks, so that a student learns what they say together.

    With ``average="probabilities"`` its logits are those of the mean of the networks' softened probabilities,

    .. math::
        T \log \frac1K \sum_k \operatorname{softmax}(z_k / T)

    so that a distance with the same temperature T sees exactly this mean. With ``average="logits"`` they are the mean
    of the logits, whose softmax is the normalized geometric mean of the probabilities, at every temperature.

    Args:
        networks: the trained networks, of the same classes in the same order. Each is called with what the teacher is
            called with, and returns its logits as a tensor.
        average: what the mean is taken of.
        temperature: :math:`T > 0`, that of the distance beside which it stands; it means nothing for logits.
        class_dim: the dimension of the classes in the logits: 1 as in torch's losses, or -1 for (N, positions, C).

    Raises:
        ValueError: no network, a setting outside its range; at a call, an output that is no tensor, outputs of
            different shapes, or probabilities of a single class.

    When to use: if you have trained several networks, such as one for each seed, and can serve only one:
    ``Distill(VanillaKD(temperature=4.0), teacher=EnsembleTeacher(networks, temperature=4.0))``.
    Cost: the forward passes and the weights of all networks. ``cache=`` of ``Distill`` runs them once for each sample.
    Interactions: there is no single head, so a method cannot ask for the teacher's features.

    Example:
        >>> class Says(nn.Module):
        ...     def __init__(self, *probabilities):
        ...         super().__init__()
        ...         self.register_buffer("logits", torch.tensor([probabilities]).log())
        ...     def forward(self, x):
        ...         return self.logits
        >>> teacher = EnsembleTeacher([Says(0.9, 0.1), Says(0.5, 0.5)])
        >>> teacher(None).softmax(1)
        tensor([[0.7000, 0.3000]])

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531. Not
    checked at the source: which of the two means the experiments use.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        average: Literal["probabilities", "logits"] = "probabilities",
        temperature: float = 1.0,
        class_dim: int = 1,
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("networks=[] must hold one trained network or more.")
        if average not in ("probabilities", "logits"):
            raise ValueError(f"average={average!r} must be 'probabilities' or 'logits'.")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature} must be > 0 and finite.")
        self.networks = nn.ModuleList(networks)
        self.average = average
        self.temperature = temperature
        self.class_dim = class_dim

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits of the ensemble, in the shape of each network's."""
        outputs = [network(*args, **kwargs) for network in self.networks]
        for number, output in enumerate(outputs):
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"Network {number} of the ensemble, {type(self.networks[number]).__name__}, returns a "
                    f"{type(output).__name__}, but must return its logits as a tensor. Wrap it in a module that does."
                )
            if output.shape != outputs[0].shape:
                raise ValueError(
                    f"Network {number} of the ensemble gives logits of the shape {tuple(output.shape)}, and network 0 "
                    f"{tuple(outputs[0].shape)}. All must have the same classes, in the same order."
                )
        if self.average == "logits":
            return torch.stack(outputs).mean(0)
        if outputs[0].dim() < 2 or outputs[0].shape[self.class_dim] < 2:
            raise ValueError(
                f"The networks of the ensemble give logits of the shape {tuple(outputs[0].shape)}, whose dimension "
                f"{self.class_dim} must hold two classes or more to have probabilities. Choose class_dim=, or "
                "average='logits' for one logit of two classes."
            )
        logs = torch.stack([wide(output, self.temperature).log_softmax(self.class_dim) for output in outputs])
        mean = logs.logsumexp(0) - math.log(len(outputs))
        return (self.temperature * mean).to(outputs[0].dtype)
