"""docs/benchmarks.md from its JSON; a pure function, so that a test can hold the page to the figures."""

from __future__ import annotations

from .gains import gains_table
from .results import Document, Row
from .tables import machine_line, models_table, network_table, rows_table, summary_table

HEAD = """# Benchmarks

<!-- Generated from docs/data/benchmarks.json; edit neither by hand. -->

Measured with `normkit bench` on: {machine}.
{gains}
## How it was measured

Every contender computes the same thing: each was held against float64 before it was timed, normkit within the
bounds of the [contract](contract.md). All of them are called in turn on the same tensors, in an order
drawn anew each round; **x** is the median of the paired ratios of forward + backward, above 1
where normkit is faster. A suite's figure is the geometric mean over its shapes, with the worst shape named.

**roof** is the share of what `x.clone()` reaches in the same rounds on a tensor of the same size: the fewest bytes the
operation can move, over the time it took (NHWC batch norm: counted with two sweeps, which it needs once a slab
outgrows the cache). Means and least shares are over tensors of a megabyte and more. **MB** and **GB/s** count the
fewest bytes. Peers: torch eager (`torch.nn`'s layer, then `+=` and `relu_`); *compile*: the same under torch.compile;
*onednn*: PyTorch's opaque mkldnn tensors, which is oneDNN's plain-layout path and not its blocked layouts; *jax*: the
formula and its vjp under jax.jit; *onnx*: ONNX Runtime's layer norm and RMS norm, in inference. A dash: the peer does
not serve the case. *add+rms_norm*: `nk.functional.add_rms_norm` against torch's addition and its RMS norm.

**limit**, and **of** in the tables of shapes: the same ratio for a call that computes no statistics: frozen batch norm
with a ReLU through the same Function and core, which passes over memory once forward and once backward (after a
residual it does not even read x again). No kernel under this call can be faster, however it finds mean and variance.

**Why no more.** Where memory is the limit two calls compare as their bytes do. In NHWC a float32 element costs torch's
batch norm 44 bytes, forward and backward: each sweep reads anew, and an ordinary store reads first. normkit's two
sweeps cost 40, streamed from 12 MB on 32: 1.1 to 1.4 times as fast. With ReLU it is 68 against 40 or 32 (1.7 to 2.1),
with add and ReLU 80 against 52 or 40 (1.5 to 2.0); group norm in NCHW 36 against 28 or 20 (1.3 to 1.8). What is beyond
that comes from caches. Below a megabyte a call costs more than its bytes.

Repeat with `normkit bench --shapes full --json FILE`, the same with `--shapes quick` and `--cold`, `--busy 1` or
`--busy 2`, `normkit bench network --json FILE`, and `normkit bench --models --shapes full --dtype float32,bfloat16
--json FILE`.
"""

GAINS = """
How many times faster than torch eager a forward and backward is, NCHW / NHWC, float32:

{table}

![How many times faster than torch eager, by operation and condition](images/benchmarks.svg)

*cold*: each call takes inputs that no cache holds, as in a network where other layers work between two norms.
*quiet*: a few sets of inputs in turn, and nothing else computes. *n busy*: beside n processes that compute all the
time; there the figure is the ratio of mean times, since a call that waits for a core shows in the mean alone.
"""


def render(text: str) -> str:
    """The page for the figures in `text`, the JSON of a `Document`."""
    document = Document.from_json(text)
    gained = GAINS.format(table=gains_table(document.rows).markdown()) if document.rows else ""
    parts = [HEAD.format(machine=machine_line(document), gains=gained)]
    if document.rows:
        parts += ["## Summary\n", summary_table(document.rows).markdown() + "\n"]
    if document.networks:
        parts += ["## ResNet-50 training step\n", NETWORK, network_table(document.networks).markdown() + "\n"]
    if document.models:
        parts += ["## Whole models\n", MODELS, models_table(document.models).markdown() + "\n"]
    for title, rows in groups(document.rows).items():
        parts += [f"## {title}\n", rows_table(rows).markdown() + "\n"]
    return "\n".join(parts)


NETWORK = """`nk.accelerate` against the plain model, and *recomputing*: with [`recompute=True`](recompute.md). 224x224
images, forward, loss, backward and an SGD step. The share of norms (batch norm, ReLU, residual add) was measured with
the profiler; it limits what any faster norm can do: at the roof, or if norms took no time at all. Held: what is live
after the forward; peak: the most that is live in a step, gradients of parameters included; both as PyTorch's allocator
counts them, in brackets the share of the plain model's. Each model trains in a process of its own (a row with a dash:
all in one); *nothing kept*: accelerated, but freed outputs serve no later ones (`NORMKIT_KEEP_MB=0`).
"""


MODELS = """A training step (forward, loss, backward, SGD) and inference of whole models with random weights, by
`normkit bench --models`: plain, through `nk.accelerate`, and under torch.compile, each in a process of its own.
**norm share**: the time that the plain model's norms take alone, of the model's. **limit**: the speedup if nothing but
the norms became as much faster as they are alone; **of the gain**: which part of limit - 1 was reached, none where that
is below 3 %. Ratios with quartiles.
"""


def groups(rows: tuple[Row, ...]) -> dict[str, list[Row]]:
    """Rows by operation, layout, dtype and threads, under the heading of their table."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(heading(row), []).append(row)
    return found


def heading(row: Row) -> str:
    """The title of a row's table."""
    case = row.case
    around = "" if case.conditions == "quiet" else f", {case.conditions}"
    return f"{case.op}, {case.layout}, {case.dtype}, {case.threads} thread{'s' if case.threads != 1 else ''}{around}"
