"""`with nk.lengths(lengths): model(x)` and `with nk.mask(mask): model(x)`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .block import Padded, refuse_compiled
from .padding import Padding


def lengths(
    lengths: Tensor | Sequence[int], dim: int = -1, *, zero_input: bool = False, zero_convolutions: bool = True
) -> Padded:
    r"""Run models on a padded batch so that padding counts nowhere: each sample as if it were alone.

    ``with nk.lengths(lengths): y = model(x)``. Inside of the block every norm, normkit's and plain torch.nn's, takes
    the mask that fits its own input, and what reaches over a sample's end meets what it would meet without neighbours.
    The lengths after each layer follow its own formula, with kernel k, stride s, padding p, dilation d:

    .. math:: \text{convolution:} \quad \Big\lfloor \frac{L + 2p - d(k - 1) - 1}{s} \Big\rfloor + 1
    .. math:: \text{transposed:} \quad (L - 1)s - 2p + d(k - 1) + p_{out} + 1

    A pool is a convolution (with ceil_mode rounded up); adaptive pools, upsampling and mirrored borders are computed
    for each sample alone; views, slices, joins and transpositions carry the axis along. Only where nothing else is
    known are the lengths the same share of the new size as of the old one.

    In evaluation every sample's result is that of the sample alone, in training too with group, instance and layer
    norm; batch norm in training uses the moments of all real values of the batch, and moves its running statistics by
    them. After a sample's end norms, convolutions and pools give zeros. ``with nk.lengths(lengths) as padded: ...``
    tells by ``padded.lengths_of(y)`` how much of a tensor is real.

    Args:
        lengths: (N,), integers of 0 or more: how many positions of each sample are real, from the first on.
        dim: which axis of the input of the model (of the outermost module called) is padded. The batch is axis 0; with
            dim=0 it is axis 1. Inputs: (N, T) or (N, C, T), dim=-1; (N, T, C), dim=1; (T, N, C), dim=0.
        zero_input: put zeros where the input is padding, for padding that holds junk (NaN too).
        zero_convolutions: convolutions, pools, paddings and upsampling meet zeros after each sample's end and leave
            zeros there. False: they compute what they always do, and norms alone take masks.

    Attention keeps the model's own mask: give the model its lengths or attention_mask as always. Recurrent layers,
    means over time that are written as such, and norms written out by hand that average over time are as they are
    without the block.

    The model is not touched; blocks nest (the inner one counts), each thread has its own. Modules compiled by
    torch.compile run eagerly inside. DistributedDataParallel works (each rank has its own lengths). Under an activation
    checkpoint enter the block inside of the checkpointed function, not around it: the recomputation has to take the
    same masks, and is not followed (torch's CheckpointError; with use_reentrant=True nothing notices).

    Raises:
        TypeError: lengths are not integers.
        ValueError: lengths are not one number of 0 or more for each sample of the batch, or one is longer than the
            padded input; the input has no axis `dim`.
        RuntimeError: inside of torch.compile or torch.export; nn.DataParallel over several devices, whose threads the
            block does not reach.

    Warns (UserWarning) when the block ends and no norm took a mask, or one could not: the padded axis was lost on the
    way, and it says where.

    Example:
        >>> with normkit.lengths(lengths, dim=1):
        ...     frames, frame_lengths = conformer(features, lengths)
    """
    refuse_compiled()
    return Padded(Padding.of_lengths(lengths, dim), zero_input, zero_convolutions)


def mask(
    mask: Tensor, dim: int | Sequence[int] | None = None, *, zero_input: bool = False, zero_convolutions: bool = True
) -> Padded:
    """As :func:`lengths`, from a mask of the input's positions; padding may lie on several axes, as of images of
    different sizes.

    Args:
        mask: bool, (N, T) or (N, *spatial), True = a real value. Along each axis the real values come first and then
            the padding, so that a sample's real values are a box in the first corner.
        dim: which axes of the input are the mask's axes behind the batch, in order; None: the last ones.
        zero_input, zero_convolutions: as there.

    Raises:
        TypeError: the mask is not a bool tensor.
        ValueError: real values that are no such box; and as `lengths`. A mask of another form belongs into the norms:
            ``norm(x, mask=mask)``.
    """
    refuse_compiled()
    return Padded(Padding.of_mask(mask, dim), zero_input, zero_convolutions)
