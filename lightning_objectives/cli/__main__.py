"""``python -m lightning_objectives.cli``."""

from lightning_objectives.cli import main

main()
