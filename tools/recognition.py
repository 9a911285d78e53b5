"""How normkit recognises every norm class of four libraries: `python -m tools.recognition [--check]`.

Imports every module of torchvision, timm, monai and transformers that names a norm, makes one layer of each norm class,
asks `family` and, for classes of no family, `row_norm_of`, and lets `accelerate` say what surgery does with the others.
The result is docs/data/recognition.json, which `python -m tools.docs` renders as docs/recognition.md. Takes minutes;
--check changes nothing and exits 1 on a drift.

A norm class is a module class of the package that is known as a norm, or looks like one, or has "Norm" or "BN" in its
name, and holds no other layer with weights than norms and activations (what does is a block, and is looked into).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.model.families import NORM_TYPES, family, is_like_norm
from normkit.model.row_norm import RowNorm
from normkit.model.row_probe import row_norm_of

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "data" / "recognition.json"
PACKAGES = ("torchvision", "timm", "monai", "transformers")
CHANNELS = 32  # what GroupNorm(32, C) takes
SHAPES = (
    (2, CHANNELS, 6, 6),
    (2, 6, CHANNELS),
    (2, 5, 6, CHANNELS),
    (4, CHANNELS),
    (2, CHANNELS, 6),
    (2, CHANNELS, 4, 4, 4),
)
_PART = re.compile("Model|Encoder|Decoder|Block|Head|Mlp|For[A-Z]|PreTrained|Layer|Net|Conv|Embedding|Attention")
_NAMED = re.compile(r"Norm(?!al)|BN")
# what the arguments that a norm asks for mean, by their name
_GIVEN = {
    "config": None, "eps": 1e-5, "epsilon": 1e-5, "momentum": 0.1, "num_groups": 2, "group_size": 4, "n_groups": 2,
    "device": None, "dtype": None, "apply_act": True, "num_splits": 2, "spatial_dims": 2, "num_domains": 2,
}  # fmt: skip


def collect() -> dict[str, Any]:
    """{"versions": {package: version}, "rows": [...]}, a row for each class by package and qualified name."""
    from tests.surgery.foreign import library

    library("timm")  # torchvision with it, without the operators that do not load beside this torch
    found, unimported = {}, {}
    for package in PACKAGES:
        for name, problem in _modules(package):
            if problem:
                unimported[name] = problem
                continue
            for kind in _classes(sys.modules[name]):
                found[f"{kind.__module__}.{kind.__qualname__}"] = kind
    rows = [row for name, kind in sorted(found.items()) if (row := _row(name, kind)) is not None]  # minutes
    return {"versions": {package: version(package) for package in PACKAGES}, "unimported": unimported, "rows": rows}


def _modules(package: str) -> Iterator[tuple[str, str]]:
    """Every module that may define a norm, and why it could not be imported ("" where it was)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install --no-deps --requirement requirements-zoo.txt")
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        if path.name.startswith("modular_") or not re.search(r"Norm|BN|running_mean", path.read_text("utf-8")):
            continue  # modular_*: what transformers writes its modeling files from
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        try:
            importlib.import_module(name)
        except Exception as error:
            yield name, f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
        else:
            yield name, ""


def _classes(module: Any) -> Iterator[type[nn.Module]]:
    """Those that the module defines and that may be norms, by type, by name, or since they hold statistics."""
    source = Path(module.__file__).read_text("utf-8")
    parts = re.split(r"^class ", source, flags=re.MULTILINE)
    holding = {part.split("(")[0] for part in parts if "running_mean" in part}
    for name, kind in inspect.getmembers(module, inspect.isclass):
        may_be = issubclass(kind, NORM_TYPES) or _NAMED.search(name) or name in holding
        if may_be and issubclass(kind, nn.Module) and kind.__module__ == module.__name__:
            yield kind


def _row(name: str, kind: type[nn.Module]) -> dict[str, str] | None:
    """None for what is no norm."""
    part = bool(_PART.search(kind.__name__.replace("LayerNorm", ""))) and not issubclass(kind, NORM_TYPES)
    if part and "config" in inspect.signature(kind.__init__).parameters:
        return None  # a model or a large part of one
    layer, problem = _made(kind)
    row = {
        "package": name.split(".")[0],
        "class": name,
        "family": "",
        "by": "",
        "action": "not made",
        "reason": problem,
    }
    if layer is None:
        return None if part else row
    known = family(layer)
    if known is None and not is_like_norm(layer) and (_holds_others(layer) or not _NAMED.search(kind.__name__)):
        return None
    by = _how(layer, known)
    if known is None:
        norm = row_norm_of(layer)
        by = "its numbers" if isinstance(norm, RowNorm) else by
        action, reason = ("replaced" if isinstance(norm, RowNorm) else "kept"), _shown(str(norm))
    else:
        action, reason = _outcome(layer)
    return {**row, "family": known or "", "by": by, "action": action, "reason": reason}


def _holds_others(layer: nn.Module) -> bool:
    """Whether a module inside has weights and is no norm, or there is nothing in it at all."""
    inside = [module for module in layer.modules() if module is not layer]
    weighted = [module for module in inside if next(module.parameters(recurse=False), None) is not None]
    return any(family(m) is None and not is_like_norm(m) and not _NAMED.search(type(m).__name__) for m in weighted) or (
        any(family(module) is not None for module in inside)
    )


def _how(layer: nn.Module, known: str | None) -> str:
    if known == "frozen":
        return "its tensors are buffers that nothing moves"
    if known is not None:
        base = next(base for base in type(layer).__mro__ if base.__module__.startswith("torch.nn."))
        return f"torch.nn.{base.__name__}"
    return "looks like a norm" if is_like_norm(layer) else "its name alone"


def _outcome(layer: nn.Module) -> tuple[str, str]:
    """("replaced", the class of ours) or ("kept", why) as accelerate says it."""
    for shape in SHAPES:
        model = nn.Sequential(layer)
        try:
            result = nk.accelerate(model, _input(shape))
        except Exception:
            continue  # not of this rank
        (entry,) = [entry for entry in nk.changes(result) if entry.name == "0"] or [None]
        if entry is None:
            return "kept", "not listed"
        stays = entry.action == "kept" or entry.reason.startswith("its forward calls")
        return entry.action, _shown(entry.reason) if stays else entry.after
    return "kept", "takes none of the inputs that were tried"


def _shown(reason: str) -> str:
    """Without torch's words, which change, and what differs between classes that are the same otherwise."""
    reason = re.sub(r" \((\w+): .*\)$", r" (\1)", reason, flags=re.DOTALL)
    return re.sub(r"eps [\d.e-]+, ", "", reason.removeprefix("its forward calls normkit's "))


def _input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _made(kind: type[nn.Module]) -> tuple[nn.Module | None, str]:
    """A layer of the class over CHANNELS channels, or why there is none."""
    try:
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        return None, "its signature is not known"
    asked = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    first = parameters[0] if parameters else None
    if not asked and first is not None and (first.kind is first.VAR_POSITIONAL or first.default is None):
        asked = [inspect.Parameter("num_features", inspect.Parameter.POSITIONAL_ONLY)]
    problem = ""
    for config in _configs(kind) if any(p.name == "config" for p in asked) else [None]:
        given = {**_GIVEN, "config": config}
        for fallback in (CHANNELS, (CHANNELS,)):
            try:
                torch.manual_seed(0)
                layer = kind(*(given.get(p.name, fallback) for p in asked))
            except Exception as error:
                problem = problem or f"made of ({', '.join(p.name for p in asked)}): {type(error).__name__}"
                continue
            if sum(p.numel() for p in layer.parameters()) <= 2**22:
                return _stirred(layer), ""
    return None, problem or "needs a configuration"


def _configs(kind: type) -> list[Any]:
    """The default configurations that the class's own folder has."""
    folder = kind.__module__.rpartition(".")[0]
    found = []
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{folder}.configuration_"):
            for _, config in inspect.getmembers(module, inspect.isclass):
                if config.__module__ == name and config.__name__.endswith("Config"):
                    with contextlib.suppress(Exception):
                        found.append(config())
    return found


def _stirred(layer: nn.Module) -> nn.Module:
    """Weights and statistics away from 1 and 0, so that a look at its numbers sees them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in itertools.chain(layer.parameters(), layer.buffers()):
            if tensor.is_floating_point() and tensor.dim() > 0 and not nn.parameter.is_lazy(tensor):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return layer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the data have drifted")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # what the libraries say of themselves
        text = json.dumps(collect(), indent=1, ensure_ascii=False) + "\n"
    if DATA.exists() and DATA.read_text(encoding="utf-8") == text:
        return 0
    if not options.check:
        DATA.write_text(text, encoding="utf-8")
    print(f"{DATA.relative_to(ROOT)}: {'has drifted; run python -m tools.recognition' if options.check else 'written'}")
    return 1 if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
