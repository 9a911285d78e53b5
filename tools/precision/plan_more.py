"""The second part's plans: faults in harder nets, by size, two at once, and stories. Fixed before its first run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .aside import MORE_ASIDE_BASES, MORE_BASES
from .grades import GRADES
from .nets import MORE
from .plan import Plan
from .stories import STORIES


@dataclass(frozen=True)
class Graded:
    """A fault by size in one net."""

    grade: str
    net: str
    place: float


@dataclass(frozen=True)
class Two:
    """Two faults in two layers of one net: the first one's place, then the second one's."""

    codes: tuple[str, str]
    net: str
    places: tuple[float, float]


@dataclass(frozen=True)
class Told:
    story: str
    net: str


@dataclass(frozen=True)
class Healthy:
    net: str


More: TypeAlias = "Healthy | Plan | Graded | Two | Told"

# rules whose fault data or trained weights may hide
HARD = (
    "NK101",
    "NK103",
    "NK104",
    "NK105",
    "NK106",
    "NK107",
    "NK108",
    "NK109",
    "NK110",
    "NK203",
    "NK207",
    "NK301",
    "NK402",
)
GRADED_BASES = ("timm test_resnet", "digits, convolutions", "torchvision vgg of 8 layers", "transformers ResNet")
GRADED_ASIDE = ("timm test_byobnet", "transformers RegNet", "digits, residual")
SPECIAL = {
    "NK206": (("digits, rows", "digits, rows, seed 1"), ()), "NK407": (("digits, convolutions",), ("timm tinynet_e",)),
}  # fmt: skip
PAIRS = (
    ("NK103", "NK101"), ("NK104", "NK207"), ("NK301", "NK104"), ("NK106", "NK103"), ("NK107", "NK103"),
    ("NK108", "NK103"), ("NK103", "NK103"), ("NK101", "NK104"), ("NK302", "NK103"), ("NK203", "NK101"),
    ("NK110", "NK104"), ("NK202", "NK107"), ("NK105", "NK101"), ("NK402", "NK103"), ("NK101", "NK108"),
)  # fmt: skip
PAIR_BASES = ("timm test_resnet", "torchvision vgg of 8 layers", "digits, convolutions, seed 1", "transformers ResNet")
PAIR_ASIDE = ("timm test_byobnet", "transformers RegNet", "digits, residual")
TOLD_OF = (
    "MobileNet-V2 of fdet, adapted", "digits, convolutions", "digits, rows", "digits, residual", "CREPE tiny, adapted",
)  # fmt: skip
LOST = (
    "timm test_resnet", "torchvision vgg of 8 layers", "transformers ResNet", "monai DenseNet", "timm test_byobnet",
    "transformers RegNet", "transformers Wav2Vec2-Conformer", "digits, rows, seed 1",
)  # fmt: skip


def plans() -> list[More]:
    """All of it, in the table's order."""
    found: list[More] = [Healthy(one.name) for one in MORE]
    for turn, code in enumerate(HARD):
        nets = [MORE_BASES[(2 * turn + i) % len(MORE_BASES)] for i in range(2)]
        nets.append(MORE_ASIDE_BASES[turn % len(MORE_ASIDE_BASES)])
        found += [Plan(code, net, (turn + i) % 3 / 2) for i, net in enumerate(nets)]
    for turn, grade in enumerate(GRADES):
        some, aside = SPECIAL.get(grade.code) or (
            tuple(GRADED_BASES[(turn + i) % len(GRADED_BASES)] for i in range(2)),
            (GRADED_ASIDE[turn % len(GRADED_ASIDE)],),
        )
        found += [Graded(grade.name, net, 0.0 if grade.code == "NK111" else 0.5) for net in (*some, *aside)]
    for turn, pair in enumerate(PAIRS):
        nets = [PAIR_BASES[(turn + i) % len(PAIR_BASES)] for i in range(2)]
        nets.append(PAIR_ASIDE[turn % len(PAIR_ASIDE)])
        places = ((0.0, 1.0), (1.0, 0.0), (0.4, 0.8))
        found += [Two(pair, net, places[(turn + i) % 3]) for i, net in enumerate(nets)]
    found += [Told(story.name, net) for story in STORIES for net in TOLD_OF]
    told = {(one.story, one.net) for one in found if isinstance(one, Told)}
    lost = STORIES[0].name  # of more nets: what a state alone can say of it (NK101)
    found += [Told(lost, name) for name in LOST if (lost, name) not in told]
    return found
