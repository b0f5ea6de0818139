"""The commands ``merge`` and ``export``."""

import argparse
import inspect
from typing import Any

from lightning_objectives import discovery
from lightning_objectives._files.export import export_checkpoint
from lightning_objectives._files.merge import merge_checkpoints


def merge(args: list[str]) -> None:
    """Merge checkpoint files into one, tensor by tensor; --help tells more."""
    methods = {cls.__name__: cls for room, cls in discovery.methods() if room == "merging"}
    parser = argparse.ArgumentParser("lightning-objectives merge", description=inspect.getdoc(merge))
    parser.add_argument("files", nargs="+", metavar="FILE", help=".ckpt, .pt or .safetensors")
    parser.add_argument("-o", "--out", required=True, help="the file to write, of the same types")
    parser.add_argument(
        "--order", choices=["step", "given"], default="step", help="by step, or as listed, oldest first"
    )
    parser.add_argument("--method", choices=list(methods), default=next(iter(methods)), help="default: %(default)s")
    settings = {p.name: p for cls in methods.values() for p in inspect.signature(cls).parameters.values()}
    for name, setting in settings.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(setting.default), help="a setting of the method")
    given = vars(parser.parse_args(args[1:]))
    chosen = {name: given[name] for name in settings if given[name] is not None}
    _run(parser, lambda: merge_checkpoints(
        given["files"], _method(methods[given["method"]], chosen), given["out"], order=given["order"], verbose=True
    ))  # fmt: skip


def export(args: list[str]) -> None:
    """Write the raw weights, or the average, of a checkpoint of an averaged training as a plain one."""
    parser = argparse.ArgumentParser("lightning-objectives export", description=inspect.getdoc(export))
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("-o", "--out", required=True, help="the file to write: .ckpt, .pt or .safetensors")
    parser.add_argument("--weights", choices=["raw", "average"], required=True)
    given = parser.parse_args(args[1:])
    _run(parser, lambda: export_checkpoint(given.file, given.out, weights=given.weights))


def _method(cls: type[Any], settings: dict[str, Any]) -> Any:
    unknown = settings.keys() - inspect.signature(cls).parameters.keys()
    if unknown:
        raise ValueError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}.")
    return cls(**settings)


def _run(parser: argparse.ArgumentParser, write: Any) -> None:
    try:
        print(f"wrote {write()}")
    except (ValueError, OSError) as error:
        parser.error(str(error))
