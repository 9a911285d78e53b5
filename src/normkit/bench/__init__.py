"""`normkit bench`: normalization timed against its peers and against the machine's own copy speed.

Rules: nothing is timed before it agrees with float64; all contenders of a case are called in turn, in an order drawn
anew each round, on the same tensors; a figure is the median of paired ratios; the roof (`x.clone()`) is one of them.

    suite      which shapes, layouts and operations        timing    rounds, paired ratios, geometric means
    problem    one case and its tensors                    roof      clone and copy
    op         what a family tells about an operation      floor     the fewest bytes each operation can move
    batch_norm, group_norm, layer_norm, inference          check     agreement with float64
    contender  what a side of a comparison is              peers     torch eager and compiled, oneDNN, JAX
    measure    one case -> one row                         summary   geometric means with the worst shape named
    models     whole models (`nets`), plain, accelerated, compiled
    network    a ResNet-50 training step                   isolated  each of its models in a process of its own
    results    rows, their JSON, what merges               tables    rows -> text
    page       JSON -> docs/benchmarks.md
"""

from .measure import measure
from .page import render
from .problem import Case
from .results import Document, Row

__all__ = ["Case", "Document", "Row", "measure", "render"]
