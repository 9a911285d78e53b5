// Layer and RMS norm on tensors: statistics per row, parameters per element of a row, or of a row in each of several
// blocks of consecutive rows (a modulation per sample): then a call of the kernels for each block, whose statistics
// (3, rows of a block) lie one after the other.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "edge.h"
#include "kernels_in_use.h"
#include "parallel.h"
#include "tensor.h"
#include "view.h"

namespace normkit {

struct LayerOutput {
    Tensor y, stats, sum;  // stats may be nothing; the sum where there is a residual, row-major
};

struct LayerGradients {
    Tensor input, weight, bias;  // nothing where not needed
};

// Rows of `width` elements, checked: x as it came and row-major.
struct LayerOperands {
    Tensor given, x, weight, bias, residual;
    int64_t width, rows = 0, blocks = 1;
    bool rms;

    LayerOperands(const Edge& edge, const Tensor& x_, int64_t width_, bool rms_, nb::handle weight_, nb::handle bias_,
                  nb::handle residual_ = nb::handle(Py_None))
        : given(x_), width(width_), rms(rms_) {
        if (!given || width < 0 || (width == 0 ? given.elements() != 0 : given.elements() % width != 0))
            edge.refuse(PyExc_RuntimeError, "input", " must have rows of " + std::to_string(width) + " elements");
        if (width > 0) rows = given.elements() / width;
        x = given.contiguous();
        weight = edge.any(weight_, "weight");
        bias = edge.any(bias_, "bias");
        blocks = std::max(blocks_of(weight), blocks_of(bias));
        weight = edge.vector(std::move(weight), blocks * width, "weight");
        bias = edge.vector(std::move(bias), blocks * width, "bias");
        residual = edge.like(residual_, x, "residual");
    }

    // How many blocks of rows a parameter (blocks, ..., width) is for.
    int64_t blocks_of(const Tensor& parameter) const {
        if (!parameter || parameter.rank() < 2 || width == 0 || parameter.elements() % width != 0) return 1;
        const int64_t found = parameter.elements() / width;
        return found > 1 && rows % found == 0 ? found : 1;
    }

    // run(call, parallel) for each block of a call that was described for all rows.
    template <class Call, class Run> void each_block(const Call& call, const Run& run) const {
        if (blocks == 1) return run(call, parallel);
        // Threads take whole blocks where there are enough for all, else each block by itself. By numbers of the shape
        // alone; a row's result is the same in either way.
        const bool apart = blocks >= kBlocksApart;
        const Parallel alone;
        auto body = [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) run(block(call, i), apart ? alone : parallel);
        };
        if (apart) parallel(blocks, x.bytes(), body);
        else body(0, blocks);
    }

    template <class Call> void describe(Call& call) const {
        call.dtype = x.dtype();
        call.width = width;
        call.rows = rows;
        call.rms = rms;
        call.x = x.data();
        call.weight = weight.param();
    }

  private:
    static constexpr int64_t kBlocksApart = 32;  // a few for each thread of most pools; below, threads share each block

    // The call for block i alone.
    LayerForward block(const LayerForward& call, int64_t i) const {
        LayerForward one = call;
        first_rows(one, i);
        const int64_t at = i * one.rows * width * x.element_bytes();
        one.residual = moved(call.residual, at);
        one.sum = moved(call.sum, at);
        one.y = moved(call.y, at);
        one.bias.data = moved(call.bias.data, i * width * bias.element_bytes());
        if (call.stats) one.stats = call.stats + 3 * i * one.rows;
        return one;
    }
    LayerBackward block(const LayerBackward& call, int64_t i) const {
        LayerBackward one = call;
        first_rows(one, i);
        const int64_t at = i * one.rows * width * x.element_bytes();
        one.dy = moved(call.dy, at);
        one.dsum = moved(call.dsum, at);
        one.dx = moved(call.dx, at);
        one.dweight.data = moved(call.dweight.data, i * width * weight.element_bytes());
        one.dbias.data = moved(call.dbias.data, i * width * bias.element_bytes());
        one.stats = call.stats + 3 * i * one.rows;
        return one;
    }
    template <class Call> void first_rows(Call& one, int64_t i) const {
        one.rows = rows / blocks;
        one.rows_of_all = rows;
        one.x = moved(one.x, i * one.rows * width * x.element_bytes());
        one.weight.data = moved(one.weight.data, i * width * weight.element_bytes());
    }
    static const void* moved(const void* data, int64_t bytes) {
        return data ? static_cast<const char*>(data) + bytes : nullptr;
    }
    static void* moved(void* data, int64_t bytes) { return data ? static_cast<char*>(data) + bytes : nullptr; }

  public:
    // RMS norm keeps the input's memory format, as torch's operations do; layer norm is row-major, as torch's is.
    Tensor in_layout(const Tensor& row_major) const {
        if (!rms || given.is_contiguous()) return row_major;
        Tensor like_input = Tensor::empty_like(given);
        if (like_input.is_contiguous()) return row_major;
        like_input.fill(row_major);
        return like_input;
    }

    // The derivative where each value is its own mean: 0, and NaN where an operand is not finite.
    Tensor no_gradient(const Tensor& dy, const Tensor& dsum) const {
        const nb::object a = x.object(), b = dy.object(), none = (a - a) * (b - b);
        return Tensor::made(dsum ? none + dsum.object() : none);
    }
};

inline LayerOutput layer_forward(const LayerOperands& of, double eps, bool save, bool as_bytes = false) {
    LayerOutput made{Tensor::empty_like(of.x), {}, {}};
    auto& [y, stats, sum] = made;
    if (of.residual) sum = Tensor::empty_like(of.x);
    if (save) stats = Tensor::statistics(of.rows, 1, as_bytes);
    if (of.rows) {
        LayerForward a;
        of.describe(a);
        a.residual = of.residual.data();
        a.sum = sum.data();
        a.y = y.data();
        a.bias = of.bias.param();
        a.stats = stats.data<double>();
        a.eps = eps;
        without_gil(of.x.bytes(), [&] {
            of.each_block(a, [](const LayerForward& one, const Parallel& by) { kernels->layer_forward(one, by); });
        });
    }
    y = of.in_layout(y);
    return made;
}

// dy, dsum: row-major, as x; dsum, added to the input's gradient, may be nothing.
inline LayerGradients layer_backward(const LayerOperands& of, const Tensor& dy, const Tensor& dsum, const Tensor& stats,
                                     bool need_input, bool need_weight, bool need_bias) {
    LayerGradients made;
    auto& [dx, dweight, dbias] = made;
    const bool constant = !of.rms && of.width == 1;
    if (need_input && !constant) dx = Tensor::empty_like(of.x);
    if (need_weight && of.weight) dweight = Tensor::gradient_of(of.weight);
    if (need_bias && of.bias) dbias = Tensor::gradient_of(of.bias);
    if (of.rows == 0) {
        dweight.zero();
        dbias.zero();
    } else {
        LayerBackward a;
        of.describe(a);
        a.dy = dy.data();
        a.dsum = dsum.data();
        a.stats = stats.data<const double>();
        a.dx = dx.data();
        a.dweight = dweight.mutable_param();
        a.dbias = dbias.mutable_param();
        without_gil(2 * of.x.bytes(), [&] {
            of.each_block(a, [](const LayerBackward& one, const Parallel& by) { kernels->layer_backward(one, by); });
        });
    }
    if (need_input) dx = constant ? of.no_gradient(dy, dsum) : of.in_layout(dx);
    return made;
}

}  // namespace normkit
