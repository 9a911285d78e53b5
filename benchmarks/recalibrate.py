"""What recalibrate costs beyond the forward passes that it cannot do without: `python benchmarks/recalibrate.py`.

Paired rounds in random order of (a) a plain evaluation pass over the batches, (b) recalibrate on them and, for
comparison, (c) torch.optim.swa_utils.update_bn. The statistics are verified against float64 first. The goal is a ratio
(b)/(a) of at most 1.15 on a ResNet-50, whoever wrote its layers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import normkit as nk
from normkit.bench.resnet import ResNet50
from normkit.bench.timing import Seconds, interleave, paired

GOAL = 1.15


def verify(model: nn.Module, batches: list[Tensor]) -> None:
    """The first norm's statistics are those of its inputs, all batches as one set."""
    nk.recalibrate(model, batches, progress=False)
    first = next(module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    seen: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    evaluate(model, batches)
    hook.remove()
    x = torch.cat(seen)
    torch.testing.assert_close(first.running_var.double(), x.var((0, 2, 3)), rtol=1e-6, atol=0)


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[Tensor]) -> None:
    """The pass that evaluation makes."""
    model.eval()
    for batch in batches:
        model(batch)


def clocked(call: Callable[[], object]) -> Callable[[int], Seconds]:
    def once(_: int) -> Seconds:
        start = time.perf_counter()
        call()
        return Seconds(time.perf_counter() - start)

    return once


def measure(model: nn.Module, batches: list[Tensor], seconds: float) -> dict[str, Any]:
    """The quartiles of the paired ratios."""
    verify(model, batches)
    times = interleave(
        {
            "evaluate": clocked(lambda: evaluate(model, batches)),
            "recalibrate": clocked(lambda: nk.recalibrate(model, batches, progress=False)),
            "update_bn": clocked(lambda: update_bn(batches, model)),
        },
        seconds,
    )
    plain = [t.total for t in times["evaluate"]]
    return {
        name: dict(zip(("low", "median", "high"), paired([t.total for t in times[name]], plain), strict=True))
        for name in ("recalibrate", "update_bn")
    } | {"rounds": len(plain)}


def cases(size: int) -> dict[str, Callable[[], nn.Module]]:
    """ResNet-50 of torch's layers, channels last, of normkit's, and accelerated (norm, add and ReLU fused)."""

    def accelerated() -> nn.Module:
        return nk.accelerate(ResNet50().eval(), torch.randn(2, 3, size, size))

    found: dict[str, Callable[[], nn.Module]] = {
        "torch": ResNet50,
        "torch channels_last": lambda: ResNet50().to(memory_format=torch.channels_last),  # type: ignore[call-overload]  # missing in torch's stub
    }
    if hasattr(nk, "convert"):
        found["normkit"] = lambda: nk.convert(ResNet50(), "batch")
    if hasattr(nk, "accelerate"):
        found["accelerated"] = accelerated
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=60.0, help="for each model")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = {}
    for name, make in cases(asked.size).items():
        torch.manual_seed(0)
        model, layout = make(), torch.channels_last if "last" in name else torch.contiguous_format
        batches = [
            torch.randn(asked.batch, 3, asked.size, asked.size).to(memory_format=layout) for _ in range(asked.steps)
        ]
        rows[name] = row = measure(model, batches, asked.seconds)
        ours, theirs = row["recalibrate"], row["update_bn"]
        print(
            f"{name:20} recalibrate / evaluate {ours['median']:.3f} ({ours['low']:.3f} to {ours['high']:.3f}), "
            f"update_bn / evaluate {theirs['median']:.3f}, {row['rounds']} rounds; "
            f"goal {GOAL}: {'met' if ours['median'] <= GOAL else 'missed'}",
            flush=True,
        )
    if asked.json:
        asked.json.write_text(json.dumps({"settings": {k: str(v) for k, v in vars(asked).items()}, "rows": rows}))


if __name__ == "__main__":
    main()
