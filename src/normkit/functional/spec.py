"""`NormSpec`: everything that a call of a norm says except its tensors, and what each path does with them.

The road (`road.py`) asks a spec, in this order:

    in_core             the one call of the native core that serves the common call; None for any other
    verified            torch's errors for what the norm cannot take, and the operands as the paths below want them
    why_not_*           which paths the norm does not have (`choose` asks)
    forward, backward   the two halves on a kernel, under one autograd Function
    composed            the same as differentiable torch operations: every order of derivative, every transform
    exported            the same as plain ATen operations, for programs that must run without normkit
    operator            the same as operators of a compiled graph
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .._activation import IDENTITY, Activation
from .._operands import Gradients, Maybe, Modulate, Needs, Operands, Saved, is_modulated
from .._torch import saved_tensors_hooks_top


def strides_may_change() -> bool:
    """Whether an activation checkpoint may call this norm again on tensors of other strides: hooks on saved tensors are
    at work, which give an input back in another memory format.

    Then no strides decide what is saved, nor in which sizes: the checkpoint compares both forwards, and the backward
    has the norm of the first beside the tensors of the second.
    """
    return not torch.compiler.is_compiling() and saved_tensors_hooks_top() is not None


class Elements(NamedTuple):
    """A norm as the native kernels with a scale and a shift for each element take it.

    kind: which statistics, as `_autograd.py` numbers them; size: groups, or the width of rows. constant: whether the
    statistics are given.
    """

    kind: int
    size: int
    eps: float
    constant: bool = False


@dataclass(slots=True, eq=False)
class NormSpec(ABC):
    """One call of a norm. A subclass adds the facts of its norm: eps, groups, where the running statistics are."""

    activation: Activation

    name: ClassVar[str]
    has_aten: ClassVar[bool] = True  # whether PyTorch has a kernel of this norm
    has_triton: ClassVar[bool] = False  # whether normkit has Triton kernels of this norm
    fuses: ClassVar[bool] = True  # whether the kernels of this norm take a residual and an activation

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """The common call in eager mode: the output by one call of the native core, under autograd where a gradient is
        wanted; None where the core does not take these tensors as they are, or has no such call."""
        return None

    def added_in_core(
        self, input: Tensor, residual: Tensor, weight: Maybe, bias: Maybe
    ) -> tuple[Tensor, Tensor] | None:
        """The same behind an addition, for norms of rows: (output, input + residual), or None."""
        return None

    def modulated_in_core(
        self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, modulate: Modulate
    ) -> Maybe:
        """The same with a modulation that is a weight and a bias there, or None."""
        return None

    @abstractmethod
    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The operands, checked and made ready, and the norm that serves them: for some batches a simpler one."""

    def buffers(self) -> tuple[Tensor, ...]:
        """The buffers that a call reads or writes."""
        return ()

    def why_not_native(self, operands: Operands) -> str | None:
        """Why the native kernels cannot serve these operands of the norm, or None."""
        return None if operands.mask is None else "a mask is given"

    def why_not_operator(self, kernel: ModuleType, operands: Operands) -> str | None:
        """Why a kernel has no operators of the norm for torch.compile, or None. kernel: native or triton."""
        return f"{self.name} has no operator for compiled graphs"

    def normalized_axes(self) -> int:
        """How many last axes a set of statistics covers, for norms of rows; 0: channels are at axis 1."""
        return 0

    def why_not_affine(self, operands: Operands) -> str | None:
        """Why the native kernels cannot have the modulation as weight and bias, or None."""
        return "its statistics are not those of one sample"

    def as_affine(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The call in which they have it, as norm and operands that are not verified again; its output may have other
        sizes than the input. Asked for where `why_not_affine` has no reason."""
        raise NotImplementedError(f"{type(self).__name__} cannot have a modulation as weight and bias")

    def elements(self, input: Tensor) -> Elements | None:
        """The norm for the native kernels with a modulation per element, or None."""
        return None

    def why_not_elements(self, operands: Operands) -> str | None:
        """Why the native kernels cannot have the modulation element by element, or None."""
        input, scale, shift = operands.input, operands.scale, operands.shift
        if self.elements(input) is None:
            return f"{self.name} has no kernels with a scale for each element"
        if scale is None or shift is None or scale.shape != input.shape or shift.shape != input.shape:
            return "it has not a scale and a shift for each element"
        if scale.dtype != input.dtype or shift.dtype != input.dtype:
            return "it has another dtype than the input"
        if operands.mask is not None:
            return "a mask is given"
        if not (input.is_contiguous() or strides_may_change()):
            return "the input is not row-major"
        if not input.numel():
            return "the input is empty"
        follows = operands.residual is not None or self.activation.code != IDENTITY
        if follows and input.dtype in (torch.float16, torch.bfloat16):
            return "what follows would round 16-bit values once more"
        return "the operator of a compiled graph takes none" if torch.compiler.is_compiling() else None

    def element_statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) for them, where a set of statistics is a channel over the batch; moves the running."""
        raise NotImplementedError(f"{type(self).__name__} has statistics of each sample")

    def why_not_exported(self) -> str | None:
        """Why PyTorch's own operation is not this norm, or None."""
        return None if self.has_aten else f"PyTorch has no {self.name}"

    def is_fused(self, kernel: ModuleType, operands: Operands) -> bool:
        """Whether the kernel does all of the call in the same pass over memory: residual and activation too."""
        if is_modulated(operands):
            return False
        if not self.fuses:
            return operands.residual is None and self.activation.code == IDENTITY
        takes_residual = operands.residual is None or kernel.FUSES_RESIDUAL
        return takes_residual and self.activation.code in kernel.FUSED_ACTIVATIONS

    @abstractmethod
    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """The output, and what the backward needs if `save` asks for it. Moves the running statistics.

        kernel: a module of the shape of :mod:`normkit.kernels.native`.
        """

    @abstractmethod
    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """The first derivative. dy: the gradient with respect to the output."""

    def input_of_bits(self, kernel: ModuleType, operands: Operands) -> Tensor:
        """The input in the sizes and the order of memory in which a kernel's forward made bits of it."""
        return operands.input

    @abstractmethod
    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """The output by differentiable operations.

        stats: the statistics that an earlier forward of this call found; then nothing moves. None: this is the forward.
        """

    def exported(self, operands: Operands) -> Tensor:
        """The output by PyTorch's own operation; asked for where `why_not_exported` has no reason."""
        raise NotImplementedError(f"{type(self).__name__} has no operation of PyTorch")

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """The output by operators of a compiled graph; asked for where `why_not_operator` has no reason.

        kernel: native (opaque to the compiler) or triton.
        activation: the norm's own, or none where it follows as an operation of its own.
        """
        raise NotImplementedError(f"{type(self).__name__} has no operator")

    def added_operator(self, operands: Operands) -> tuple[Tensor, Tensor]:
        """(output without the activation, input + residual) as one opaque operator."""
        raise NotImplementedError(f"{type(self).__name__} has no operator behind an addition")

    def for_recompute(self, kernel: ModuleType, operands: Operands, stats: Tensor) -> NormSpec | None:
        """The norm that makes this one's output again from its statistics and moves none; None: keep the output."""
        return self
