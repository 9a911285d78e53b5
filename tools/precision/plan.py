"""Where faults are planted: each rule in two open nets and one set aside, by turns, and early, midway or late in it."""

from __future__ import annotations

from dataclasses import dataclass

from .aside import ASIDE_BASES, OPEN_BASES
from .faults import PLANTERS

# rules that only some nets can have
NORMLESS = ("timm test_convnext", "torchvision vit of 2 layers"), ("timm test_efficientnet_gn",)
NO_BIAS = ("torchvision mobilenet_v3_small", "digits, convolutions"), ("timm tinynet_e",)
FOLDING = ("torchvision vgg of 8 layers", "torchvision mobilenet_v3_small"), ("transformers RegNet",)
POOLED = ("torchvision vgg of 8 layers", "digits, convolutions"), ("digits, residual",)
CERTAIN = ("digits, convolutions", "digits, rows"), ("digits, residual",)  # that have images enough
DEEP = ("torchvision mobilenet_v3_small", "timm lcnet_050"), ("torchvision shufflenet_v2_x0_5",)
GRAPHS = ("torchvision vgg of 8 layers", "torchvision mobilenet_v3_small"), ("torchvision shufflenet_v2_x0_5",)
SPECIAL = {
    "NK113": CERTAIN, "NK201": NO_BIAS, "NK204": POOLED, "NK206": DEEP, "NK208": POOLED, "NK407": NO_BIAS,
    "NK501": NORMLESS, "NK502": FOLDING, "NK503": GRAPHS, "NK505": GRAPHS,
}  # fmt: skip
WITHOUT_NORM = ("NK501",)  # planted in nets without batch norms
FIRST = ("NK111", "NK306")  # whose fault shows at the first norm
LAST = ("NK206",)
EVERYWHERE = ("NK102", "NK206", "NK403", "NK405", "NK406", "NK503")  # faults of the whole run, named at every layer


@dataclass(frozen=True)
class Plan:
    """A rule's fault, the net, and how far down: 0, the first norm, to 1, the last."""

    code: str
    net: str
    place: float


def plans() -> list[Plan]:
    found = []
    for turn, code in enumerate(sorted(PLANTERS)):
        chosen = SPECIAL.get(code)
        if chosen is None:
            open_nets = [OPEN_BASES[(2 * turn + i) % len(OPEN_BASES)] for i in range(2)]
            chosen = (tuple(open_nets), (ASIDE_BASES[turn % len(ASIDE_BASES)],))
        for i, net in enumerate((*chosen[0], *chosen[1])):
            place = 0.0 if code in FIRST else 1.0 if code in LAST else (turn + i) % 3 / 2
            found.append(Plan(code, net, place))
    return found
