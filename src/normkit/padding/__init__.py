"""Padded batches through models that know of no padding: `normkit.lengths` and `normkit.mask`.

    context.py     the two functions that make a block
    block.py       who follows the calls inside of it, and what is said at its end
    padding.py     the lengths it was given, and which inputs of a model they fit
    follow.py      each call of torch inside of the block: which positions of its result are real
    axes.py        where calls that move, cut and join axes leave a padded axis
    order.py       calls that repeat, sort or choose positions, and differences
    reshape.py     views: axes that are merged and split
    windows.py     convolutions and pools: formulas of lengths, and what they read beyond a sample's end
    alone.py       calls that are made for each sample alone: adaptive pools, upsampling, mirrored borders
    norms.py       norms of torch and of normkit get the mask that fits their input
    track.py       what is known of one tensor: its padded axes and how much of them is real

Rules: a model is never changed, nothing but the calls of this thread is; what is not known is not guessed, but for a
ratio of sizes, and who lost sight of a padded axis is told so.
"""
