// What a kernel call is made of: plain structs of pointers and sizes. All sizes and offsets are int64 elements.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace normkit {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

enum Activation : int {
    kIdentity = 0, kRelu = 1, kLeakyRelu = 2, kRelu6 = 3, kSilu = 4, kGelu = 5,
    kGeluTanh = 6, kSigmoid = 7, kTanh = 8, kHardswish = 9, kHardsigmoid = 10, kElu = 11,
    kMish = 12,
};

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

inline float to_float(bf16 v) {
    uint32_t u = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}

inline float to_float(f16 v) {
    uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, body = v.bits & 0x7fffu, u;
    float f;
    if (body >= 0x7c00u) {  // Inf and NaN
        u = sign | 0x7f800000u | ((body & 0x3ffu) << 13);
    } else {  // the exponent bias is corrected by a multiplication, which also normalizes subnormals
        uint32_t shifted = body << 13;
        std::memcpy(&f, &shifted, 4);
        f *= 0x1p112f;
        std::memcpy(&u, &f, 4);
        u |= sign;
    }
    std::memcpy(&f, &u, 4);
    return f;
}

inline bf16 to_bf16(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{uint16_t((u >> 16) | 0x40u)};
    return bf16{uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

inline f16 to_f16(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    uint32_t sign = (u >> 16) & 0x8000u, body = u & 0x7fffffffu;
    if (body > 0x7f800000u) return f16{uint16_t(sign | 0x7e00u)};
    if (body >= 0x477ff000u) return f16{uint16_t(sign | 0x7c00u)};  // rounds to 65536 or more
    if (body < 0x38800000u) {  // subnormal in half: adding 0.5 lines the bits up and rounds to nearest even
        float g;
        std::memcpy(&g, &body, 4);
        g += 0.5f;
        std::memcpy(&u, &g, 4);
        return f16{uint16_t(sign | (u - 0x3f000000u))};
    }
    return f16{uint16_t(sign | ((body - 0x38000000u + 0xfffu + ((body >> 13) & 1u)) >> 13))};
}

// A per-channel parameter of any dtype; absent when data is null.
struct Param {
    const void* data = nullptr;
    int dtype = kFloat32;

    double at(int64_t i, double absent) const {
        if (data == nullptr) return absent;
        switch (dtype) {
            case kFloat64: return static_cast<const double*>(data)[i];
            case kBFloat16: return to_float(static_cast<const bf16*>(data)[i]);
            case kFloat16: return to_float(static_cast<const f16*>(data)[i]);
            default: return static_cast<const float*>(data)[i];
        }
    }
};

struct MutableParam {
    void* data = nullptr;
    int dtype = kFloat32;

    void put(int64_t i, double v) const {
        if (data == nullptr) return;
        switch (dtype) {
            case kFloat64: static_cast<double*>(data)[i] = v; break;
            case kBFloat16: static_cast<bf16*>(data)[i] = to_bf16(float(v)); break;
            case kFloat16: static_cast<f16*>(data)[i] = to_f16(float(v)); break;
            default: static_cast<float*>(data)[i] = float(v);
        }
    }
};

// (N, C, S): S is the product of the spatial sizes. channels_last: memory order is (N, S, C).
struct Shape {
    int64_t n = 0, c = 0, s = 0;
    bool channels_last = false;
    int64_t count() const { return n * s; }
    int64_t elements() const { return n * c * s; }
    int64_t row() const { return channels_last ? c : s; }                 // elements of one memory row
    int64_t bit_row() const { return (row() + 7) / 8; }                   // bytes of one row of sign bits
};

struct ActivationSpec {
    int code = kIdentity;
    double param = 0.0;
};

// y = activation((x - mean) * rstd * weight + bias + residual); statistics per channel, over N and S.
struct ChannelForward {
    int dtype = kFloat32;
    Shape shape;
    const void* x = nullptr;
    const void* residual = nullptr;
    void* y = nullptr;        // absent: the statistics alone
    uint8_t* bits = nullptr;  // one row of bit_row() bytes per memory row
    Param weight, bias;
    Param mean, var;          // given statistics; absent: computed from x
    double* stats = nullptr;  // (3, C): mean, biased variance, rstd
    double eps = 0.0;
    ActivationSpec activation;
};

struct ChannelBackward {
    int dtype = kFloat32;
    Shape shape;
    const void* dy = nullptr;
    const void* x = nullptr;
    const void* residual = nullptr;
    const uint8_t* bits = nullptr;
    Param weight, bias;
    const double* stats = nullptr;
    void* dx = nullptr;
    void* dresidual = nullptr;
    MutableParam dweight, dbias;
    bool training = true;  // false: the statistics are constants
    int64_t count = 0;     // values of which each channel's statistics are; 0: all. dy is 0 where the others are
    ActivationSpec activation;
    int64_t values() const { return count > 0 ? count : shape.count(); }
};

// The same with statistics per sample and group of C / groups channels. stats: (3, N * groups).
struct GroupForward : ChannelForward {
    int64_t groups = 1;
};

struct GroupBackward : ChannelBackward {
    int64_t groups = 1;
};

// Rows of `width` elements, each with its own statistics; weight, bias: (width,). rms: no mean, no bias.
// stats: (3, rows): mean (zero for rms), biased variance (mean square for rms), rstd.
// residual: what is normalized is x + residual, rounded to the dtype; the forward writes it to `sum`, which is the
// backward's x. dsum: the gradient that reaches the sum otherwise, added to dx once that is rounded.
// rows_of_all: where the rows are one block of several, how many rows all blocks write.
struct LayerForward {
    int dtype = kFloat32;
    int64_t rows = 0, width = 0;
    bool rms = false;
    const void* x = nullptr;
    const void* residual = nullptr;
    void* sum = nullptr;
    void* y = nullptr;
    Param weight, bias;
    double* stats = nullptr;
    double eps = 0.0;
    int64_t rows_of_all = 0;
};

struct LayerBackward {
    int dtype = kFloat32;
    int64_t rows = 0, width = 0;
    bool rms = false;
    const void* dy = nullptr;
    const void* dsum = nullptr;
    const void* x = nullptr;
    Param weight;
    const double* stats = nullptr;
    void* dx = nullptr;
    MutableParam dweight, dbias;
    int64_t rows_of_all = 0;
};

}  // namespace normkit
