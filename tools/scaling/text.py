"""The page's prose, by section."""

HEAD = """# Synchronised batch norm on many ranks: what it costs

<!-- Generated from docs/data/scaling.json and docs/data/sync_span.json; edit neither by hand. -->

`nk.SyncBatchNorm` sends count, mean and squared deviations of each rank's batch in one `all_gather` in the forward, and
two sums in one `all_reduce` in the backward, in float64: counts are exact up to 2^53 and merged moments lose nothing.
ResNet-50 has {norms} such norms with {channels:,} channels together. Every layer waits for its collectives: the next
one needs its output, and the layer below its gradient. How to train with it: [parallel.md](parallel.md).

## Measured

On {machine}, ranks as processes over gloo on the loopback, the cores shared out between them; beyond two ranks
processes wait for a core as well. All norms of a ResNet-50, and nothing between them: forward, then backward. *torch's
algorithm* is a stand-in: torch.nn.SyncBatchNorm refuses the CPU, so its steps stand here in their order, with its
collectives, each by ATen's fastest kernel (`normkit.bench.torch_sync`), and held against ours before it is timed.
*local*: each rank by its own statistics, no collective. KB: what a rank gives to all collectives of a step; times:
paired, median and quartiles. load: the machine's load average before, which is other work: where it is above 0, read
the ratios and leave the milliseconds. Repeat on a quiet machine: `normkit bench --ranks 2,3,4 --shapes full --json
FILE`.
"""

MODEL = """
The bytes are twice torch's, since ours are float64; at these sizes a collective waits far longer than it sends.

The backward's collective cannot hide behind the gradients of weight and bias: those are the same sums, ready before it
starts, and all that follows needs its result. DistributedDataParallel's own reductions do run beside it.

## The model, and how well it fits

`time = start + steps * latency + bytes / bandwidth` for p ranks that give n bytes each. Ring: p - 1 steps and (p - 1) n
bytes for an all_gather, 2 (p - 1) steps and 2 n (p - 1) / p bytes for an all_reduce. Tree: the steps are log2(p),
rounded up, and twice that. Fitted by least squares of the relative error, no coefficient below 0.

{fits}

Every point (median and quartiles, of the slowest rank) and what both models say of it:

{points}

The fit is of this machine's small end, and it is shown to be judged: the model has no word for a rank that waits for a
core, which is what most of the time is where there are more ranks than cores. Nothing below is extrapolated from it.
"""

NORMS = """
## Read off for 8 to 4,096 ranks: a model, not a measurement

The same model by NCCL's own formulas with published inputs. Latencies, ring / tree, and the share of the bandwidth that
its low-latency protocol reaches (a quarter, 1 / 3.8) are those of NCCL's tuning table (`src/graph/tuning.cc`, protocol
LL; it has no tree for all_gather); NVLink 4 of an H100 carries 900 GB/s, half of it each way; Ethernet 400 Gb/s a GPU.
*NVLink* is the bound of one switched domain: such machines end at 72 to 576 GPUs. NCCL's figure for the network is that
of adapters which write to memory by themselves; TCP takes several times longer.

{inputs}

One collective of 256 channels, and all of a ResNet-50's step:

{read}

An all_gather's ring grows with the ranks, in steps and in bytes; an all_reduce has a tree. What would a forward by
all_reduce buy? The last column, at the price of the exact merge: the sums of squares of all ranks cancel where the mean
is far from 0, and two rounds (the mean first) cost twice. **On hundreds of ranks synchronise in groups**: 8 ranks of a
node (`process_group=`) cost what the first line says, whatever the rest of the machine, and the last section says how
few images are enough.
"""

BUCKETS = """
## What bucketing would buy

Gradients of parameters travel in buckets because nobody waits for them. A norm's sums cannot: the gradient of the layer
below needs them. Ready at the same moment are only the sums of a stage's projection and of the last norm in its first
block, four pairs in ResNet-50. *all in one* is what no exact backward reaches, the bound for methods with old sums.

{table}
"""

CURVE = """
## How far a batch of 2 per rank has to be synchronised

`normkit study small_batch --quick --seeds {seeds} --ranks {ranks}`: {each} images on each of {ranks} processes, {steps}
steps; each arm at the rate that validation images chose. Medians over seeds; the difference to group norm is paired,
mean with 95 % interval. One process computes the step of all, which gives their numbers (`tests/parallel`).

{table}
"""
