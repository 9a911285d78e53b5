"""Notebooks: every report is a table or a page there, and a notebook runs from its first cell to its last."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import normkit as nk

pytestmark = pytest.mark.filterwarnings("ignore")  # Jupyter's own deprecations
LIMIT = 120  # seconds for a cell: the first imports torch on a busy machine

SETUP = """
import torch
from torch import nn
import normkit as nk
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
batches = [5 + 2 * torch.randn(8, 3, 6, 6) for _ in range(3)]
model(batches[0])
ones = torch.ones(4)
flax = {"params": {"bn": {"scale": ones}}, "batch_stats": {"bn": {"mean": ones, "var": ones}}}
fast = nk.accelerate(model, batches[0])
"""
CELLS = {  # what is shown: a word that its HTML has to have
    "nk.changes(fast)": "replaced",
    "nk.recalibrate(model.eval(), batches)": "recalibrated",
    "nk.diagnose(fast.train(), batches)": "norm",
    "nk.diagnose(fast.eval(), batches).healing(fast)[1]": "<table>",
    "nk.diagnose(fast.eval(), batches).gap": "<table>",
    "nk.compare(model, fast)": "statistics",
    "nk.load_norm_state(nn.Sequential(nn.BatchNorm2d(4)), flax, 'flax', 'order')": "bn",
    "nk.parameter_groups(model, 1e-4)": "",
}


def executed(cells: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What each cell shows at its end, by MIME type."""
    import nbformat
    from nbclient import NotebookClient

    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=LIMIT, startup_timeout=LIMIT, resources={"metadata": {"path": folder}}).execute()
    shown = [[out.data for out in cell.outputs if out.output_type == "execute_result"] for cell in notebook.cells]
    return [dict(out[0]) if out else {} for out in shown]


def kinds() -> set[str]:
    """The package's classes that show themselves by a table."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in Path(nk.__file__).parent.rglob("*.py"))
    classes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    return {node.name for node in classes if "Tabular" in map(ast.unparse, node.bases)} - {"Table"}


def test_a_notebook_shows_every_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [part for cell in CELLS for part in (cell, "type(_).__name__")]
    _, *shown = executed([SETUP, *cells], tmp_path, monkeypatch)
    for (cell, word), data in zip(CELLS.items(), shown[::2], strict=True):
        assert data, f"{cell} shows nothing"
        if word:
            assert word in data["text/html"], cell
            assert "<script" not in data["text/html"]
            assert "object at 0x" not in data["text/plain"]
    named = {ast.literal_eval(data["text/plain"]) for data in shown[1::2]}
    assert named >= {"Diagnosis", *kinds()}
