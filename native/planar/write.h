// The sweeps of planar/output.h, one form of them.
#pragma once
#include <cstdint>

#include "plan/planar_plan.h"
#include "planar/block.h"
#include "planar/flat.h"
#include "planar/forward_stretch.h"
#include "planar/output.h"
#include "simd/activation.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T, Act A, bool R> struct PlanarWrite {
    using Stretch = ForwardStretch<T, A, R>;
    using Output = PlanarOutput<T>;
    using Constants = typename PlanarWriters<T>::Constants;
    static constexpr int kVector = Stretch::N::kCount;

    static NK_INLINE void run(const Output& o, const Stretch& stretch, const Rows& at, T* to, bool streaming,
                              int64_t ahead) {
        const T* r = Stretch::after(R ? o.residual : nullptr, at.offset);
        uint8_t* bits = R && o.bits ? o.bits + at.bit_byte : nullptr;
        if (streaming && aligned_for_stream(to))
            stretch.template run<true>(o.x + at.offset, r, to, bits, at.length, ahead);
        else stretch.template run<false>(o.x + at.offset, r, to, bits, at.length, ahead);
    }

    static void rows(const Output& o, const Constants& k, int64_t row, int64_t count, T* to, bool streaming,
                     int64_t ahead) {
        const Shape& s = o.s;
        Rows at{row * s.s, s.s, row * s.bit_row()};
        if (!streaming && !(R && o.bits) && kVector <= s.s && s.s < kShortRow) {
            const T *xp = o.x + at.offset, *r = Stretch::after(R ? o.residual : nullptr, at.offset);
            return for_flat<kVector>(
                count, s.s, up_to_aligned(to), [&](int64_t i) NK_IN_PLACE { return Stretch(o.activation, k, i); },
                [&](const Stretch& here, int64_t i)
                    NK_IN_PLACE { here.template vector<false>(xp + i, Stretch::after(r, i), to + i, nullptr, ahead); },
                [&](const Stretch& here, int64_t i, int64_t n)
                    NK_IN_PLACE { here.tail(xp + i, Stretch::after(r, i), to + i, nullptr, n); });
        }
        for (int64_t i = 0; i < count; ++i) {
            run(o, Stretch(o.activation, k, i), at, to, streaming, ahead);
            at.offset += s.s, at.bit_byte += s.bit_row(), to += s.s;
        }
    }

    static void segments(const Output& o, const Constants& k, int64_t i, const PlanarPlan& plan, int64_t c,
                         int64_t begin, int64_t end, bool streaming, int64_t ahead) {
        const Stretch stretch(o.activation, k, i);
        for (int64_t g = end - 1; g >= begin; --g) {
            const Rows at = segment_at(o.s, plan, c, g);
            run(o, stretch, at, o.y + at.offset, streaming, ahead);
        }
    }
};

}  // namespace NK_ISA
}  // namespace normkit
