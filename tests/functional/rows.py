"""What the tests of norms within a sample share: the contract's bounds against the reference, the rules of masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normkit.contract import input_gradient_bound, mean_over, output_bound, parameter_gradient_bound, unit_roundoff
from tests.tolerances import assert_within

Norm = Callable[..., Tensor]
Truth = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def assert_right(
    norm: Norm,
    x: Tensor,
    dy: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    truth: Callable[[Tensor, Tensor, Tensor, Tensor | None], Truth],
    dims: Sequence[int],
    parameter_dims: Sequence[int],
    lay: Callable[[Tensor], Tensor],
) -> None:
    """Raise unless forward and backward of norm(x, weight, bias) hold the contract's bounds.

    truth: float64 (x, dy, weight, bias) -> (y, dx, dweight, dbias, xhat, rstd), the last two laid beside x.
    dims: axes of the statistics; parameter_dims: axes that a parameter's gradient sums; lay: parameter -> beside x.
    """
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight)]
    if bias is not None:
        leaves.append(bias.detach().clone().requires_grad_())
    y = norm(*leaves)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    found = torch.autograd.grad(y, leaves, dy)
    wide = [t.double() for t in (x, dy, weight)]
    y64, dx64, dweight64, dbias64, xhat, rstd = truth(*wide, None if bias is None else bias.double())
    # in float64 the reference itself carries a few dozen roundings
    u, u_parameter = (unit_roundoff(t.dtype) * (64 if t.dtype == torch.float64 else 1) for t in (x, weight))
    shift = torch.zeros(()).double() if bias is None else lay(bias.double())
    dxhat = wide[1] * lay(wide[2])
    assert_within(y, y64, output_bound(xhat, lay(wide[2]), shift, u), "y")
    assert_within(found[0], dx64, input_gradient_bound(dxhat, xhat, rstd, mean_over(dims), u), "dx")
    bound = parameter_gradient_bound(wide[1] * xhat, parameter_dims, u_parameter)
    assert_within(found[1], dweight64, bound.reshape(weight.shape), "dweight")
    if bias is not None:
        bound = parameter_gradient_bound(wide[1], parameter_dims, u_parameter)
        assert_within(found[2], dbias64, bound.reshape(bias.shape), "dbias")


def assert_mask_selects(norm: Norm, x: Tensor, mask: Tensor, parameters: Sequence[Tensor]) -> None:
    """Raise unless what lies under the mask (bool, broadcasts against x) changes no output and no gradient.

    norm(x, *parameters) masks by itself. Under the mask outputs and gradients are zero, NaN and Inf included.
    """
    results = []
    for poison in (0.0, torch.nan, torch.inf):
        filled = torch.where(mask, x, torch.full_like(x, poison)).requires_grad_()
        leaves = [filled, *(p.detach().clone().requires_grad_() for p in parameters)]
        y = norm(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, torch.linspace(-1, 1, y.numel()).to(y).reshape(y.shape))])
    hidden = ~mask.expand_as(x)
    assert not results[0][0][hidden].any()
    assert not results[0][1][hidden].any()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
