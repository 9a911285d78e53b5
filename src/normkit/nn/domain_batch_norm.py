"""DomainBatchNorm1d, 2d, 3d: a batch norm for each domain.

Each domain's norm is a batch norm layer in `norms`, so whatever knows batch norms knows these: recalibrate, adapt,
convert, freeze, sync_buffers, the doctor. Shared weights and biases are the same Parameter objects in all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._activation import resolve
from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.choose import may_look
from .base import Given
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from .domain_call import Domain, DomainCall, by_masks, by_parts, current, verify
from .sync_batch_norm import SyncBatchNorm

_MISSING = (
    "no domain was given: call {kind}(x, domain), or run the model inside of `with normkit.domain(k):`. The "
    "recomputation of an activation checkpoint runs outside of a block that was around the forward: enter the block "
    "inside of the function under the checkpoint"
)


class _DomainBatchNorm(nn.Module):
    r"""Domain-specific batch normalization: each domain has statistics of its own, and weight and bias unless shared.

    .. math:: y_n = \mathrm{activation}\Big(\frac{x_n - \mathrm{mean}_{d(n)}}{\sqrt{\mathrm{var}_{d(n)} + \epsilon}}
              \cdot \mathrm{weight}_{d(n)} + \mathrm{bias}_{d(n)} + \mathrm{residual}_n\Big), \quad
              d(n) \text{ the domain of } n

    In training a domain's statistics are those of its samples in the batch, and move its running statistics alone; a
    domain without a sample stays as it is.

    Args:
        num_features, eps, momentum, affine, track_running_stats, bias, activation, small_batch: as in
            :class:`normkit.BatchNorm2d`. small_batch acts on the samples of each domain.
        domains: how many there are, K.
        shared_affine: whether all domains have the same weight and bias, as AdaBN has it; else each its own.

    Call: ``bn(x, domain=None, residual=None, mask=None, activation=None, modulate=None)``. domain: a number from 0, or
    integers (N,), one for each sample; None: that of the innermost ``with normkit.domain(k)``. The rest as in
    :class:`normkit.BatchNorm2d`. Where the values of a tensor cannot be read without waiting (on a GPU, compiled), each
    domain is computed under a mask, K passes, and a number that is no domain gives zeros.

    State: ``norms.k.weight`` and so on. The state of one batch norm of this name loads too, into every domain.

    Raises:
        ValueError: domains is below 1; the rank is wrong; a channel has one value in training; torch's texts.
        IndexError: a domain that is not there. TypeError: a domain that is no integer.
        RuntimeError: no domain is given.

    References: Li et al. (2017), Revisiting Batch Normalization For Practical Domain Adaptation (AdaBN),
    https://arxiv.org/abs/1603.04779; Chang et al. (2019), Domain-Specific Batch Normalization for Unsupervised Domain
    Adaptation, https://arxiv.org/abs/1906.03950
    """

    activation: str | nn.Module | None
    _norm: ClassVar[type[_BatchNorm]]
    _torchs: ClassVar[type[nn.Module]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        domains: int,
        shared_affine: bool = False,
        bias: bool = True,
        activation: str | nn.Module | None = None,
        small_batch: str = "error",
    ) -> None:
        if isinstance(domains, bool) or not isinstance(domains, int) or domains < 1:
            raise ValueError(f"domains must be how many domains there are, 1 or more, got {domains!r}")
        super().__init__()
        resolve(activation)  # raises for what is no activation
        self.num_features, self.domains, self.shared_affine, self.activation = (
            num_features, domains, shared_affine, activation,
        )  # fmt: skip
        self.norms = nn.ModuleList(
            self._norm(
                num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
                small_batch=small_batch,
            )
            for _ in range(domains)
        )  # fmt: skip
        if shared_affine:
            self._share()
            self.register_load_state_dict_post_hook(_share_again)  # assign=True makes a Parameter of each entry

    @classmethod
    def from_norm(cls, norm: nn.Module, domains: int, *, shared_affine: bool = False) -> Any:
        """A layer each of whose domains begins as this batch norm, torch.nn's or normkit's of the same rank.

        Raises TypeError for any other layer.
        """
        from .domain_state import arguments_of, copied  # when it is used: each module costs time at the import

        layer = cls(**arguments_of(norm, cls._torchs), domains=domains, shared_affine=shared_affine)
        for own in layer.norms:
            copied(norm, own)
        return layer.train(norm.training)

    def to_norm(self, domain: int | None = None) -> Any:
        """One batch norm: a copy of this domain's; None: all domains' statistics as those of one set.

        A domain counts by its batches, in mean and variance (what lies between the means included).

        Raises IndexError for a domain that is not there; with None ValueError where weights or biases differ.
        """
        from .domain_state import merged

        one: Any = merged(list(self.norms)) if domain is None else copy.deepcopy(self.norms[self._number(domain)])
        one.activation = self.activation
        return one

    def forward(
        self, input: Tensor, domain: Domain | None = None, residual: Maybe = None, mask: Maybe = None,
        activation: Given = None, modulate: Modulate = None,
    ) -> Tensor:  # fmt: skip
        """input: (N, C, *) -> the same shape, dtype and memory format."""
        if is_proxy(input):
            given = {"residual": residual, "mask": mask, "activation": activation, "modulate": modulate}
            return module_node(self, input, domain=domain, **given)
        which = current() if domain is None else domain
        if which is None:
            raise RuntimeError(_MISSING.format(kind=type(self).__name__))
        verify(which)
        call = DomainCall(input, residual, mask, self.activation if activation is None else activation, modulate)
        if isinstance(which, Tensor):
            return self._by_sample(call, which)
        number = self._number(which)
        if self._meets_other_ranks():  # which may be at other domains
            return by_parts(self.norms, call.verified(), torch.full(input.shape[:1], number), everywhere=True)
        return call.by(self.norms[number])

    def _by_sample(self, call: DomainCall, which: Tensor) -> Tensor:
        samples = call.input.shape[0]
        if which.shape != (samples,):
            raise ValueError(f"domain must have a number for each of {samples} samples, got {tuple(which.shape)}")
        call = call.verified()
        if not may_look(which):
            return by_masks(self.norms, call, which)
        for number in which.unique().tolist():
            self._number(number)
        return by_parts(self.norms, call, which, everywhere=self._meets_other_ranks())

    def _number(self, domain: int) -> int:
        if not 0 <= domain < self.domains:
            raise IndexError(f"domain must be a number from 0 to {self.domains - 1}, got {domain}")
        return domain

    def _meets_other_ranks(self) -> bool:
        """Whether every rank has to call every domain's norm, as synchronised norms ask."""
        return self.training and any(isinstance(norm, SyncBatchNorm) for norm in self.norms)

    def _share(self) -> None:
        """Let all norms have the first one's weight and bias; a frozen norm has none among its parameters."""
        first, *others = (norm._parameters for norm in self.norms)
        for own in others:
            own.update({name: first[name] for name in ("weight", "bias") if name in first and name in own})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self.shared_affine:
            self._share()  # what was made on meta gets Parameters one by one
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """As torch's; the state of one batch norm is every domain's."""
        from .domain_state import spread

        spread(state_dict, prefix, self.domains)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """What the norms, which follow, do not say."""
        shown = f"{self.num_features}, domains={self.domains}"
        shown = f"{shown}, shared_affine=True" if self.shared_affine else shown
        return f"{shown}, activation={self.activation!r}" if isinstance(self.activation, str) else shown


class DomainBatchNorm1d(_DomainBatchNorm):
    __doc__ = f"""Batch normalization of domains over (N, C) or (N, C, L).\n{_DomainBatchNorm.__doc__}"""

    _norm, _torchs = BatchNorm1d, nn.BatchNorm1d


class DomainBatchNorm2d(_DomainBatchNorm):
    __doc__ = f"""Batch normalization of domains over (N, C, H, W).\n{_DomainBatchNorm.__doc__}"""

    _norm, _torchs = BatchNorm2d, nn.BatchNorm2d


class DomainBatchNorm3d(_DomainBatchNorm):
    __doc__ = f"""Batch normalization of domains over (N, C, D, H, W).\n{_DomainBatchNorm.__doc__}"""

    _norm, _torchs = BatchNorm3d, nn.BatchNorm3d


def _share_again(layer: Any, keys: Any) -> None:
    layer._share()
