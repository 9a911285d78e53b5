"""docs/security.md lists every place that runs code, loads a library, starts a process or could reach a network."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SOURCES = {f"normkit/{p.relative_to(ROOT / 'src/normkit').as_posix()}": p for p in ROOT.glob("src/normkit/**/*.py")} | {
    f"normkit/defects/{p.name}": p for p in ROOT.glob("examples/defects/*.py")
}

CALLS = {
    *("exec", "eval", "compile", "__import__", "import_module", "exec_module", "load_module", "run_path", "run_module"),
    *("CDLL", "PyDLL", "WinDLL", "LoadLibrary", "system", "popen", "fork", "spawnv", "execv", "posix_spawn"),
}
MODULES = {
    *("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "codeop", "runpy", "imp"),
    *("subprocess", "multiprocessing", "concurrent", "pty", "ctypes", "cffi", "webbrowser"),
    *("socket", "socketserver", "ssl", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "telnetlib", "asyncio"),
    *("requests", "httpx", "aiohttp", "urllib3", "huggingface_hub"),
}
# harmless namesakes, written out: compiling a pattern, a model, a name of the system
INNOCENT = {"re.compile", "torch.compile", "platform.system"}
# no reason could stand beside these, but for a checkpoint that is read without running anything
NEVER = {"torch.load", "torch.save", "torch.hub", "numpy.load", "np.load", "allow_pickle", "weights_only"}
CHECKPOINTS = {
    ("normkit/_checkpoint.py", "torch.load"),
    ("normkit/_checkpoint.py", "weights_only"),
    ("normkit/commands/output.py", "torch.save"),
    ("normkit/doctor/command.py", "torch.save"),
}


def uses(source: str) -> set[str]:
    """The names out of CALLS, MODULES and NEVER that a source uses; by any road that a reader would see."""
    found = set()
    tree = ast.parse(source)
    bare = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call) and not node.args + node.keywords}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {(node.module or "").partition(".")[0]} & MODULES
            found |= {alias.name for alias in node.names} & CALLS if (node.module or "") != "importlib" else set()
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            mode = node.attr == "eval" and node in bare  # model.eval() takes nothing, what evaluates takes a text
            found |= {node.attr} & CALLS if name not in INNOCENT and not mode else set()
            found |= {name} & NEVER
        elif isinstance(node, ast.Name):
            found |= {node.id} & CALLS
        elif isinstance(node, ast.keyword):
            found |= {node.arg or ""} & NEVER
    return found


def documented() -> set[tuple[str, str]]:
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| [^|]{20,} \|$", PAGE, re.MULTILINE)
    return {(file, name) for file, names in rows for name in re.findall(r"`([^`]+)`", names)}


def test_the_page_lists_every_use_and_no_more() -> None:
    found = {(file, name) for file, path in SOURCES.items() for name in uses(path.read_text(encoding="utf-8"))}
    assert found == documented()
    assert {(file, name) for file, name in found if name in NEVER} == CHECKPOINTS


def test_checkpoints_are_read_without_running_anything() -> None:
    tree = ast.parse(SOURCES["normkit/_checkpoint.py"].read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
    assert len(calls) == ast.unparse(tree).count("torch.load(") == 1
    assert "weights_only=True" in {ast.unparse(keyword) for keyword in calls[0].keywords}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("exec('1')", "exec"),
        ("import builtins\nbuiltins.eval('1')", "eval"),
        ("f = compile", "compile"),
        ("model.compile()", "compile"),
        ("frame.eval('x')", "eval"),
        ("from os import system", "system"),
        ("import os.path, socket", "socket"),
        ("from urllib.request import urlopen", "urllib"),
        ("def f():\n    import pickle", "pickle"),
        ("import torch\ntorch.load('f')", "torch.load"),
        ("import numpy as np\nnp.load('f')", "np.load"),
        ("read(path, allow_pickle=True)", "allow_pickle"),
        ("from importlib import import_module\nimport_module('x')", "import_module"),
        ("getattr(spec.loader, 'x')\nspec.loader.exec_module(m)", "exec_module"),
    ],
)
def test_a_new_use_would_be_seen(source: str, name: str) -> None:
    assert name in uses(source)


@pytest.mark.parametrize("source", ["import re\nre.compile('x')", "model.eval()", "import torch\ntorch.compile(f)"])
def test_namesakes_are_no_use(source: str) -> None:
    assert uses(source) == set()


def test_no_native_source_opens_files_libraries_or_sockets() -> None:
    sources = [p for kind in ("h", "cpp") for p in (ROOT / "native").rglob(f"*.{kind}") if "test" not in p.parts]
    assert len(sources) > 10
    calls = re.compile(
        r"\b(?:system|popen|dlopen|dlsym|fopen|fork|exec[lv]p?e?|socket|connect)\s*\(|\bstd::[io]?fstream\b"
    )
    found = {(path.name, match) for path in sources for match in calls.findall(path.read_text(encoding="utf-8"))}
    assert found == set()


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    from normkit import _files, _reading
    from normkit.studies import archive

    assert f"up to {_files.LARGEST >> 20} MiB and {_reading.DEEPEST} levels" in PAGE
    assert f"2^{archive.MOST_NUMBERS.bit_length() - 1}\n  numbers" in PAGE
    assert f"after {_files.PATIENCE:.0f} seconds" in PAGE.replace("\n  up", " up")
