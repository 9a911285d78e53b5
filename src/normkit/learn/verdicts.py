"""The words of the studies' verdicts, for the page, the tutorials and the notebooks: the one place where they stand.

verdicts.json is written by `make docs` from docs/data/studies/NAME.json, the results of a study; so a text never says
"supported" by hand. A study without results there has the word "not measured yet".
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

UNMEASURED = "not measured yet"
WORDS = {  # word -> its mark, and the word in both languages; the first two are no verdicts of a study
    "exact": ("✓", "exact", "精确成立"),
    "contested": ("≈", "contested", "有争议"),
    "supported": ("✓", "supported", "支持"),
    "not supported": ("✗", "not supported", "不支持"),
    "undecided": ("?", "undecided", "未定"),
    UNMEASURED: ("–", UNMEASURED, "尚未测量"),
}


@cache
def measured() -> dict[str, str]:
    """Study to word, for the studies with results."""
    made: dict[str, str] = json.loads(files(__package__).joinpath("verdicts.json").read_text(encoding="utf-8"))
    return made


def word(study: str) -> str:
    """The verdict of `study`, one of WORDS."""
    return measured().get(study, UNMEASURED)
