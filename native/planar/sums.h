// The sums of one channel while its rows are swept, and those of a block of channels.
#pragma once
#include <cstdint>

#include "moments.h"
#include "plan/planar_plan.h"
#include "simd/columns.h"
#include "simd/lane_sums.h"
#include "simd/lanes.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

// Two sums of one channel as lanes: S a and S a' * b. Even and odd rows apart, so that no addition waits for the last.
struct LaneSums {
    double2 total0 = zero2(), total1 = zero2(), dot0 = zero2(), dot1 = zero2();

    template <int U> NK_INLINE void add(double2 v, double2 a, double2 b) {
        if constexpr (U % 2 == 0) total0 = total0 + v, dot0 = fma(a, b, dot0);
        else total1 = total1 + v, dot1 = fma(a, b, dot1);
    }
    template <int U> NK_INLINE void add_low(vd v, vd a, vd b) {  // a tail of at most kDoubles elements
        if constexpr (U % 2 == 0) total0.a = total0.a + v, dot0.a = fma(a, b, dot0.a);
        else total1.a = total1.a + v, dot1.a = fma(a, b, dot1.a);
    }
    template <int kRows = 2> NK_INLINE vd total() const {
        return kRows == 1 ? total0.a + total0.b : (total0.a + total0.b) + (total1.a + total1.b);
    }
    template <int kRows = 2> NK_INLINE vd dot() const {
        return kRows == 1 ? dot0.a + dot0.b : (dot0.a + dot0.b) + (dot1.a + dot1.b);
    }
    Sums sums() const { return {sum_lanes(total()), sum_lanes(dot())}; }
};

// The two sums of up to kGroupMax channels: vectors while their rows are swept, then a number each.
struct BlockSums {
    vd total_lanes[kGroupMax], dot_lanes[kGroupMax];
    double total[kGroupMax], dot[kGroupMax];

    explicit BlockSums(int64_t channels) {
        for (int64_t c = 0; c < padded(channels); c += kDoubles) store(total + c, set1(0.0)), store(dot + c, set1(0.0));
        for (int64_t c = 0; c < whole(channels); ++c) total_lanes[c] = dot_lanes[c] = set1(0.0);
    }
    template <int kRows> NK_INLINE void add(int64_t c, const LaneSums& sums) {
        total_lanes[c] = total_lanes[c] + sums.total<kRows>();
        dot_lanes[c] = dot_lanes[c] + sums.dot<kRows>();
    }
    void close(int64_t channels) {
        sums_across(total_lanes, whole(channels), total);
        sums_across(dot_lanes, whole(channels), dot);
    }
    static int64_t whole(int64_t channels) { return (channels + kDoubles - 1) / kDoubles * kDoubles; }
};

// The median in vectors, which know no branches: on random data those of a scalar one are mispredicted.
NK_INLINE double median_in_lanes(double a, double b, double c) {
    return first_lane(median_of_three(set1(a), set1(b), set1(c)));
}

}  // namespace NK_ISA
}  // namespace normkit
