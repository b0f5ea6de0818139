"""Reads weights that lie in several files with an index, as Hugging Face's libraries write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._files.source import Source, first_names


class Shards(Source):
    """Reads the files that a ``.index.json`` names, tensor by tensor.

    Args:
        path: the index.
        part: an index has no parts.
        reader: opens one of the files.
    """

    def __init__(self, path: Path, part: str | None, reader: Callable[[Path], Source]) -> None:
        self._reader = reader
        super().__init__(path, part)

    def open(self) -> None:
        """Open all files, and check that each holds what the index says, no less and no more."""
        if self.part is not None:
            raise ValueError(
                f"part={self.part!r}: {self.path} is an index of shards, which have no parts. Leave it out."
            )
        places = self._weight_map()
        names = sorted(set(places.values()))
        self.files = [self.path, *(self.path.parent / name for name in names)]
        shards = {name: self._reader(self.path.parent / name) for name in names}
        for name, shard in shards.items():
            named = {key for key, place in places.items() if place == name}
            held = {*shard.keys.values(), *shard.extra_entries}
            if shard.checkpoint or named != held:
                raise ValueError(
                    f"{shard.path} does not hold what {self.path} says: it lacks {first_names(named - held)} and has "
                    f"besides {first_names(held - named)}. Fetch or write the checkpoint again."
                )
        self.keys = self.by_plain_name(places)
        self._shards = {key: shards[place] for key, place in places.items()}
        self.metadata = next(iter(shards.values())).metadata

    def _weight_map(self) -> dict[str, str]:
        try:
            index = json.loads(self.path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.path} is no index of shards: {error}. Fetch or write it again.") from error
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places or not all(_is_file_name(place) for place in places.values()):
            raise ValueError(
                f"{self.path} is no index of shards: its 'weight_map' must hold, for each tensor, the name of a file "
                "in the same folder. Fetch or write it again."
            )
        return places

    def form(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor, without reading it."""
        return self._shards[self.keys[name]].form(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the memory of its file: never write to it."""
        return self._shards[self.keys[name]].tensor(name)

    def storage_key(self, name: str) -> tuple[Any, ...]:
        """Equal for two names of one tensor."""
        return self._shards[self.keys[name]].storage_key(name)


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\\" not in name
