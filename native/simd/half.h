// A part of simd.h: one register of 16 bytes. half_sse2.h, half_neon.h and half_generic.h have what it does.
#pragma once

namespace normkit {
namespace NK_ISA {

typedef float half_vf __attribute__((vector_size(16)));
typedef double half_vd __attribute__((vector_size(16)));
typedef int32_t half_maskf __attribute__((vector_size(16)));
typedef int64_t half_maskd __attribute__((vector_size(16)));
typedef uint32_t half_words __attribute__((vector_size(16)));

NK_INLINE half_vf read_half(const float* p) {
    half_vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
NK_INLINE half_vd read_half(const double* p) {
    half_vd v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
// Choices by bits: of the compiler's ?: GCC makes one lane at a time.
NK_INLINE half_vf select(half_maskf m, half_vf yes, half_vf no) {
    return (half_vf)(((half_maskf)yes & m) | ((half_maskf)no & ~m));
}
NK_INLINE half_vd select(half_maskd m, half_vd yes, half_vd no) {
    return (half_vd)(((half_maskd)yes & m) | ((half_maskd)no & ~m));
}
NK_INLINE half_words select(half_words m, half_words yes, half_words no) { return (yes & m) | (no & ~m); }

}  // namespace NK_ISA
}  // namespace normkit
