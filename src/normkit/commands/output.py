"""A model as a file, by the file's suffix: a state dict, an exported program of torch, or ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checkpoint, _files, _safetensors
from .._targets import line
from .._torch import tree_leaves
from ..errors import UsageError
from ..model.dataflow import arguments

STATE_DICTS = (".pt", ".pth", ".bin", ".safetensors")
EXPORTED = (".pt2", ".onnx")
SUFFIXES = (*STATE_DICTS, *EXPORTED)


def verify(path: Path, source: Path | None) -> None:
    """UsageError for an unknown suffix, and for the input itself."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--out takes a file that ends in {', '.join(SUFFIXES)}, got {path}")
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise UsageError(f"--out writes a new file, never the input {source}: name another place")


def prepare(path: Path) -> None:
    """UsageError now where `write` would fail later."""
    try:
        _files.prepare(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {_files.reason(error)}") from None


def write(path: Path, model: nn.Module, example: Any) -> str:
    """Write the model, whole or not at all; what there is to say of the file."""
    content, said = _content(path.suffix, model, example)
    _files.update(path, lambda: content, most=_checkpoint.LARGEST)
    return said


def _content(suffix: str, model: nn.Module, example: Any) -> tuple[bytes, str]:
    if suffix in EXPORTED:
        sizes = ", ".join("x".join(map(str, t.shape)) for t in tree_leaves(example) if isinstance(t, Tensor))
        return (_program if suffix == ".pt2" else _onnx)(model, example), f" (for inputs of {sizes})"
    state = model.state_dict()
    if suffix == ".safetensors":
        other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
        if other is not None:
            raise UsageError(f"{other} is no tensor, which a .safetensors file cannot hold: write a .pt")
        try:
            return _safetensors.written(state), ""
        except ValueError as error:
            raise UsageError(str(error)) from None
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue(), ""


def _program(model: nn.Module, example: Any) -> bytes:
    args, kwargs = arguments(example)
    buffer = io.BytesIO()
    try:
        with _quiet():
            torch.export.save(torch.export.export(model, args, kwargs), buffer)
    except Exception as error:
        raise UsageError(f"torch.export cannot export the model: {line(error)}") from error
    return buffer.getvalue()


def _onnx(model: nn.Module, example: Any) -> bytes:
    """By the exporter that captures the program; by the one that traces a call where that one cannot: torch 2.4's goes
    with old versions of onnxscript alone."""
    args, kwargs = arguments(example)
    try:
        with _quiet():
            program = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
            assert program is not None
            return bytes(program.model_proto.SerializeToString())
    except ImportError as error:
        raise UsageError(f"a .onnx file needs more packages (pip install onnx onnxscript): {line(error)}") from None
    except Exception as captured:
        try:
            return _traced_onnx(model, (*args, kwargs) if kwargs else args)
        except Exception:
            raise UsageError(f"torch.onnx cannot export the model: {line(captured)}") from captured


def _traced_onnx(model: nn.Module, args: tuple[Any, ...]) -> bytes:
    buffer = io.BytesIO()
    with _quiet():
        torch.onnx.export(model, args, buffer, dynamo=False, verbose=False)  # type: ignore[arg-type]  # it takes streams
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, log and warn about themselves, a page of it where they fail: the error has a line of its own."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
