// Statistics across the batch, layout (N, C, S): the forward of batch norm.
//
// A task sweeps its block of channels twice: the sums, then the output while the slab is still in L2 (8 bytes an element
// forward, 12 backward). When a channel is cut into parts, all sums come first, in one parallel loop, and each task of
// the second loop merges the parts of its channel in order. No x-hat is stored, no activation is kept: both are
// recomputed from x.
//
// Memory never rests: the first sweep of a block fetches the lines that its second sweep writes, the second sweep
// fetches the input of the next block, which follows directly in memory.
#pragma once
#include <cstdint>

#include "channel/planar_run.h"
#include "moments.h"
#include "parallel.h"
#include "plan/planar_plan.h"
#include "planar/block.h"
#include "planar/flat.h"
#include "planar/forward_sums.h"
#include "planar/output.h"
#include "planar/sums.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/short_sums.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct PlanarForward {
    using Scalar = typename Num<T>::Scalar;

    const ChannelForward& a;
    const Shape& s;
    const PlanarPlan plan;
    const PlanarOutput<T> out;
    const PlanarWriters<T> writers;
    const T* const x;
    T* const y;
    const bool stream, staged;

    explicit PlanarForward(const ChannelForward& a_)
        : a(a_), s(a_.shape), plan(plan_planar(a_.shape, sizeof(T))), out(a_),
          writers(planar_writers<T>(a_.activation, a_.residual != nullptr)), x(out.x), y(out.y), stream(out.stream),
          staged(out.staged) {}

    // Adds the sums of kRows rows of channels [first, last). Apart from its caller, which has three forms of it, for the
    // registers' sake.
    template <int kRows> __attribute__((noinline)) void sum_rows(int64_t first, int64_t last, int64_t n,
                                                                 const double* k, BlockSums& sums) const {
        const int64_t at = (n * s.c + first) * s.s, stride = s.c * s.s, length = s.s;
        const T *p = x + at, *output = (stream || !y ? x : y) + at;
        for (int64_t c = 0; c < last - first; ++c) {
            LaneSums lanes;
            add_rows<kRows>(lanes, p, stride, length, k[c], output);
            sums.add<kRows>(c, lanes);
            p += length, output += length;
        }
    }

    void block_sums(int64_t first, int64_t last, double* k, BlockSums& sums) const {
        for (int64_t c = first; c < last; ++c) k[c - first] = planar_shift(x, s, c);
        for_row_groups(s.n, [&](int64_t n, auto rows) { sum_rows<rows>(first, last, n, k, sums); });
        sums.close(last - first);
        if constexpr (kShortSums<T>)
            for (int64_t c = first; c < last; ++c)
                if (!in_range(sums.dot[c - first])) {
                    LaneSums lanes;
                    for (int64_t n = 0; n < s.n; ++n) add_wide_run(lanes, x + (n * s.c + c) * s.s, s.s);
                    const Sums again = lanes.sums();
                    sums.total[c - first] = again.sum, sums.dot[c - first] = again.squares;
                }
    }

    // Statistics of channels [first, last) from their sums, and the constants of y.
    void constants(int64_t first, int64_t last, const double* k, const BlockSums& sums,
                   const Columns<Scalar>& columns) const {
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const int64_t c = first + i;
            const Statistics2 st = finish(load2(sums.total + i), load2(sums.dot + i), load2(k + i), s.count(), a.eps);
            write_statistics(a.stats, c, last, s.c, st);
            columns.set_affine(i, st.mean, st.rstd, param_at(a.weight, c, last, 1.0), param_at(a.bias, c, last, 0.0));
        }
    }

    // next: elements from this block to the thread's next one, 0 for its last.
    void block(int64_t first, int64_t last, int64_t next) const {
        alignas(64) double memory[Columns<Scalar>::doubles(kGroupMax)];
        const Columns<Scalar> columns(memory, kGroupMax);
        double k[kGroupMax] = {};
        BlockSums sums(last - first);
        block_sums(first, last, k, sums);
        constants(first, last, k, sums, columns);
        if (y == nullptr) return;
        alignas(64) T stage[kStage];
        for (int64_t n = s.n - 1; n >= 0; --n) {  // the newest rows are still in cache
            T* to = y + (n * s.c + first) * s.s;
            writers.rows(out, columns, n * s.c + first, last - first, staged ? stage : to, stream && !staged, next);
            if (staged) stream_run(to, stage, (last - first) * s.s);
        }
    }

    // Segments [begin, end) of one channel.
    Sums segment_sums(int64_t c, int64_t begin, int64_t end) const {
        const double k = planar_shift(x, s, c);
        LaneSums lanes;
        for (int64_t g = begin; g < end; ++g) {
            const Rows at = segment_at(s, plan, c, g);
            add_run(lanes, x + at.offset, at.length, k, (stream || !y || plan.parts > 1 ? x : y) + at.offset);
        }
        if (!kShortSums<T> || in_range(sum_lanes(lanes.dot()))) return lanes.sums();
        LaneSums again;
        for (int64_t g = begin; g < end; ++g) {
            const Rows at = segment_at(s, plan, c, g);
            add_wide_run(again, x + at.offset, at.length);
        }
        return again.sums();
    }

    // y of segments [begin, end) of one channel from its sums; its statistics are kept when `record`.
    void write_segments(int64_t c, Sums sums, int64_t begin, int64_t end, bool record, int64_t ahead) const {
        const Statistics st = finish(sums, planar_shift(x, s, c), s.count(), a.eps);
        if (record) write_statistics(a.stats, c, s.c, st);
        if (y == nullptr) return;
        const Affine<Scalar> f = affine<Scalar>(st.mean, st.rstd, a.weight.at(c, 1.0), a.bias.at(c, 0.0));
        double memory[Columns<Scalar>::doubles(1)];
        const Columns<Scalar> columns(memory, 1);
        *columns.m = f.m, *columns.scale = f.scale, *columns.shift = f.shift;
        writers.segments(out, columns, 0, plan, c, begin, end, stream, ahead);
    }

    void run(const Parallel& parallel) const { run_planar(*this, parallel, s.elements() * int64_t(sizeof(T))); }
};

}  // namespace NK_ISA
}  // namespace normkit
