"""The suite: which operations on which shapes and layouts.

`full` is what figures are quoted from: every distinct batch norm input of ResNet-50 at batch 8 and 32, sizes of
MobileNetV2 and U-Net, volumes, vectors, 7x7 and 1x1 maps; rows of transformers, the one row of a decode step first.
`quick` keeps one shape of each kind, for a minute's look.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import added_norm, batch_norm, group_norm, inference, layer_norm
from .op import Op
from .problem import Case

Shape = tuple[int, ...]

_FILES = (batch_norm, group_norm, layer_norm, added_norm, inference)
OPS: dict[str, Op] = {op.name: op for family in _FILES for op in family.OPS}
FAMILIES = tuple(dict.fromkeys(op.family for op in OPS.values()))

# (channels, height = width) of the inputs of ResNet-50's batch norms, each once
RESNET50 = (
    (64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28), (256, 28), (256, 14), (1024, 14), (512, 14),
    (512, 7), (2048, 7),
)  # fmt: skip
MOBILENET: tuple[Shape, ...] = (
    (8, 96, 112, 112), (8, 144, 56, 56), (32, 192, 28, 28), (32, 576, 14, 14), (32, 960, 7, 7),
)  # fmt: skip
UNET: tuple[Shape, ...] = ((4, 64, 224, 224), (4, 128, 112, 112), (4, 512, 28, 28))
VOLUMES: tuple[Shape, ...] = ((2, 32, 32, 64, 64),)
SMALL_MAPS: tuple[Shape, ...] = ((2, 512, 7, 7), (32, 512, 1, 1))
VECTORS: tuple[Shape, ...] = ((16, 8), (256, 128), (1024, 256))


def resnet50(batch: int) -> tuple[Shape, ...]:
    """The batch norm inputs of one ResNet-50 at 224x224."""
    return tuple((batch, channels, size, size) for channels, size in RESNET50)


_QUICK_MAPS: tuple[Shape, ...] = ((32, 64, 56, 56), (32, 256, 14, 14), (8, 512, 7, 7))
_FULL_GROUPS = (*resnet50(8), (32, 256, 56, 56), (4, 64, 224, 224), (4, 512, 28, 28), *VOLUMES)
_FULL_ROWS: tuple[Shape, ...] = (
    (1, 4096), (256, 128), (1024, 256), (32, 197, 768), (8, 128, 768), (8, 512, 1024), (4, 1024, 2048), (64, 3136, 96),
)  # fmt: skip

# family -> (maps, in both layouts; vectors and rows, in their one layout)
SUITES: dict[str, dict[str, tuple[tuple[Shape, ...], tuple[Shape, ...]]]] = {
    "quick": {
        "batch_norm": (_QUICK_MAPS, VECTORS[::2]),
        "group_norm": (((8, 256, 28, 28), (8, 64, 56, 56)), ()),
        "layer_norm": ((), ((1, 4096), (32, 197, 768), (1024, 256))),
        "inference": (_QUICK_MAPS[:2], ()),
    },
    "full": {
        "batch_norm": ((*resnet50(8), *resnet50(32), *MOBILENET, *UNET, *VOLUMES, *SMALL_MAPS), VECTORS),
        "group_norm": (_FULL_GROUPS, ()),
        "layer_norm": ((), _FULL_ROWS),
        "inference": ((*resnet50(8), *UNET, *SMALL_MAPS), VECTORS),
    },
}


def cases(
    families: Sequence[str], preset: str, dtypes: Sequence[str], threads: int, cold: bool = False, busy: int = 0
) -> list[Case]:
    """The cases of a run, operation by operation, so that a table can be printed as it grows."""
    return [
        Case(op.name, shape, layout, dtype, threads, cold, busy)
        for dtype in dtypes
        for op in OPS.values()
        if op.family in families
        for shape, layout in _inputs(op, preset)
    ]


def _inputs(op: Op, preset: str) -> Iterator[tuple[Shape, str]]:
    maps, flat = SUITES[preset][op.family]
    for layout in ("NCHW", "NHWC"):
        for shape in maps:
            if layout == "NCHW" or any(size > 1 for size in shape[2:]):  # a 1x1 map has one layout only
                yield shape, layout
    for shape in flat:
        yield shape, "rows" if op.family == "layer_norm" else "NC"
