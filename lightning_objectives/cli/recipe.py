"""Reads the recipe of a merge: a YAML file with the options of the command."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_objectives.cli.errors import did_you_mean

_LISTS = ("files", "buffers", "importance")
_SWITCHES = ("force", "dry_run")


class Recipe(NamedTuple):
    """What a recipe says."""

    options: dict[str, Any]
    """Options of the command, by name."""
    settings: dict[str, str]
    """Settings of the method, by name, as they would stand on a command line."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads YAML, and refuses a key that stands twice: PyYAML would silently take the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key!r} stands twice: leave one of them out.")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_recipe(path: str, options: Collection[str], settings: Collection[str]) -> Recipe:
    """Read a recipe.

    Args:
        path: of the YAML file. Paths in it are those of the current folder, as on the command line.
        options: the options that it may name.
        settings: the settings of all methods, for a hint to where they belong.

    Raises:
        ValueError: it is no YAML, names an unknown option or one twice, or a value is of the wrong type.
        OSError: it cannot be read.
    """
    with Path(path).open(encoding="utf-8") as file:
        try:
            found = yaml.load(file, _Loader)  # a SafeLoader, which makes plain values alone
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} holds {type(found).__name__}, but a recipe is lines such as `method: TIES`.")
    known = [*options, "settings", "weights"]
    for key in found:
        if key not in known:
            place = " It belongs under settings:." if key in settings else did_you_mean(str(key), known)
            raise ValueError(f"{path} has the unknown key {key!r}.{place} Keys: {', '.join(known)}.")
    plain = {key: _typed(path, key, value) for key, value in found.items() if key in options and value is not None}
    return Recipe(plain, _settings(path, found))


def _settings(path: str, found: Mapping[str, Any]) -> dict[str, str]:
    settings = found.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path}: settings: {settings!r} must be lines such as `density: 0.5`.")
    words = {str(name): str(value) for name, value in settings.items()}
    if found.get("weights") is not None:
        if "shares" in words:
            raise ValueError(f"{path} has both weights: and the setting shares, which are the same: leave one out.")
        words["shares"] = str(found["weights"])
    return words


def _typed(path: str, key: str, value: Any) -> Any:
    """The value of an option, as the command line would give it."""
    if key in _LISTS:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            return items
        expected = "a list of texts"
    elif key in _SWITCHES:
        if isinstance(value, bool):
            return value
        expected = "true or false"
    elif key == "seed":
        if type(value) is int:
            return value
        expected = "a whole number"
    else:
        if isinstance(value, str):
            return value
        expected = "a text"
    raise ValueError(f"{path}: {key}: {value!r} must be {expected}.")
