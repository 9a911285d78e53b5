"""`normkit convert|fold|recalibrate|freeze`: files in, the table, files out, exit codes, one line for what is wrong."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import _safetensors
from normkit.cli import main
from normkit.model.table import Table

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))

def net():
    return Net()

def norm():
    return nn.BatchNorm2d(3)

def linear():
    return nn.Linear(2, 2)

def raises():
    raise ArithmeticError("no luck")

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, image):
        return self.net(image)

class Quiet(Net):
    def train(self, mode=True):
        super().train(mode)  # as many models', it returns nothing

class KeyErrors(Net):
    def forward(self, x):
        return {}["level"]

class Extra(Net):
    epoch = 0

    def get_extra_state(self):
        return {"epoch": self.epoch}

    def set_extra_state(self, state):
        self.epoch = state["epoch"]

class Branch(Net):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) < 1e9 else x

def batches():
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 9, 9, generator=g) * 2 + 1, 0) for _ in range(4)]

def named():
    return [{"image": batch} for batch, _ in batches()]

def generated():
    yield from batches()

def wrong():
    return [torch.zeros(2, 5, 9, 9)]

def empty():
    return []

def breaks():
    yield batches()[0]
    raise OSError("disk gone")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "theirs.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return tmp_path


def net() -> nn.Module:
    """With weights that show when they are lost."""
    import theirs  # type: ignore[import-not-found]  # in the folder of the test

    model = theirs.net()
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.2)
    return model.eval()


def weights(path: Path) -> nn.Module:
    model = net()
    if path.suffix == ".safetensors":
        path.write_bytes(_safetensors.written(model.state_dict()))
    else:
        torch.save(model.state_dict(), path)
    return model


def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def loaded(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_convert_writes_the_state_of_the_converted_model(here: Path, suffix: str, capsys: Any) -> None:
    model = weights(here / "in.safetensors")
    assert main(["convert", "theirs:net", "group", "--weights", "in.safetensors", "--out", f"out{suffix}"]) == 0
    made = nk.convert(model, "group")
    made.load_state_dict(loaded(here / f"out{suffix}"), strict=True)
    out = capsys.readouterr().out
    assert re.search(r"convert +bn1 +replaced +BatchNorm2d +GroupNorm", out)
    assert f"written: out{suffix}" in out
    for key, value in nk.convert(model, "group").state_dict().items():
        assert torch.equal(made.state_dict()[key], value)


def test_freeze_writes_what_loads_into_the_frozen_and_the_plain_model(here: Path) -> None:
    model = weights(here / "in.pt")
    assert main(["freeze", "theirs:net", "--weights", "in.pt", "--out", "out.pt"]) == 0
    for twin in (net(), nk.freeze(net())):
        twin.load_state_dict(loaded(here / "out.pt"), strict=True)
        torch.testing.assert_close(twin.eval()(images()), model(images()))


def test_fold_writes_a_program_that_computes_the_same(here: Path, capsys: Any) -> None:
    model = weights(here / "in.pt")
    order = ["fold", "theirs:net", "--weights", "in.pt", "--input", "2x3x9x9", "--out", "out.pt2"]
    assert main(order) == 0
    assert "written: out.pt2 (for inputs of 2x3x9x9)" in capsys.readouterr().out
    program = torch.export.load(here / "out.pt2")
    torch.testing.assert_close(program.module()(images()), model(images()), rtol=1e-4, atol=1e-4)
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)


@pytest.mark.filterwarnings("ignore")  # the exporter's, about itself
def test_fold_writes_onnx_that_runs(here: Path) -> None:
    import onnxruntime

    model = weights(here / "in.pt")
    order = ["fold", "theirs:net", "--weights", "in.pt", "--data", "theirs:batches", "--out", "out.onnx"]
    assert main(order) == 0
    session = onnxruntime.InferenceSession(here / "out.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(2))
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("target", "data"), [("net", "batches"), ("net", "generated"), ("Named", "named")])
def test_recalibrate_writes_exact_statistics(here: Path, target: str, data: str, capsys: Any) -> None:
    import theirs

    order = ["recalibrate", f"theirs:{target}", "--data", f"theirs:{data}", "--out", "out.safetensors"]
    torch.manual_seed(5)
    assert main(order) == 0
    torch.manual_seed(5)
    model = getattr(theirs, target)().eval()
    nk.recalibrate(model, getattr(theirs, data)())
    found = loaded(here / "out.safetensors")
    assert found.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(found[key], value), key
    assert "recalibrated" in capsys.readouterr().out


def test_a_model_whose_train_returns_nothing(here: Path) -> None:
    assert main(["fold", "theirs:Quiet", "--input", "2x3x9x9", "--out", "out.pt"]) == 0
    assert not any("running" in key for key in loaded(here / "out.pt"))


def test_what_a_module_adds_to_its_state_comes_along(here: Path) -> None:
    import theirs

    model = theirs.Extra()
    model.epoch = 7
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, here / "in.pt")
    assert main(["convert", "theirs:Extra", "group", "--weights", "in.pt", "--out", "out.pt"]) == 0
    assert loaded(here / "out.pt")["_extra_state"] == {"epoch": 7}


def test_only_skip_and_steps(here: Path, capsys: Any) -> None:
    assert main(["convert", "theirs:net", "group", "--skip", "bn2", "--out", "a.pt"]) == 0
    assert "bn2.running_mean" in loaded(here / "a.pt")
    assert main(["freeze", "theirs:net", "--only", "bn1", "--only", "bn2", "--dry-run"]) == 0
    assert "2 replaced, 0 kept" in capsys.readouterr().out
    assert main(["recalibrate", "theirs:net", "--data", "theirs:batches", "--steps", "1", "--dry-run"]) == 0
    assert re.search(r"bn1 +BatchNorm2d +392 ", capsys.readouterr().out)  # 8 images of 7 x 7


def test_a_dry_run_writes_nothing_not_even_a_folder(here: Path, capsys: Any) -> None:
    before = sorted(os.listdir(here))
    assert main(["convert", "theirs:net", "group", "--out", "new/out.pt", "--dry-run"]) == 0
    assert "not written, as it is a dry run: new/out.pt" in capsys.readouterr().out
    assert sorted(set(os.listdir(here)) - {"__pycache__"}) == before


def test_a_model_that_is_one_norm_is_converted(here: Path) -> None:
    assert main(["convert", "theirs:norm", "layer", "--out", "out.pt"]) == 0
    assert set(loaded(here / "out.pt")) == {"weight", "bias"}


def test_nothing_to_change_is_exit_code_1_and_no_file(here: Path, capsys: Any) -> None:
    assert main(["convert", "theirs:net", "torch", "--out", "out.pt"]) == 1
    assert "nothing was changed, and nothing is written" in capsys.readouterr().out
    assert not (here / "out.pt").exists()


# --- weights


def test_the_state_dict_in_a_checkpoint_is_found_with_a_wrappers_names(here: Path) -> None:
    model = net()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "model": state, "optimizer": {"state": {}}}, here / "in.ckpt")
    assert main(["freeze", "theirs:net", "--weights", "in.ckpt", "--out", "out.pt"]) == 0
    assert torch.equal(loaded(here / "out.pt")["conv1.weight"], model.conv1.weight)


def test_two_that_fit_have_to_be_told_apart(here: Path, capsys: Any) -> None:
    model, ema = net(), net()
    torch.save({"model": model.state_dict(), "ema": {k: v + 1 for k, v in ema.state_dict().items()}}, here / "in.pt")
    assert main(["freeze", "theirs:net", "--weights", "in.pt", "--out", "out.pt"]) == 2
    assert "several parts that fit: say which by --part: 'model', 'ema'" in capsys.readouterr().err
    assert main(["freeze", "theirs:net", "--weights", "in.pt", "--part", "ema", "--out", "out.pt"]) == 0
    assert torch.equal(loaded(here / "out.pt")["conv1.weight"], model.conv1.weight + 1)


# --- errors: one line, exit code 2, no file


def _net_state(change: str) -> dict[str, Tensor]:
    state = net().state_dict()
    if change == "missing":
        del state["bn1.weight"]
    elif change == "beyond":
        state["head.weight"] = torch.zeros(2)
    elif change == "shape":
        state["conv1.weight"] = torch.zeros(8, 4, 3, 3)
    elif change != "in":
        state["conv1.weight"] = CHANGED[change](state["conv1.weight"])
    return state


CHANGED = {
    "sparse": Tensor.to_sparse,
    "meta": lambda weight: weight.to("meta"),
    "integers": Tensor.char,
    "complex": lambda weight: weight.to(torch.complex64),
}


WRONG: dict[str, tuple[list[str], str]] = {
    "no_out": (["freeze", "theirs:net"], "say where to write: --out FILE"),
    "suffix": (["freeze", "theirs:net", "--out", "out.h5"], "--out takes a file that ends in .pt, .pth"),
    "a_file": (["freeze", "in.pt", "--dry-run"], "in.pt is a file, and its layers are not in it"),
    "no_module": (["freeze", "nowhere:net", "--dry-run"], "cannot import nowhere: ModuleNotFoundError"),
    "no_name": (["freeze", "theirs:nothing", "--dry-run"], "theirs has no nothing"),
    "no_colon": (["freeze", "theirs", "--dry-run"], "it names no object: expected package.module:factory"),
    "raises": (["freeze", "theirs:raises", "--dry-run"], "theirs:raises raised ArithmeticError: no luck"),
    "no_norm": (["freeze", "theirs:linear", "--dry-run"], "expected a model with a normalization layer"),
    "family": (["convert", "theirs:net", "batchnorm", "--dry-run"], "target must be one of batch, sync"),
    "domains": (["convert", "theirs:net", "domain", "--dry-run"], "target 'domain' needs domains, how many there are"),
    "over_the_input": (["freeze", "theirs:net", "--weights", "in.pt", "--out", "in.pt"], "never the input in.pt"),
    "no_weights": (["freeze", "theirs:net", "--weights", "no.pt", "--dry-run"], "cannot read no.pt: No such file"),
    "part": (["freeze", "theirs:net", "--weights", "in.pt", "--part", "x", "--dry-run"], "has no part 'x'; it has ''"),
    "part_alone": (["freeze", "theirs:net", "--part", "x", "--dry-run"], "no file is given"),
    "missing": (["freeze", "theirs:net", "--weights", "missing.pt", "--dry-run"], "bn1.weight is missing"),
    "beyond": (["freeze", "theirs:net", "--weights", "beyond.pt", "--dry-run"], "head.weight is not in the model"),
    "shape": (["freeze", "theirs:net", "--weights", "shape.pt", "--dry-run"], "conv1.weight has shape (8, 4, 3, 3)"),
    "sparse": (["freeze", "theirs:net", "--weights", "sparse.pt", "--dry-run"], "conv1.weight is torch.sparse_coo"),
    "meta": (["freeze", "theirs:net", "--weights", "meta.pt", "--dry-run"], "conv1.weight has no values (meta"),
    "integers": (["freeze", "theirs:net", "--weights", "integers.pt", "--dry-run"], "has values of torch.int8, the"),
    "complex": (["freeze", "theirs:net", "--weights", "complex.pt", "--dry-run"], "has values of torch.complex64"),
    "own_error": (["fold", "theirs:KeyErrors", "--input", "1x3x9x9", "--dry-run"], "raised KeyError: 'level'"),
    "own_error_in_data": (["recalibrate", "theirs:KeyErrors", "--data", "theirs:batches", "--dry-run"], "KeyError"),
    "extra": (["convert", "theirs:Extra", "group", "--out", "out.safetensors"], "_extra_state is no tensor, which a"),
    "fold_blind": (["fold", "theirs:net", "--dry-run"], "fold needs an example to run: --input 1x3x224x224"),
    "onnx_blind": (["freeze", "theirs:net", "--out", "out.onnx"], "a file like out.onnx needs an example to run"),
    "no_data": (["recalibrate", "theirs:net", "--dry-run"], "recalibrate needs the data"),
    "empty": (["recalibrate", "theirs:net", "--data", "theirs:empty", "--dry-run"], "at least one batch"),
    "empty_fold": (["fold", "theirs:net", "--data", "theirs:empty", "--dry-run"], "theirs:empty gave no batch"),
    "breaks": (["recalibrate", "theirs:net", "--data", "theirs:breaks", "--dry-run"], "raised OSError: disk gone"),
    "wrong": (["recalibrate", "theirs:net", "--data", "theirs:wrong", "--dry-run"], "to have 3 channels"),
    "sizes": (["fold", "theirs:net", "--input", "1,3,9,9", "--dry-run"], "sizes with x between, as 1x3x224x224"),
    "huge": (["fold", "theirs:net", "--input", "99999x99999x99", "--dry-run"], "--input takes at most 268,435,456"),
    "steps": (["recalibrate", "theirs:net", "--data", "theirs:batches", "--steps", "0", "--dry-run"], "at least 1"),
    "shape_of_input": (["freeze", "theirs:net", "--input", "1x5x9x9", "--out", "out.pt2"], "to have 3 channels"),
    "export": (["freeze", "theirs:Branch", "--input", "1x3x9x9", "--out", "out.pt2"], "torch.export cannot export"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of exporters that fail
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_exit_code_2(here: Path, name: str, capsys: Any) -> None:
    order, text = WRONG[name]
    weights(here / "in.pt")
    for change in ("missing", "beyond", "shape", *CHANGED):
        torch.save(_net_state(change), here / f"{change}.pt")
    content = (here / "in.pt").read_bytes()
    assert main(order) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("normkit: ")
    assert text in captured.err
    assert (here / "in.pt").read_bytes() == content
    assert not list(here.glob("out.*"))
    assert not list(here.glob(".*.lock"))


def test_code_in_a_file_is_refused(here: Path, capsys: Any) -> None:
    torch.save(net(), here / "whole.pt")
    assert main(["freeze", "theirs:net", "--weights", "whole.pt", "--dry-run"]) == 2
    assert "nothing that is pickled is run here" in capsys.readouterr().err


def test_a_read_only_file_is_kept(here: Path, capsys: Any) -> None:
    out = here / "out.pt"
    out.write_bytes(b"mine")
    out.chmod(stat.S_IREAD)
    if os.access(out, os.W_OK):
        out.unlink()
        out.symlink_to(here / "theirs.py")  # whoever may write anything: a link is refused as well
    assert main(["freeze", "theirs:net", "--out", "out.pt"]) == 2
    assert "cannot write out.pt" in capsys.readouterr().err
    assert (here / "theirs.py").read_text(encoding="utf-8") == MODULE


# --- how it looks


def _run(here: Path, columns: int, terminal: bool, **environment: str) -> str:
    """The command in a process of its own, its output a pipe or a terminal of so many columns."""
    script = "import sys, normkit.cli; sys.exit(normkit.cli.main(['convert', 'theirs:net', 'group', '--dry-run']))"
    command = [sys.executable, "-c", script]
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    options = {"cwd": here, "env": {**clean, "COLUMNS": str(columns), "TERM": "xterm", **environment}}
    if not terminal:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, timeout=120, **options
        ).stdout  # type: ignore[call-overload]  # its overloads know no such dict
    import pty  # POSIX alone has it

    parent, child = pty.openpty()
    with subprocess.Popen(command, stdout=child, stderr=subprocess.DEVNULL, stdin=child, **options) as process:  # type: ignore[call-overload]  # likewise
        os.close(child)
        chunks = []
        while True:
            try:
                chunk = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
        process.wait(timeout=120)
    os.close(parent)
    return b"".join(chunks).decode()


ESCAPE = "\x1b["


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_pipes_terminals_no_color_and_narrow_ones(here: Path) -> None:
    piped = _run(here, 40, terminal=False)
    assert ESCAPE not in piped
    assert any("bn1" in line and "BatchNorm2d" in line and "GroupNorm" in line for line in piped.splitlines())
    assert ESCAPE in _run(here, 120, terminal=True)
    plain = _run(here, 120, terminal=True, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain)
    narrow = _run(here, 40, terminal=True)
    assert max(map(len, narrow.splitlines())) <= 40
    assert re.search(r"layer +bn1\r?\n", narrow)


def test_a_table_that_does_not_fit_is_a_list() -> None:
    rows = (("bn1", "a long reason that goes on and on"), ("bn2", ""))
    table = Table(("layer", "what"), rows, (True, False), ("2 rows",))
    assert table.text(100) == table.text()
    shown = table.text(24)
    assert max(map(len, shown.splitlines())) <= 24
    assert shown.startswith("layer  bn1\nwhat   a long reason")
    assert shown.endswith("\n\nlayer  bn2\n\n2 rows")


# --- safetensors


def test_safetensors_written_here_are_read_by_the_package_and_back(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    state = {f"t{i}": (torch.arange(6).reshape(2, 3) % 2).to(dtype) for i, dtype in enumerate(dtypes)}
    state |= {"transposed": torch.arange(6.0).reshape(2, 3).t(), "scalar": torch.tensor(3), "empty": torch.empty(0, 4)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(_safetensors.written(state))
    theirs = load_file(path)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "b.safetensors")
    with (tmp_path / "b.safetensors").open("rb") as file:
        back = _safetensors.read(file)
    for found in (theirs, back):
        assert found.keys() == state.keys()
        for key, value in state.items():
            assert found[key].dtype == value.dtype
            assert torch.equal(found[key], value)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    assert size % 8 == 0
    assert json.loads(path.read_bytes()[8 : 8 + size])["scalar"]["shape"] == []


def test_a_dtype_that_safetensors_lack_is_said() -> None:
    with pytest.raises(ValueError, match="safetensors has no torch\\.complex64, which z is"):
        _safetensors.written({"z": torch.zeros(2, dtype=torch.complex64)})
