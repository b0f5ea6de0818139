"""Checks the laws of its kind on a method, also on one of your own."""

from lightning_objectives.testing.laws import assert_laws, laws_of
from lightning_objectives.testing.signals import build, call, example_signals

__all__ = ["assert_laws", "build", "call", "example_signals", "laws_of"]
