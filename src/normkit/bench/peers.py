"""The contenders: normkit and its peers, each as forward, backward and the results for the check.

    normkit   the layer a user writes, residual and activation inside
    torch     torch.nn's layer, then residual and ReLU in place
    compile   the same through torch.compile (inductor)
    onednn    torch.native_batch_norm on to_mkldnn() tensors: oneDNN's plain-layout path, not its blocked layouts
    jax       the formula under jax.jit, forward and vjp, where jax is installed
    onnx      ONNX Runtime's layer norm and RMS norm in inference, where it is installed

and `limit`, which bounds them: what normkit's call costs when its kernels compute no statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import normkit as nk

from .contender import Absent, Contender, Results, named
from .jax_peer import Jax
from .onnx_peer import OnnxRuntime
from .op import Op, prepared, ranked
from .problem import Inputs, Problem


class Layer:
    """A torch module on ordinary tensors."""

    def __init__(self, layer: nn.Module, problem: Problem, run: Callable[..., Tensor] | None = None) -> None:
        self.run = layer if run is None else run  # a compiled module has no truth value
        self.sets = problem.sets
        self.parameters = list(layer.parameters())

    def forward(self, index: int) -> Tensor:
        return self.run(*self.sets[index % len(self.sets)].leaves)

    def backward(self, outcome: Tensor, index: int) -> tuple[Tensor, ...]:
        inputs = self.sets[index % len(self.sets)]
        return torch.autograd.grad(outcome, (*inputs.leaves, *self.parameters), inputs.dy)

    def results(self, outcome: Tensor, gradients: tuple[Tensor, ...] | None) -> Results:
        return named(outcome, gradients, self.sets[0])


def normkit(op: Op, problem: Problem) -> Contender:
    return Layer(op.ours(problem), problem)


def limit(op: Op, problem: Problem) -> Contender | None:
    """Frozen batch norm with a ReLU: the same call of the same core, one pass over memory each way.

    Forward it reads x (and the residual) and writes y; backward it reads dy and x, whose sign it needs (bits behind a
    residual), and writes dx (and dresidual): no kernel that computes statistics can take less. None where the
    operation takes one pass itself.
    """
    if not op.training or problem.case.layout == "rows":
        return None
    frozen = getattr(nk, ranked("FrozenBatchNorm", problem.case))(problem.weight.numel(), activation="relu")
    return Layer(prepared(frozen, problem, training=True), problem)


def eager(op: Op, problem: Problem) -> Contender:
    return Layer(op.theirs(problem), problem)


def compiled(op: Op, problem: Problem) -> Contender:
    torch.compiler.reset()  # one case's graph at a time: dynamo gives up on a function after some recompilations
    layer = op.theirs(problem)
    return Layer(layer, problem, torch.compile(layer, fullgraph=True, dynamic=False))


class OneDnn:
    """oneDNN through PyTorch's opaque mkldnn tensors."""

    def __init__(self, op: Op, problem: Problem) -> None:
        if op.family != "batch_norm" or len(problem.case.shape) not in (4, 5):
            raise Absent("PyTorch exposes oneDNN's training batch norm for (N, C, H, W) and (N, C, D, H, W) only")
        if problem.case.layout != "NCHW":
            raise Absent("an mkldnn tensor has a layout of its own: see NCHW")
        if problem.case.dtype not in ("float32", "bfloat16"):
            raise Absent(f"oneDNN has no {problem.case.dtype} batch norm here")
        self.op, self.plain = op, problem.sets[0]
        self.sets = [
            Inputs(_opaque(s.x), None if s.residual is None else _opaque(s.residual), s.dy.to_mkldnn())
            for s in problem.sets
        ]
        self.weight, self.bias = (p.clone().requires_grad_() for p in (problem.weight, problem.bias))
        self.mean, self.var = problem.mean.clone(), problem.var.clone()

    def forward(self, index: int) -> Tensor:
        inputs = self.sets[index % len(self.sets)]
        y: Tensor = torch.native_batch_norm(inputs.x, self.weight, self.bias, self.mean, self.var, True, 0.1, 1e-5)[0]
        if inputs.residual is not None:
            y = y + inputs.residual
        return torch.relu(y) if self.op.activation == "relu" else y

    def backward(self, outcome: Tensor, index: int) -> tuple[Tensor, ...]:
        inputs = self.sets[index % len(self.sets)]
        return torch.autograd.grad(outcome, (*inputs.leaves, self.weight, self.bias), inputs.dy)

    def results(self, outcome: Tensor, gradients: tuple[Tensor, ...] | None) -> Results:
        dense = None if gradients is None else tuple(_dense(gradient) for gradient in gradients)
        return named(_dense(outcome), dense, self.plain)


PEERS: dict[str, Callable[[Op, Problem], Contender]] = {
    "torch": eager,
    "compile": compiled,
    "onednn": OneDnn,
    "jax": Jax,
    "onnx": OnnxRuntime,
}


def _opaque(tensor: Tensor) -> Tensor:
    return tensor.detach().to_mkldnn().requires_grad_()


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
