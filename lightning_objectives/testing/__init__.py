"""The laws of each kind, to be run on a method of one's own."""

from lightning_objectives.testing.laws import assert_laws, laws_of
from lightning_objectives.testing.signals import build, call, example_signals

__all__ = ["assert_laws", "build", "call", "example_signals", "laws_of"]
