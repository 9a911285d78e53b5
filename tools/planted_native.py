"""Bugs in the C++ kernels that their stand-alone test must notice: tails, masks, borders, merges.

`tools.mutation` plants them. The baseline set alone is compiled, the quickest of them: the sweeps are the same
text for each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NativeBug:
    """One bug: what it is, in which file of native/ which text becomes which."""

    what: str
    file: str
    old: str
    new: str


NATIVE_BUGS: dict[str, NativeBug] = {
    "native_tail_reads_a_whole_vector": NativeBug(
        "the last elements are read as a whole vector, beyond the array", "simd/halves.h",
        "std::memcpy(buffer, p, size_t(n) * sizeof(T));", "std::memcpy(buffer, p, sizeof buffer);"),
    "native_tail_writes_a_whole_vector": NativeBug(
        "the last elements are written as a whole vector, beyond the array", "simd/halves.h",
        "std::memcpy(p, buffer, size_t(n) * sizeof(T));", "std::memcpy(p, buffer, sizeof buffer);"),
    "native_tail_of_zeros": NativeBug(
        "lanes beyond a row count as zeros, not as the shift", "planar/forward_sums.h",
        "N::get_tail(x + u * stride + i, left, N::set(k))", "N::get_tail(x + u * stride + i, left, N::set(0))"),
    "native_bits_of_a_tail_are_whole_bytes": NativeBug(
        "the sign bits of a tail are written as a whole vector's", "simd/lanes.h",
        "if (n > 8 * i) p[i] = uint8_t(bits >> (8 * i));", "p[i] = uint8_t(bits >> (8 * i)), p[i + 1] = 0;"),
    "native_upper_bits_shifted": NativeBug(
        "the mask of the upper register overlaps the lower one's", "simd/halves.h",
        "to_bits(m.lo) | (to_bits(m.hi) << 4)", "to_bits(m.lo) | (to_bits(m.hi) << 3)"),
    "native_mixed_constants_off_by_one": NativeBug(
        "where a vector reaches into the next row, one lane too many has the old row's constants", "planar/flat.h",
        "(1u << (end - i)) - 1u", "(1u << (end - i + 1)) - 1u"),
    "native_part_is_forgotten": NativeBug(
        "of a channel that is cut into parts the first one does not count", "channel/planar_run.h",
        "for (int64_t q = c * plan.parts; q <", "for (int64_t q = c * plan.parts + 1; q <"),
    "native_block_is_forgotten": NativeBug(
        "the first block of rows does not count", "channel/rows.h",
        "for (int64_t b = 0; b < plan.blocks; ++b) {", "for (int64_t b = plan.blocks > 1; b < plan.blocks; ++b) {"),
    "native_merged_rows_do_not_fold": NativeBug(
        "rows taken as one keep the second sums of one of them", "rows/rows_in_one.h",
        "    add_columns(sums + padded_columns, channels, rows_merged);\n", ""),
    "native_chunk_begins_too_early": NativeBug(
        "the last chunk of a backward pass reaches into the block before", "rows/tiles.h",
        "std::max(begin, last - rows)", "last - rows"),
    "native_parameter_beyond_its_end": NativeBug(
        "the last channels' parameters are read as a whole vector", "simd/columns.h",
        "if (p.dtype == kFloat32 && first + kLanes <= channels) return load_wide(",
        "if (p.dtype == kFloat32 && first < channels) return load_wide("),
    "native_last_tile_is_cut": NativeBug(
        "long rows lose what lies beyond the last whole tile", "plan/rows_plan.h",
        "return i == of ? width : width * i / of / 64 * 64;", "return width * i / of / 64 * 64;"),
    "native_bundle_into_the_next_sample": NativeBug(
        "a task of slabs goes on in the next sample", "group/slabs.h",
        "std::min(groups, (task % bundles() + 1) * bundle)", "(task % bundles() + 1) * bundle"),
    "native_frozen_forgets_a_sample": NativeBug(
        "with constant statistics the last stretch of samples does not count", "channel/planar_frozen.h",
        "for (int64_t p = 0; p < samples; ++p) {", "for (int64_t p = 0; p < std::max<int64_t>(1, samples - 1); ++p) {"),
    "native_rms_is_centered": NativeBug(
        "RMS norm subtracts what layer norm does in its backward", "layer/backward.h",
        "a.rms ? zero2() : total * minus_inv_count", "total * minus_inv_count"),
    "native_added_gradient_is_lost": NativeBug(
        "the gradient of the sum does not reach the input", "layer/backward.h",
        "Added ? rounded<T>(slope) + read(sp + at) : slope", "slope"),
}  # fmt: skip
