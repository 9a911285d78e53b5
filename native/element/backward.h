// A modulation per element, the backward. dy = dz * scale is what the norm's own backward begins with: it is made where
// it is used, and never written.
//
// Per set S w dy and S w dy * xhat, from exact products; then, from cache, dx and dscale = dz * y. dweight and dbias: of
// channels from the sums of each segment, of rows from sums that each block of rows keeps; merged in order.
#pragma once
#include <algorithm>
#include <cstdint>

#include "element/element.h"
#include "element_view.h"
#include "moments.h"
#include "parallel.h"
#include "plan/rows_plan.h"
#include "rows/columns_loop.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct ElementBackwardKernel : ElementSets<T> {
    using Base = ElementSets<T>;
    using Base::scale, Base::size, Base::wide, Base::x;
    using typename Base::N;
    using typename Base::Parameters;
    using typename Base::Scalar;
    using typename Base::V;

    const ElementBackward& a;
    const T* dz;
    T *dx, *dscale;
    const bool stream;

    explicit ElementBackwardKernel(const ElementBackward& a_)
        : Base(a_), a(a_), dz(static_cast<const T*>(a_.dz)), dx(static_cast<T*>(a_.dx)),
          dscale(static_cast<T*>(a_.dscale)), stream(Base::streams(dx) && Base::streams(dscale)) {}

    bool sums_wanted() const { return a.dweight.data || a.dbias.data; }

    // S dy and S dy * (x - mean) of segment i of a set; of rows with the weight in each term.
    void sums(int64_t set, int64_t i, const Parameters& of, double& total, double& dot) const {
        const double2 mean = both_halves(a.stats[set]), one = both_halves(1.0);
        const int64_t at = set * size + i * a.length;
        const T *gp = dz + at, *sp = scale + at, *xp = x + at;
        const bool weighted = a.rows;
        double2 t = zero2(), d = t;
        auto take = [&](double2 g, double2 s, double2 v, int64_t j) NK_IN_PLACE {
            const double2 dy = g * s * (weighted ? load_wide(of.weight + j) : one);
            t = t + dy;
            d = fma(dy, v - mean, d);
        };
        for_columns(
            0, a.length, [&](int64_t j) { take(N::get_wide(gp + j), N::get_wide(sp + j), N::get_wide(xp + j), j); },
            [&](int64_t j, int64_t n) {
                auto read = [&](const T* p) { return widen(N::get_tail(p, n, N::set(0))); };
                take(read(gp + j), read(sp + j), read(xp + j), j);
            });
        total = sum_lanes(t);
        dot = sum_lanes(d);
    }

    // dx and dscale of a set; total, dot: S w dy, S w dy * (x - mean). columns: (2, wide) sums of rows, or null.
    void write(int64_t set, const Parameters& of, double total, double dot, double* columns) const {
        const double mean = a.stats[set], rstd = a.stats[2 * a.sets + set];
        const Affine<Scalar> f = affine<Scalar>(mean, rstd, 1.0, 0.0);
        const GradientSums found{a.training && !a.rms ? total : 0.0, a.training ? dot * rstd : 0.0};
        const Slope<Scalar> k = slope<Scalar>(mean, rstd, 1.0, found, size);
        const V m = N::set(f.m), rs = N::set(f.scale), off = N::set(f.shift), sb = N::set(k.b), sc = N::set(k.c);
        for (int64_t i = 0; i < a.segments; ++i) {
            Scalar repeated[2][kLanes];
            const auto w = this->beside(of.weight, set, i, repeated[0]), b = this->beside(of.bias, set, i, repeated[1]);
            const int64_t at = set * size + i * a.length, second = wide;
            const T *gp = dz + at, *sp = scale + at, *xp = x + at;
            T *to = dx ? dx + at : nullptr, *to_scale = dscale ? dscale + at : nullptr;
            auto column = [&](int64_t j, auto&& read, auto&& put) NK_IN_PLACE {
                const V g = read(gp + j), dy = g * read(sp + j), centered = read(xp + j) - m;
                const V wj = N::get_constants(w.at(j)), xhat = fma(centered, rs, off);
                if (to) put(to + j, fma(sb, centered * rs, fma(dy * wj, rs, sc)));
                if (to_scale) put(to_scale + j, g * fma(xhat, wj, N::get_constants(b.at(j))));
                if (columns) {
                    store2(columns + j, load2(columns + j) + widen(dy));
                    store2(columns + second + j, load2(columns + second + j) + widen(dy * xhat));
                }
            };
            for_columns(
                0, a.length,
                [&](int64_t j) {
                    column(
                        j, [](const T* p) NK_IN_PLACE { return N::get(p, 0); },
                        [&](T* p, V v) NK_IN_PLACE { stream ? N::put_stream(p, v) : N::put(p, v); });
                },
                [&](int64_t j, int64_t n) {
                    column(
                        j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                        [&](T* p, V v) { N::put_tail(p, v, n); });
                });
        }
    }

    // Both sweeps over a set. segments: (2, segments of all sets), or null.
    void sweep(int64_t set, const Parameters& of, double* segments, double* columns) const {
        double total = 0.0, dot = 0.0;
        const int64_t all = a.sets * a.segments;
        if (a.training || segments)
            for (int64_t i = 0; i < a.segments; ++i) {
                double t, d;
                sums(set, i, of, t, d);
                const double w = a.rows ? 1.0 : a.weight.at(this->parameter_of(set, i), 1.0);
                total += w * t;
                dot += w * d;
                if (!segments) continue;
                segments[set * a.segments + i] = t;
                segments[all + set * a.segments + i] = d * a.stats[2 * a.sets + set];
            }
        if (dx || dscale || columns) write(set, of, total, dot, columns);
    }

    void run(const Parallel& parallel) const {
        const bool summing = sums_wanted(), columns = summing && a.rows, segments = summing && !a.rows;
        const RowsPlan plan = this->plan(columns ? 32 : 1);
        const int64_t all = a.sets * a.segments;
        double* memory = scratch(2 * wide + (columns ? 2 * wide * plan.blocks : segments ? 2 * all : 0));
        const Parameters of = this->parameters_in(memory);
        double* found = memory + 2 * wide;
        parallel(plan.blocks, 3 * a.sets * size * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block) {
                double* of_block = columns ? found + 2 * wide * block : nullptr;
                if (columns) std::fill(of_block, of_block + 2 * wide, 0.0);
                for (int64_t i = plan.begin(block); i < plan.end(block); ++i)
                    sweep(i, of, segments ? found : nullptr, of_block);
            }
            if (stream) stream_fence();
        });
        if (!summing) return;
        const int64_t parts = columns ? plan.blocks : a.sets / a.period;  // what is added up for each parameter
        const int64_t stride = columns ? 2 * wide : this->parameters, second = columns ? wide : all;
        for (int64_t j = 0; j < this->parameters; ++j) {
            double total = 0.0, dot = 0.0;
            for (int64_t part = 0; part < parts; ++part) {
                total += found[part * stride + j];
                dot += found[part * stride + second + j];
            }
            a.dbias.put(j, total);
            a.dweight.put(j, dot);
        }
    }
};

}  // namespace NK_ISA
}  // namespace normkit
