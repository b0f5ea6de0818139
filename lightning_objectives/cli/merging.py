"""The commands ``merge`` and ``export``, which write checkpoint files."""

import argparse
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_objectives.cli.errors import did_you_mean
from lightning_objectives.cli.recipe import Recipe, read_recipe
from lightning_objectives.cli.typed import imported, type_name, typed


def merge(args: list[str]) -> None:
    """Merge checkpoint files into one, even if they do not fit into memory; a plan is printed first."""
    # Here, because they load torch.
    from lightning_objectives._files.merge import merge_checkpoints
    from lightning_objectives.discovery import methods

    merges: dict[str, Any] = {cls.__name__: cls for _, cls in methods("merging")}
    default = next(name for name, cls in merges.items() if cls.uses_steps())
    parser = argparse.ArgumentParser("lightning-objectives merge", description=inspect.getdoc(merge))
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="a checkpoint: .ckpt, .pt, .safetensors, .index.json, or a folder"
    )
    parser.add_argument("-o", "--out", help="the file to write: .ckpt, .pt or .safetensors")
    parser.add_argument("--force", action="store_true", default=None, help=_FORCE)
    parser.add_argument(
        "--dry-run", action="store_true", default=None, help="print the plan: check everything, and write nothing"
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="a YAML file with any of these options by name, the method's under settings, and weights: one share for "
        "each file; what you also say here counts more",
    )
    parser.add_argument(
        "--order",
        choices=["step", "given"],
        help="sort the files by their training step, or take them as listed, oldest first (default: step, if the "
        "method uses the steps)",
    )
    parser.add_argument("--method", choices=list(merges), metavar="METHOD", help=f"%(choices)s (default: {default})")
    parser.add_argument("--part", help="the entry of each checkpoint to merge, such as state_dict_ema")
    parser.add_argument(
        "--buffer",
        action="append",
        dest="buffers",
        metavar="NAME",
        help="a buffer, not a parameter, or a pattern such as '*.running_mean': if its merge is not finite, copy the "
        "newest; may be repeated",
    )
    parser.add_argument("--base", help=f"what the files were trained from ({_askers(merges, 'base')})")
    parser.add_argument(
        "--importance",
        action="append",
        metavar="FILE",
        help=f"the importance of each weight, once for each FILE in turn ({_askers(merges, 'importance')})",
    )
    parser.add_argument(
        "--evaluate",
        metavar="FUNCTION",
        help="package.module.function, which takes a state dict and returns its score, greater is better "
        f"({_askers(merges, 'evaluate')})",
    )
    parser.add_argument(
        "--gradient",
        metavar="FUNCTION",
        help="package.module.function, which takes a state dict and returns the gradient of a loss by name "
        f"({_askers(merges, 'gradient')})",
    )
    parser.add_argument("--seed", type=int, help="of all draws (default: 0)")
    named = [name for name in vars(parser.parse_args([])) if name != "recipe"]
    settings: dict[str, list[str]] = {}
    for cls in merges.values():
        for setting in inspect.signature(cls).parameters.values():
            kind = type_name(setting.annotation)
            settings.setdefault(setting.name, []).append(f"{kind} for {cls.__name__} (default: {setting.default})")
    for name, owners in settings.items():
        parser.add_argument(f"--{name.replace('_', '-')}", help="; ".join(owners).replace("%", "%%"))
    said = {name: value for name, value in vars(parser.parse_args(args[1:])).items() if value not in (None, [])}
    words = {name: said.pop(name) for name in settings if name in said}
    path = said.pop("recipe", None)
    try:
        recipe = read_recipe(path, named, settings) if path is not None else Recipe({}, {})
    except (ValueError, OSError) as error:
        parser.error(str(error))
    options = {**recipe.options, **said}
    missing = [name for name in ("files", "out") if name not in options]
    if missing:
        parser.error(f"{' and '.join(missing)} must be given: {_MISSING}")
    method = options.pop("method", default)
    if method not in merges:
        hint = did_you_mean(method, merges)
        parser.error(f"{path}: method: {method!r} is no merge.{hint} Merges: {', '.join(merges)}.")
    files, out, force = options.pop("files"), options.pop("out"), options.pop("force", False)
    dry_run = options.get("dry_run", False)

    def write() -> object:
        built = _method(merges[method], {**recipe.settings, **words})
        options.update({name: imported(options[name]) for name in ("evaluate", "gradient") if name in options})
        written = merge_checkpoints(files, built, out, force=force, verbose=True, **options)
        return "nothing (--dry-run)" if dry_run else written

    _run(parser, out, force or dry_run, write)


_FORCE = "replace a file that is there, even if it is an input"
_MISSING = "say -o OUT and the FILEs here, or out: and files: in a recipe (--recipe FILE)."


def _askers(merges: Mapping[str, Any], what: str) -> str:
    return ", ".join(name for name, cls in merges.items() if what in cls.asks) or "no method here"


def export(args: list[str]) -> None:
    """Write the raw weights, or the average, of a checkpoint that holds both to a plain checkpoint."""
    from lightning_objectives._files.export import export_checkpoint  # here, because it loads torch

    parser = argparse.ArgumentParser("lightning-objectives export", description=inspect.getdoc(export))
    parser.add_argument("file", metavar="FILE", help="a checkpoint of a training with AverageWeights, file or folder")
    _add_output(parser, "the file to write: .ckpt, .pt or .safetensors")
    parser.add_argument("--weights", choices=["raw", "average"], required=True, help="the weights to write")
    options = parser.parse_args(args[1:])
    _run(parser, options.out, options.force, lambda: export_checkpoint(
        options.file, options.out, weights=options.weights, force=options.force
    ))  # fmt: skip


def ema(args: list[str]) -> None:
    """Put together the average of any width after a training that kept two power-function averages."""
    from lightning_objectives.averaging import post_hoc_ema  # here, because it loads torch

    parser = argparse.ArgumentParser("lightning-objectives ema", description=inspect.getdoc(ema))
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="full checkpoints of one training with two averages of PowerEMA"
    )
    _add_output(parser, "the file to write: .ckpt, .pt or .safetensors")
    parser.add_argument(
        "--width", type=float, required=True, help="the width of the average, in parts of the training, such as 0.1"
    )
    parser.add_argument(
        "--max-error",
        type=float,
        default=0.05,
        help="the largest error of the profile to accept (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the shares and the error, and write nothing")
    options = parser.parse_args(args[1:])

    def write() -> str:
        post_hoc_ema(
            options.files, options.out, sigma_rel=options.width, max_error=options.max_error,
            dry_run=options.dry_run, force=options.force, verbose=True,
        )  # fmt: skip
        return "nothing (--dry-run)" if options.dry_run else options.out

    _run(parser, options.out, options.force or options.dry_run, write)


def _add_output(parser: argparse.ArgumentParser, usage: str) -> None:
    parser.add_argument("-o", "--out", required=True, help=usage)
    parser.add_argument("--force", action="store_true", help=_FORCE)


def _method(cls: type[Any], words: Mapping[str, str]) -> Any:
    parameters = inspect.signature(cls).parameters
    unknown = words.keys() - parameters.keys()
    if unknown:
        hint = did_you_mean(min(unknown), parameters)
        raise ValueError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}.{hint}")
    settings = {}
    for name, text in words.items():
        try:
            settings[name] = typed(text, parameters[name].annotation)
        except ValueError as error:
            raise ValueError(f"argument --{name.replace('_', '-')}: {error}") from error
    return cls(**settings)


def _run(parser: argparse.ArgumentParser, out: str, force: bool, write: Callable[[], Any]) -> None:
    if Path(out).is_file() and not force:
        parser.error(f"{out} exists: choose another name, or say --force to replace it.")
    try:
        print(f"wrote {write()}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
