// A part of simd.h: what one register does on NEON: every 64-bit ARM. float16 is converted by instructions that they all have; bfloat16
// by the integer operations of half.h, since the instruction for it came with ARMv8.6.
#pragma once

namespace normkit {
namespace NK_ISA {

NK_INLINE half_vf fma(half_vf a, half_vf b, half_vf c) {
    return (half_vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
NK_INLINE half_vd fma(half_vd a, half_vd b, half_vd c) {
    return (half_vd)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
// Greater-than is "not less or equal": a NaN counts as greater, so relu and its gradient let it through.
NK_INLINE half_maskf greater(half_vf a, half_vf b) { return ~(half_maskf)vcleq_f32((float32x4_t)a, (float32x4_t)b); }
NK_INLINE half_maskd greater(half_vd a, half_vd b) { return ~(half_maskd)vcleq_f64((float64x2_t)a, (float64x2_t)b); }
NK_INLINE half_vf at_least(half_vf x, half_vf least) {  // NaN where one is
    return (half_vf)vmaxq_f32((float32x4_t)x, (float32x4_t)least);
}
NK_INLINE half_vf at_most(half_vf x, half_vf most) { return (half_vf)vminq_f32((float32x4_t)x, (float32x4_t)most); }
NK_INLINE uint32_t to_bits(half_maskf m) {
    const half_maskf lane = {1, 2, 4, 8};
    return vaddvq_u32((uint32x4_t)(m & lane));
}
NK_INLINE uint32_t to_bits(half_maskd m) {
    const half_maskd lane = {1, 2};
    return uint32_t(vaddvq_u64((uint64x2_t)(m & lane)));
}
NK_INLINE void stream(float* p, half_vf v) { std::memcpy(p, &v, sizeof v); }
NK_INLINE void stream(double* p, half_vd v) { std::memcpy(p, &v, sizeof v); }
NK_INLINE half_vd low_doubles(half_vf v) { return (half_vd)vcvt_f64_f32(vget_low_f32((float32x4_t)v)); }
NK_INLINE half_vd high_doubles(half_vf v) { return (half_vd)vcvt_high_f64_f32((float32x4_t)v); }
NK_INLINE half_vf as_floats(half_vd lo, half_vd hi) {
    return (half_vf)vcvt_high_f32_f64(vcvt_f32_f64((float64x2_t)lo), (float64x2_t)hi);
}

// Four of eight words of 16 bits, and back: the lower 16 bits of each lane.
NK_INLINE uint16x4_t read_words(const void* p) {
    uint16x4_t v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
NK_INLINE half_words low_words(const void* p) { return (half_words)vmovl_u16(read_words(p)); }
NK_INLINE half_words high_words(const void* p) { return low_words((const char*)p + 8); }
NK_INLINE void put_words(void* p, half_words lo, half_words hi) {
    const uint16x8_t v = vcombine_u16(vmovn_u32((uint32x4_t)lo), vmovn_u32((uint32x4_t)hi));
    std::memcpy(p, &v, sizeof v);
}
NK_INLINE half_vf low_from_f16(const void* p) { return (half_vf)vcvt_f32_f16(vreinterpret_f16_u16(read_words(p))); }
NK_INLINE half_vf high_from_f16(const void* p) { return low_from_f16((const char*)p + 8); }
NK_INLINE void put_f16(void* p, half_vf lo, half_vf hi) {
    const float16x8_t v = vcombine_f16(vcvt_f16_f32((float32x4_t)lo), vcvt_f16_f32((float32x4_t)hi));
    std::memcpy(p, &v, sizeof v);
}

}  // namespace NK_ISA
}  // namespace normkit
