"""JAX's side: training batch norm as a formula under jax.jit, its vjp under another, so that both can be timed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .contender import Absent, Results, named
from .op import Op
from .problem import Inputs, Problem
from .results import cores

EPS, MOMENTUM = 1e-5, 0.1


class Jax:
    """x: (N, C, *), or (N, *, C) for NHWC: JAX arrays are dense in their axes' order."""

    def __init__(self, op: Op, problem: Problem) -> None:
        if importlib.util.find_spec("jax") is None:
            raise Absent("jax is not installed")
        if op.family != "batch_norm":
            raise Absent("the JAX formula is of training batch norm")
        if problem.case.threads != cores():
            raise Absent(f"jax uses all {cores()} cores, this is a run with {problem.case.threads} threads")
        self.jax = importlib.import_module("jax")
        self.last, self.plain = problem.case.layout == "NHWC", problem.sets[0]
        self.sets = [self._arrays(inputs) for inputs in problem.sets]
        self.parameters = [self._array(p) for p in (problem.weight, problem.bias)]
        self.running = [self._array(p) for p in (problem.mean, problem.var)]
        self.run, self.pull = self._compiled(op)

    def forward(self, index: int) -> Any:
        leaves, _ = self.sets[index % len(self.sets)]
        return self.jax.block_until_ready(self.run(self.running, leaves, *self.parameters))

    def backward(self, outcome: Any, index: int) -> Any:
        _, dy = self.sets[index % len(self.sets)]
        return self.jax.block_until_ready(self.pull(outcome[1], dy))

    def results(self, outcome: Any, gradients: Any) -> Results:
        leaves, dweight, dbias = gradients
        tensors = (*(self._tensor(leaf) for leaf in leaves), from_dlpack(dweight), from_dlpack(dbias))
        return named(self._tensor(outcome[0]), tensors, self.plain)

    def _compiled(self, op: Op) -> tuple[Any, Any]:
        jax, jnp, channel = self.jax, self.jax.numpy, -1 if self.last else 1

        def norm(running: Any, leaves: Any, weight: Any, bias: Any) -> Any:
            x = leaves[0].astype(jnp.float32)
            axes = tuple(axis for axis in range(x.ndim) if axis != channel % x.ndim)
            mean, var = x.mean(axes), x.var(axes)
            shape = [1] * x.ndim
            shape[channel] = -1
            scale = weight * jax.lax.rsqrt(var + EPS)
            y = (x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape)
            if op.residual:
                y = y + leaves[1]
            moved = [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in zip(running, (mean, var), strict=True)]
            return (jax.nn.relu(y) if op.activation == "relu" else y).astype(leaves[0].dtype), moved

        def forward(running: Any, leaves: Any, weight: Any, bias: Any) -> Any:
            y, vjp, moved = jax.vjp(lambda *arguments: norm(running, *arguments), leaves, weight, bias, has_aux=True)
            return y, vjp, moved

        return jax.jit(forward), jax.jit(lambda vjp, dy: vjp(dy))

    def _arrays(self, inputs: Inputs) -> tuple[list[Any], Any]:
        return [self._array(leaf) for leaf in inputs.leaves], self._array(inputs.dy)

    def _array(self, tensor: Tensor) -> Any:
        dense = tensor.detach()
        if self.last and dense.dim() > 2:
            dense = dense.movedim(1, -1)
        return self.jax.numpy.array(self.jax.dlpack.from_dlpack(dense.contiguous()))  # a copy: JAX's own alignment

    def _tensor(self, array: Any) -> Tensor:
        tensor: Tensor = torch.utils.dlpack.from_dlpack(array)
        return tensor.movedim(-1, 1) if self.last and tensor.dim() > 2 else tensor
