"""README's first screen: the doctor on a network that others trained, made sick as users make it.

MobileNet-V2 as trained on ImageNet is fine-tuned for 40 steps to tell seven photographs apart by their crops, with its
norms' momentum set to 0.001 so that the large data set's statistics are kept. The weights learn; the statistics stay
those of other weights and other images.

    normkit doctor tools.doctor_case:fine_tuned --data tools.doctor_case:batches

`python -m tools.doctor_case` (half a minute) writes docs/data/doctor_case.json; `tools.docs` puts it into README.md.
"""

from __future__ import annotations

import json
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tests.surgery.foreign import imagenet_mobilenet_v2
from torch import Tensor, nn

import normkit as nk

from .precision.sources import photographs

DATA = Path(__file__).resolve().parents[1] / "docs" / "data" / "doctor_case.json"
CLASSES, SIZE, STEPS, BATCH, RATE, MOMENTUM = 7, 48, 40, 16, 0.005, 0.001
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def crops(seed: int) -> tuple[Tensor, Tensor]:
    """(16, 3, 48, 48) crops of photographs as ImageNet inputs, and the number of each one's photograph."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (BATCH,), generator=g)
    found = []
    for label in labels.tolist():
        photo = photographs()[label]
        side = int(torch.randint(SIZE, 2 * SIZE, (), generator=g))
        top, left = (int(torch.randint(length - side + 1, (), generator=g)) for length in photo.shape[1:])
        crop = photo[None, :, top : top + side, left : left + side]
        found.append(nn.functional.interpolate(crop, size=SIZE, mode="bilinear", antialias=True)[0])
    return (torch.stack(found) - MEAN) / STD, labels


def batches() -> list[tuple[Tensor, Tensor]]:
    """Crops that the fine-tuning has not seen."""
    return [crops(10_000 + i) for i in range(8)]


@cache
def fine_tuned() -> nn.Module:
    """The sick model, in evaluation mode."""
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        model: Any = imagenet_mobilenet_v2()
        model.classifier[1] = nn.Linear(model.last_channel, CLASSES)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = MOMENTUM
        optimizer = torch.optim.SGD(model.train().parameters(), RATE, momentum=0.9)
        for step in range(STEPS):
            x, label = crops(step)
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), label).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def right(model: nn.Module) -> float:
    """The share of the batches' crops that are told right."""
    found = [(model(x).argmax(1) == label).float() for x, label in batches()]
    return round(float(torch.cat(found).mean()), 2)


def measure() -> dict[str, Any]:
    """The report; how many crops are told right in training mode, in evaluation, and healed."""
    model = fine_tuned()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnosis = nk.diagnose(model, batches())
        healed, healing = diagnosis.healing(model)
    found = {"evaluation": right(model), "healed": right(healed), "left": healing.left}
    for module in healed.modules():  # dropout stays off
        module.training = isinstance(module, nn.BatchNorm2d)
    return {"report": str(diagnosis).splitlines(), "training": right(healed), **found}


def first_screen() -> str:
    """For README.md: what was done to the network, and the report's head, its first finding and its last line."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    report = data["report"]
    head, first = report.index(""), report.index("", report.index("") + 1)
    training, evaluation, healed = (f"{data[key]:.0%}" for key in ("training", "evaluation", "healed"))
    done = (
        f"MobileNet-V2, trained on ImageNet, fine-tuned for {STEPS} steps on crops of seven photographs with\n"
        f"`momentum={MOMENTUM}` ([tools/doctor_case.py](tools/doctor_case.py)): {training} of other crops are told "
        f"right in training mode,\n{evaluation} in evaluation, {healed} after `--fix`:"
    )
    return "\n".join([done, "", "```text", *report[:head], *report[head:first], "...", report[-1], "```", ""])


def main() -> int:
    torch.set_num_threads(1)
    DATA.write_text(json.dumps(measure(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{DATA}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
