"""The commands ``fit``, ``validate``, ``test`` and ``predict``, which are Lightning's own."""

import sys
from importlib.util import find_spec
from pathlib import Path

from lightning_objectives.cli.errors import stop


def run_lightning(args: list[str]) -> None:
    """Train or evaluate any module and data module with Lightning's command line."""
    if sys.modules.get("jsonargparse", find_spec("jsonargparse")) is None:
        stop(f"{args[0]} needs jsonargparse: pip install 'lightning-objectives[cli]'.")
    from lightning_objectives._trainer.lightning import part

    # The user's own files, as with `python -m`: an installed command does not see them otherwise.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    part("cli").LightningCLI(
        subclass_mode_model=True,
        subclass_mode_data=True,
        # Without a logger the directory is the same for every run, and Lightning's own file name, config.yaml, may be
        # that of the user: a name of its own can be overwritten.
        save_config_kwargs={"config_filename": "resolved-config.yaml", "overwrite": True},
        args=None if args == sys.argv[1:] else args,  # Lightning warns of args beside those of the command line
    )
