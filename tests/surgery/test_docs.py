"""The code of the surgery page runs as it stands, top to bottom."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "surgery.md"


def test_the_code_of_the_page_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    names = {"__name__": "page"}
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 7
    assert "fused with" in capsys.readouterr().out
