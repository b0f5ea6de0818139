"""Ways in which files are bad, what must be true afterwards, and how many of each are tried."""

import os
import pickle
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lightning_objectives._trainer.patch import Patch

EXAMPLES = 12
"""How many places are drawn for each kind of damage that has a place."""

# Damage at drawn places.


def truncated(whole, draw):
    return whole[: draw(st.integers(1, len(whole) - 1))]


def flipped(whole, draw):
    spot = draw(st.integers(0, len(whole) - 1))
    return whole[:spot] + bytes([whole[spot] ^ 1 << draw(st.integers(0, 7))]) + whole[spot + 1 :]


def overwritten(whole, draw):
    """As by a block of zeros, which file systems leave after a crash."""
    spot = draw(st.integers(0, len(whole) - 2))
    return whole[:spot] + bytes(len(whole[spot : spot + 64])) + whole[spot + 64 :]


DRAWN = {"truncated": truncated, "flipped": flipped, "overwritten": overwritten}


def with_a_bit_changed(whole, tensor):
    """The lowest bit of the first value of a tensor, wherever it lies in a file."""
    values = tensor.numpy().tobytes()
    assert whole.count(values) == 1
    spot = whole.index(values)
    return whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :]


# Something else in its place.


def missing(path):
    path.unlink()


def directory(path):
    path.unlink()
    path.mkdir()


def empty(path):
    path.write_bytes(b"")


def web_page(path):
    path.write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")


def pointer(path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")


def other_format(path):
    """A safetensors file where one of torch is expected, and the other way round."""
    tensors = {"w": torch.ones(2)}
    torch.save(tensors, path) if path.suffix == ".safetensors" else save_file(tensors, path)


def text(path):
    path.write_text("weights\n" * 100)


def plain_pickle(path):
    path.write_bytes(pickle.dumps({"w": [1.0, 2.0]}))


def endless_link(path):
    path.unlink()
    path.symlink_to(path)


REPLACED = {
    f.__name__: f
    for f in (missing, directory, empty, web_page, pointer, other_format, text, plain_pickle, endless_link)
}


class Runs:
    """What a malicious pickle does when it is loaded: it leaves a folder ``ran`` in the working directory."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


HIDDEN = {
    "beside": lambda frame: frame | {"mine": Runs()},
    "as a weight": lambda frame: frame | {"state_dict": {**frame["state_dict"], "mine": Runs()}},
    "in hyper_parameters": lambda frame: frame | {"hyper_parameters": {"width": Runs()}},
    "in the optimizer's state": lambda frame: frame | {"optimizer_states": [{"state": {0: Runs()}}]},
    "in a callback's state": lambda frame: frame | {"callbacks": {**frame.get("callbacks", {}), "mine": Runs()}},
    "in the loops": lambda frame: frame | {"loops": {"fit_loop": Runs()}},
    "as a key": lambda frame: frame | {"lr_schedulers": [{Runs(): 1}]},
    "as the whole": lambda frame: Runs(),
}
"""Where code lies in a Lightning checkpoint."""


# What must be true.


def contents(folder):
    """All that lies in a folder, hidden files too."""
    return {path: _bytes(path) for path in sorted(folder.rglob("*"))}


def _bytes(path):
    try:
        return path.read_bytes() if path.is_file() else None
    except PermissionError:
        return None


@contextmanager
def nothing_left(folder):
    """Whatever happens within: no file comes, goes or changes, and no code of a file has run."""
    before = contents(folder)
    assert "ran" not in {path.name for path in before}
    yield
    assert contents(folder) == before


def trace(module):
    """What patching a module would change: attributes, hooks, forwards, and the keys of its state."""
    hooks = {k for k in vars(module) if k.endswith("_hooks")}
    return {
        "state": list(module.state_dict()),
        "of": {
            name: (
                sorted(vars(child)),
                type(child),
                type(child.forward),
                {k: len(vars(child)[k]) for k in hooks if k in vars(child)},
                [k for k, value in vars(child).items() if isinstance(value, Patch)],
            )
            for name, child in module.named_modules()
        },
    }


def unless_refused(call, path, errors=(ValueError,)):
    """What a call gives, or None where it refuses a file by name."""
    try:
        return call()
    except errors as error:
        if str(path.name) not in str(error):
            raise
        return None


def drawn(examples, run):
    """Call ``run(draw)`` with ``examples`` draws, always the same ones; it returns what was drawn, to be counted."""
    seen = []

    @settings(
        max_examples=examples,
        derandomize=True,
        phases=[Phase.generate],  # a file that is bad in a smaller way tells no more
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def every(data):
        seen.append(run(data.draw))

    every()
    assert len(seen) >= examples


@contextmanager
def unreadable():
    """A folder whose files an ordinary user may not read, and who is that user within; root may read everything."""
    with tempfile.TemporaryDirectory() as name:
        folder, user = Path(name), os.geteuid()
        folder.chmod(0o777)
        here = Path.cwd()
        os.chdir(folder)
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            os.chdir(here)
