"""The page of the documentation, out of the record."""

from typing import Any

from compat.environments import ENVIRONMENTS, NOT_RUN, ROOT

PAGE = ROOT / "docs" / "compatibility.md"
TITLES = {
    "lowest": "every bound of `pyproject.toml` at its lowest",
    "newest": "what a plain install gives",
    "pytorch_lightning": "`pytorch_lightning` alone: no `lightning` is installed",
}
ABOVE = """# Compatibility

Written by `make test-compat` out of `compat/record.json`, not by hand. The quick tests, and under each
condition of the [conformance suite](conformance.md) all callbacks together, ran once in each environment, on Linux and
CPU. It is no part of continuous integration, since it downloads.
"""
BELOW = """
## What this does not show

- Only the Python that is named above was run. Python 3.10, which `pyproject.toml` allows, is not among them.
- In `pytorch_lightning` all packages but `lightning` are links to those of `newest`, and the tests are a copy in which
  the imports of Lightning are renamed. A project that has `pytorch_lightning` alone installs this package with
  `pip install --no-deps`, since the package asks for `lightning`.
- Where both names are installed, `lightning-objectives fit` is the command line of `lightning`, which takes modules of
  `lightning` only. A project on `pytorch_lightning` uses its own `LightningCLI`, with the same YAML.
- The tests that start processes, and the slow ones, ran with none of these but in continuous integration.
"""


def write(records: dict[str, dict[str, Any]]) -> None:
    """Write the page of what is recorded."""
    PAGE.write_text(text(records))


def text(records: dict[str, dict[str, Any]]) -> str:
    """The page."""
    names = [name for name in ENVIRONMENTS if name in records]
    packages = dict.fromkeys(package for name in names for package in records[name]["versions"])
    lines = [ABOVE, "| | " + " | ".join(f"`{name}`" for name in names) + " |", "| --- |" + " --- |" * len(names)]
    lines.append(_row("what it is", [TITLES[name] for name in names]))
    lines.append(_row("run on", [records[name]["date"] for name in names]))
    for package in packages:
        lines.append(_row(package, [records[name]["versions"].get(package, "not installed") for name in names]))
    for word in ("passed", "failed"):
        lines.append(_row(f"tests that {word}", [str(records[name]["counts"].get(word, 0)) for name in names]))
    lines.append(_row("seconds", [str(records[name]["seconds"]) for name in names]))
    for name in names:
        for why in dict.fromkeys(NOT_RUN.get(name, {}).values()):
            told = ", ".join(f"`{word}`" for word, reason in NOT_RUN[name].items() if reason == why)
            lines += ["", f"Not run in `{name}`: {told}: {why}."]
        if records[name]["failed"]:
            lines += ["", f"Failed in `{name}`:", "", *(f"- `{test}`" for test in records[name]["failed"])]
    return "\n".join(lines) + "\n" + BELOW


def _row(title: str, cells: list[str]) -> str:
    return f"| {title} | " + " | ".join(cells) + " |"
