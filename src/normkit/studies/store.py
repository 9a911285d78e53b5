"""Finished runs in results.json: written whole and atomically after each run, read again to resume.

Rules: a run is found again only under the same study, the same experiment and rule, the same parameters and the same
versions of normkit and torch; runs of other presets, and of other processes that write here meanwhile, stay in the
file; a file that is not ours is refused, never overwritten.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import _files
from .._reading import parse, read_text
from ..errors import UsageError
from .study import Params, Run

FORMAT = "normkit-results/1"


class Store:
    """The results file of one output folder."""

    def __init__(self, folder: Path, made_with: str, rules: Mapping[str, str] | None = None) -> None:
        """rules: study to the hash of its experiment and rule; a study that is not there has none."""
        self.path, self.page = folder / "results.json", folder / "report.html"
        self._versions, self._rules = made_with, rules or {}
        _make_writable(folder, self.path, self.page)
        self._document: dict[str, Any] = {"format": FORMAT}
        self._runs: dict[str, dict[str, Any]] = {}
        self._text: str | None = None  # what the file held when it was last looked at
        self._look()
        self._resumed = {entry["study"] for entry in self._runs.values() if self._is_current(entry)}

    def find(self, study: str, params: Params) -> Run | None:
        entry = self._runs.get(_key(study, params, self._made_with(study)))
        return Run(entry["params"], entry["result"], entry["seconds"]) if entry else None

    def resumed(self, study: str) -> bool:
        """Whether runs of `study` were in the file from the beginning."""
        return study in self._resumed

    def add(self, study: str, run: Run) -> None:
        """Keep one finished run, on disk before this returns."""
        entry = {
            "study": study,
            "params": run.params,
            "result": finite(run.result),
            "seconds": round(run.seconds, 3),
            "made_with": self._made_with(study),
        }
        self._runs[_key(study, run.params, entry["made_with"])] = entry
        self.write()

    def _made_with(self, study: str) -> str:
        return f"{self._versions}, rule {self._rules[study][:12]}" if study in self._rules else self._versions

    def _is_current(self, entry: Mapping[str, Any]) -> bool:
        return bool(entry["made_with"] == self._made_with(entry["study"]))

    def write(self, **sections: Any) -> None:
        """Write the file with `sections` replaced; a crash leaves the old file or the new one, never half of one."""
        _files.update(self.path, lambda: self._merged(finite(sections)))

    @property
    def document(self) -> dict[str, Any]:
        return {**self._document, "runs": list(self._runs.values())}

    def _merged(self, sections: dict[str, Any]) -> str:
        """The new text: what is known here, and what others have written since."""
        self._look()
        self._document |= sections
        self._text = json.dumps(self.document, allow_nan=False, separators=(",", ":"), sort_keys=True) + "\n"
        return self._text

    def _look(self) -> None:
        """Take over what the file holds."""
        try:
            text = read_text(self.path)
            if text == self._text:
                return
            document = parse(text)
            if not _is_ours(document):
                raise ValueError("it does not hold normkit's results")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot resume from {self.path}: {error}; move it away or choose another folder with --out"
            ) from None
        runs = {_key(entry["study"], entry["params"], entry["made_with"]): entry for entry in document.pop("runs")}
        self._document, self._runs, self._text = document, runs | self._runs, text


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _key(study: str, params: Params, made_with: str) -> str:
    return json.dumps([study, params, made_with], sort_keys=True)


def _make_writable(folder: Path, *files: Path) -> None:
    try:
        for file in files:
            _files.prepare(file)
    except OSError as error:
        raise UsageError(
            f"cannot write to the output folder {folder}: {_files.reason(error)}; choose another with --out"
        ) from None


def _is_ours(document: Any) -> bool:
    fields = {"study": str, "params": dict, "result": dict, "seconds": (int, float), "made_with": str}
    return (
        isinstance(document, dict)
        and document.get("format") == FORMAT
        and isinstance(document.get("runs"), list)
        and all(
            isinstance(run, dict) and all(isinstance(run.get(key), kind) for key, kind in fields.items())  # type: ignore[arg-type]  # mypy joins the tuple to object
            for run in document["runs"]
        )
    )
