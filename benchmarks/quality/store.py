"""The raw results: one line of JSON a run, added whole; what a kill has cut in half is done again."""

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.jsonl"


class Store:
    """The runs of a file, by their keys."""

    def __init__(self, file: Path = RESULTS) -> None:
        self.file = file
        self.runs: dict[str, dict[str, Any]] = {}
        if not file.exists():
            return
        text = file.read_text()
        for line in text.splitlines():
            try:
                run = json.loads(line)
            except json.JSONDecodeError:
                continue  # half of a line
            self.runs[run["key"]] = run
        if text and not text.endswith("\n"):
            self._append("")  # ends the half line, so that the next is whole

    def add(self, run: dict[str, Any]) -> None:
        """Keep a run: one write at the end of the file."""
        self.runs[run["key"]] = run
        self._append(json.dumps(run, ensure_ascii=False))

    def _append(self, line: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
