"""Finished runs in results.json: written whole and atomically after each run, read again to resume.

Rules: a run is found again only under the same study, the same parameters and the same versions of normkit and torch;
runs of other presets stay in the file; a file that is not ours is refused, never overwritten.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .study import Params, Run

FORMAT = "normkit-results/1"


class Store:
    """The results file of one output folder."""

    def __init__(self, folder: Path, made_with: str) -> None:
        self.path = folder / "results.json"
        self._made_with = made_with
        _make_writable(folder)
        self._document = _read(self.path)
        self._runs = {
            _key(entry["study"], entry["params"], entry["made_with"]): entry for entry in self._document["runs"]
        }

    def find(self, study: str, params: Params) -> Run | None:
        entry = self._runs.get(_key(study, params, self._made_with))
        return entry and Run(entry["params"], entry["result"], entry["seconds"])

    def add(self, study: str, run: Run) -> None:
        """Keep one finished run, on disk before this returns."""
        entry = {
            "study": study,
            "params": run.params,
            "result": finite(run.result),
            "seconds": round(run.seconds, 3),
            "made_with": self._made_with,
        }
        self._runs[_key(study, run.params, self._made_with)] = entry
        self.write()

    def write(self, **sections: Any) -> None:
        """Write the file with `sections` replaced; a crash leaves the old file or the new one, never half of one."""
        self._document = {**self._document, **finite(sections), "runs": list(self._runs.values())}
        text = json.dumps(self._document, allow_nan=False, separators=(",", ":"), sort_keys=True)
        partial = self.path.with_suffix(".json.partial")
        try:
            partial.write_text(text + "\n", encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path}: {error.strerror or error}; what it held before is kept"
            ) from None

    @property
    def document(self) -> dict[str, Any]:
        return self._document


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


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".normkit-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to the output folder {folder}: {error.strerror}; choose another with --out"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"format": FORMAT, "runs": []}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not _is_ours(document):
            raise ValueError("it does not hold normkit's results")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot resume from {path}: {error}; move it away or choose another folder with --out"
        ) from None
    return document


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
