// A modulation per element, the forward: each set is summed, and written while it is still in cache.
#pragma once
#include <algorithm>
#include <cstdint>

#include "element/element.h"
#include "element_view.h"
#include "moments.h"
#include "parallel.h"
#include "plan/rows_plan.h"
#include "rows/columns_loop.h"
#include "rows/row_sums.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct ElementForwardKernel : ElementSets<T> {
    using Base = ElementSets<T>;
    using Base::scale, Base::size, Base::x;
    using typename Base::N;
    using typename Base::Parameters;
    using typename Base::Scalar;
    using typename Base::V;

    const ElementForward& a;
    const T* shift;
    T* z;
    const bool stream;

    explicit ElementForwardKernel(const ElementForward& a_)
        : Base(a_), a(a_), shift(static_cast<const T*>(a_.shift)), z(static_cast<T*>(a_.z)), stream(Base::streams(z)) {}

    Statistics statistics(int64_t set) const {
        if (a.mean.data) {
            const double var = a.var.at(set % a.period, 1.0);
            return {a.mean.at(set % a.period, 0.0), var, rstd_of(var, a.eps)};
        }
        const T* p = x + set * size;
        const double k = a.rms ? 0.0 : median_of_three(value_of(p[0]), value_of(p[size / 2]), value_of(p[size - 1]));
        Sums sums;
        row_sums(RowRead<T>{p}, 0, size, k, fetch_distance<T>(0),
                 [&](double2 sum, double2 squares) { sums = {sum_lanes(sum), sum_lanes(squares)}; });
        if (!a.rms) return finish(sums, k, size, a.eps);
        const double square = sums.squares / double(size);
        return {0.0, square, rstd_of(square, a.eps)};
    }

    void write(int64_t set, const Statistics& st, const Parameters& of) const {
        const Affine<Scalar> f = affine<Scalar>(st.mean, st.rstd, 1.0, 0.0);
        const V m = N::set(f.m), rs = N::set(f.scale), off = N::set(f.shift);
        for (int64_t i = 0; i < a.segments; ++i) {
            Scalar repeated[2][kLanes];
            const auto w = this->beside(of.weight, set, i, repeated[0]), b = this->beside(of.bias, set, i, repeated[1]);
            const int64_t at = set * size + i * a.length;
            const T *xp = x + at, *sp = scale + at, *tp = shift + at;
            T* to = z + at;
            auto column = [&](int64_t j, auto&& read) NK_IN_PLACE {
                const V xhat = fma(read(xp + j) - m, rs, off);
                const V y = fma(xhat, N::get_constants(w.at(j)), N::get_constants(b.at(j)));
                return fma(read(sp + j), y, read(tp + j));
            };
            for_columns(
                0, a.length,
                [&](int64_t j) {
                    const V v = column(j, [](const T* p) NK_IN_PLACE { return N::get(p, 0); });
                    stream ? N::put_stream(to + j, v) : N::put(to + j, v);
                },
                [&](int64_t j, int64_t n) {
                    N::put_tail(to + j, column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); }), n);
                });
        }
    }

    void run(const Parallel& parallel) const {
        const Parameters of = this->parameters_in(scratch(2 * this->wide));
        const RowsPlan plan = this->plan(1);
        parallel(plan.blocks, 3 * a.sets * size * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            for (int64_t set = plan.begin(begin), last = plan.end(end - 1); set < last; ++set) {
                const Statistics st = statistics(set);
                write_statistics(a.stats, set, a.sets, st);
                write(set, st, of);
            }
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
