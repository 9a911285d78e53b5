"""`python -m tools.scaling RESULTS`: take the curve of `normkit study small_batch --ranks N` from its results.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .page import spans

DATA = Path(__file__).resolve().parents[2] / "docs" / "data"

if __name__ == "__main__":
    found = spans(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    (DATA / "sync_span.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
