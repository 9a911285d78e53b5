// The kernels without Python: every instruction set, element type, layout and odd size, on arrays between forbidden
// pages, with threads of its own, against sums written plainly in double. Built with the sanitizers by `make sanitize`.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "../dispatch.h"
#include "arena.h"

using namespace normkit;

namespace {

int failures = 0;
std::string where;

void check(bool ok, const char* what, double got, double expected) {
    if (ok) return;
    if (++failures <= 20) std::printf("FAILED %s: %s is %.9g, expected %.9g\n", where.c_str(), what, got, expected);
}

int loop_on_threads(int64_t begin, int64_t end, int64_t, RangeFunction body, void* context) {
    const int64_t count = std::min<int64_t>(3, end - begin);
    std::vector<std::thread> threads;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t first = begin + (end - begin) * t / count, last = begin + (end - begin) * (t + 1) / count;
        threads.emplace_back([=] { body(first, last, context); });
    }
    for (std::thread& t : threads) t.join();
    return 0;
}

double read(float v) { return v; }
double read(double v) { return v; }
double read(bf16 v) { return to_float(v); }
double read(f16 v) { return to_float(v); }
void write(float& to, double v) { to = float(v); }
void write(double& to, double v) { to = v; }
void write(bf16& to, double v) { to = to_bf16(float(v)); }
void write(f16& to, double v) { to = to_f16(float(v)); }

template <class T> constexpr int kCode = 0;
template <> constexpr int kCode<double> = kFloat64;
template <> constexpr int kCode<bf16> = kBFloat16;
template <> constexpr int kCode<f16> = kFloat16;
template <class T> constexpr double kRoundoff = 0x1p-24;
template <> constexpr double kRoundoff<double> = 0x1p-40;  // the plain sums are doubles themselves
template <> constexpr double kRoundoff<bf16> = 0x1p-8;
template <> constexpr double kRoundoff<f16> = 0x1p-11;

uint32_t state = 1;
double draw() {  // uniform on [-1, 3), a multiple of 2^-6: exact in every element type
    state = state * 1664525u + 1013904223u;
    return double(state >> 24) / 64.0 - 1.0;
}

// Sizes and places of one norm's tensors: which statistic, and which channel, an element belongs to.
struct Case {
    Shape shape;
    int64_t groups;  // 0: batch norm
    int64_t channel(int64_t i) const { return shape.channels_last ? i % shape.c : i / shape.s % shape.c; }
    int64_t statistic(int64_t i) const {
        return groups == 0 ? channel(i) : i / (shape.c * shape.s) * groups + channel(i) * groups / shape.c;
    }
    int64_t statistics() const { return groups == 0 ? shape.c : shape.n * groups; }
    int64_t count() const { return shape.elements() / statistics(); }
    int64_t bit_bytes() const { return shape.elements() / shape.row() * shape.bit_row(); }
    bool bit(const uint8_t* bits, int64_t i) const {
        const int64_t row = i / shape.row(), at = i % shape.row();
        return bits[row * shape.bit_row() + at / 8] >> (at % 8) & 1;
    }
};

// relu(norm(x) + residual), forward and backward, against plain sums; or relu(norm(x)), whose sign is recomputed.
template <class T> void run(const Kernels& kernels, const Case& k, bool at_end, bool residual) {
    const int64_t e = k.shape.elements(), m = k.count();
    Guarded<T> x(e, at_end), r(e, at_end), y(e, at_end), dy(e, at_end), dx(e, at_end), dr(e, at_end);
    Guarded<float> w(k.shape.c, at_end), b(k.shape.c, at_end), dw(k.shape.c, at_end), db(k.shape.c, at_end);
    Guarded<double> stats(3 * k.statistics(), at_end);
    Guarded<uint8_t> bits(k.bit_bytes(), at_end);
    for (int64_t i = 0; i < e; ++i) write(x[i], draw()), write(r[i], draw()), write(dy[i], draw());
    for (int64_t c = 0; c < k.shape.c; ++c) w[c] = float(draw()), b[c] = float(draw());

    const Parallel parallel{loop_on_threads};
    GroupForward f;
    f.dtype = kCode<T>, f.shape = k.shape, f.groups = k.groups, f.eps = 1e-3, f.activation.code = kRelu;
    f.x = x.data(), f.y = y.data(), f.stats = stats.data();
    if (residual) f.residual = r.data(), f.bits = bits.data();
    f.weight = {w.data(), kFloat32}, f.bias = {b.data(), kFloat32};
    k.groups ? kernels.group_forward(f, parallel) : kernels.channel_forward(f, parallel);
    GroupBackward g;
    g.dtype = kCode<T>, g.shape = k.shape, g.groups = k.groups, g.activation.code = kRelu;
    g.dy = dy.data(), g.x = x.data(), g.stats = stats.data();
    g.weight = f.weight, g.bias = f.bias, g.dx = dx.data();
    if (residual) g.bits = bits.data(), g.dresidual = dr.data();
    g.dweight = {dw.data(), kFloat32}, g.dbias = {db.data(), kFloat32};
    k.groups ? kernels.group_backward(g, parallel) : kernels.channel_backward(g, parallel);

    std::vector<double> mean(k.statistics()), var(k.statistics()), s1(k.statistics()), s2(k.statistics());
    std::vector<double> a1(k.statistics()), a2(k.statistics());  // the same sums of magnitudes
    std::vector<double> dw64(k.shape.c), db64(k.shape.c), size(k.shape.c, 1.0);
    for (int64_t i = 0; i < e; ++i) mean[k.statistic(i)] += read(x[i]) / double(m);
    for (int64_t i = 0; i < e; ++i) var[k.statistic(i)] += std::pow(read(x[i]) - mean[k.statistic(i)], 2) / double(m);
    auto xhat = [&](int64_t i) { return (read(x[i]) - mean[k.statistic(i)]) / std::sqrt(var[k.statistic(i)] + 1e-3); };
    auto open = [&](int64_t i) { return residual ? k.bit(bits.data(), i) : read(y[i]) > 0; };
    auto dz = [&](int64_t i) { return open(i) ? read(dy[i]) : 0.0; };
    for (int64_t i = 0; i < e; ++i) {
        const int64_t c = k.channel(i), s = k.statistic(i);
        s1[s] += w[c] * dz(i) / double(m), s2[s] += w[c] * dz(i) * xhat(i) / double(m);
        a1[s] += std::fabs(w[c] * dz(i)) / double(m), a2[s] += std::fabs(w[c] * dz(i) * xhat(i)) / double(m);
        dw64[c] += dz(i) * xhat(i), db64[c] += dz(i), size[c] += std::fabs(dz(i)) * (1.0 + std::fabs(xhat(i)));
    }
    const double u = kRoundoff<T>;
    for (int64_t i = 0; i < e; ++i) {
        const int64_t c = k.channel(i), s = k.statistic(i);
        const double added = residual ? read(r[i]) : 0.0, z = xhat(i) * w[c] + b[c] + added;
        const double slack = 16 * u * (std::fabs(xhat(i) * w[c]) + std::fabs(b[c]) + std::fabs(added)) + 1e-13;
        check(std::fabs(read(y[i]) - std::max(z, 0.0)) <= slack, "y", read(y[i]), std::max(z, 0.0));
        check(std::fabs(z) <= slack || open(i) == (z > 0), "bit", open(i), z);
        const double rstd = 1 / std::sqrt(var[s] + 1e-3), want = rstd * (w[c] * dz(i) - s1[s] - xhat(i) * s2[s]);
        const double room =
            32 * std::max(u, 0x1p-24) * rstd * (std::fabs(w[c] * dz(i)) + a1[s] + std::fabs(xhat(i)) * a2[s] + 1e-6);
        check(std::fabs(read(dx[i]) - want) <= room, "dx", read(dx[i]), want);
        check(!residual || read(dr[i]) == dz(i), "dresidual", read(dr[i]), dz(i));
    }
    auto check_parameters = [&] {
        for (int64_t c = 0; c < k.shape.c; ++c) {
            check(std::fabs(dw[c] - dw64[c]) <= 0x1p-19 * size[c], "dweight", dw[c], dw64[c]);
            check(std::fabs(db[c] - db64[c]) <= 0x1p-19 * size[c], "dbias", db[c], db64[c]);
        }
    };
    check_parameters();
    if (k.groups) return;
    g.training = false;  // the statistics as constants
    kernels.channel_backward(g, parallel);
    for (int64_t i = 0; i < e; ++i) {
        const double want = w[k.channel(i)] * dz(i) / std::sqrt(var[k.statistic(i)] + 1e-3);
        const double room = 8 * std::max(u, 0x1p-24) * std::fabs(want) + 1e-12;
        check(std::fabs(read(dx[i]) - want) <= room, "frozen dx", read(dx[i]), want);
        check(!residual || read(dr[i]) == dz(i), "frozen dresidual", read(dr[i]), dz(i));
    }
    check_parameters();
}

// Layer norm and RMS norm, forward and backward, against plain sums.
template <class T> void run_layer(const Kernels& kernels, int64_t rows, int64_t width, bool rms, bool at_end) {
    const int64_t e = rows * width;
    Guarded<T> x(e, at_end), y(e, at_end), dy(e, at_end), dx(e, at_end);
    Guarded<float> w(width, at_end), b(width, at_end), dw(width, at_end), db(width, at_end);
    Guarded<double> stats(3 * rows, at_end);
    for (int64_t i = 0; i < e; ++i) write(x[i], draw()), write(dy[i], draw());
    for (int64_t j = 0; j < width; ++j) w[j] = float(draw()), b[j] = rms ? 0.0f : float(draw());
    const Parallel parallel{loop_on_threads};
    LayerForward f;
    f.dtype = kCode<T>, f.rows = rows, f.width = width, f.rms = rms, f.eps = 1e-3;
    f.x = x.data(), f.y = y.data(), f.stats = stats.data(), f.weight = {w.data(), kFloat32};
    if (!rms) f.bias = {b.data(), kFloat32};
    kernels.layer_forward(f, parallel);
    LayerBackward g;
    g.dtype = kCode<T>, g.rows = rows, g.width = width, g.rms = rms;
    g.dy = dy.data(), g.x = x.data(), g.stats = stats.data(), g.weight = f.weight, g.dx = dx.data();
    g.dweight = {dw.data(), kFloat32};
    if (!rms) g.dbias = {db.data(), kFloat32};
    kernels.layer_backward(g, parallel);
    std::vector<double> dw64(width), db64(width), sizes(width, 1e-6);
    for (int64_t r = 0; r < rows; ++r) {
        double mean = 0, var = 0, s1 = 0, s2 = 0, a1 = 0, a2 = 0;  // a1, a2: the sums of magnitudes
        for (int64_t j = 0; j < width; ++j) mean += rms ? 0.0 : read(x[r * width + j]) / double(width);
        for (int64_t j = 0; j < width; ++j) var += std::pow(read(x[r * width + j]) - mean, 2) / double(width);
        const double rstd = 1 / std::sqrt(var + 1e-3);
        auto xhat_of = [&](int64_t j) { return (read(x[r * width + j]) - mean) * rstd; };
        for (int64_t j = 0; j < width; ++j) {
            const double xhat = xhat_of(j), want = xhat * w[j] + b[j];
            const double slack = 16 * kRoundoff<T> * (std::fabs(xhat * w[j]) + std::fabs(b[j])) + 1e-13;
            check(std::fabs(read(y[r * width + j]) - want) <= slack, "layer y", read(y[r * width + j]), want);
            const double g = read(dy[r * width + j]);
            dw64[j] += g * xhat, db64[j] += g, sizes[j] += std::fabs(g) * (1.0 + std::fabs(xhat));
            s1 += rms ? 0.0 : g * w[j] / double(width), s2 += g * w[j] * xhat / double(width);
            a1 += std::fabs(g * w[j]) / double(width), a2 += std::fabs(g * w[j] * xhat) / double(width);
        }
        for (int64_t j = 0; j < width; ++j) {
            const double own = w[j] * read(dy[r * width + j]), want = rstd * (own - s1 - xhat_of(j) * s2);
            const double room = 32 * std::max(kRoundoff<T>, 0x1p-24) * rstd *
                                (std::fabs(own) + a1 + std::fabs(xhat_of(j)) * a2 + 1e-6);
            check(std::fabs(read(dx[r * width + j]) - want) <= room, "layer dx", read(dx[r * width + j]), want);
        }
    }
    for (int64_t j = 0; j < width; ++j) {
        check(std::fabs(dw[j] - dw64[j]) <= 0x1p-19 * sizes[j], "layer dweight", dw[j], dw64[j]);
        if (!rms) check(std::fabs(db[j] - db64[j]) <= 0x1p-19 * sizes[j], "layer dbias", db[j], db64[j]);
    }
}

// An addition in front of the norm: the sum is rounded, its norm and the gradients are those of the sum, to the bit.
template <class T> void run_added(const Kernels& kernels, int64_t rows, int64_t width, bool rms, bool at_end) {
    const int64_t e = rows * width;
    Guarded<T> x(e, at_end), r(e, at_end), sum(e, at_end), y(e, at_end), of_sum(e, at_end);
    Guarded<T> dy(e, at_end), dsum(e, at_end), dx(e, at_end), alone(e, at_end);
    Guarded<double> stats(3 * rows, at_end);
    for (int64_t i = 0; i < e; ++i)
        write(x[i], draw()), write(r[i], draw()), write(dy[i], draw()), write(dsum[i], draw());
    const Parallel parallel{loop_on_threads};
    LayerForward f;
    f.dtype = kCode<T>, f.rows = rows, f.width = width, f.rms = rms, f.eps = 1e-3;
    f.x = x.data(), f.residual = r.data(), f.sum = sum.data(), f.y = y.data(), f.stats = stats.data();
    kernels.layer_forward(f, parallel);
    f.x = sum.data(), f.residual = nullptr, f.sum = nullptr, f.y = of_sum.data();
    kernels.layer_forward(f, parallel);
    LayerBackward g;
    g.dtype = kCode<T>, g.rows = rows, g.width = width, g.rms = rms;
    g.dy = dy.data(), g.x = sum.data(), g.stats = stats.data(), g.dx = alone.data();
    kernels.layer_backward(g, parallel);
    g.dsum = dsum.data(), g.dx = dx.data();
    kernels.layer_backward(g, parallel);
    for (int64_t i = 0; i < e; ++i) {
        T want;
        write(want, read(x[i]) + read(r[i]));
        check(read(sum[i]) == read(want), "sum", read(sum[i]), read(want));
        check(read(y[i]) == read(of_sum[i]), "added y", read(y[i]), read(of_sum[i]));
        write(want, read(alone[i]) + read(dsum[i]));
        check(read(dx[i]) == read(want), "added dx", read(dx[i]), read(want));
    }
}

template <class T> void run_all(const Kernels& kernels, const char* type) {
    std::vector<Case> cases;
    for (int64_t odd = 1; odd <= 130; odd += odd < 35 ? 1 : 19) {
        cases.push_back({{2, 3, odd, false}, 0});
        cases.push_back({{3, odd, 5, true}, 0});
        cases.push_back({{odd, 3, 7, false}, 0});
        cases.push_back({{2, 4, odd, false}, 2});
        cases.push_back({{2, 2 * odd, 3, true}, 2});
        cases.push_back({{3, odd, 5, odd % 2 == 0}, odd});
    }
    cases.push_back({{2, 2, 20001, false}, 0});                      // parts and segments
    cases.push_back({{11, 3, 16, false}, 0});                        // short rows of several samples together
    cases.push_back({{3, 37, 700, true}, 0});                        // blocks of rows
    cases.push_back({{1, 4, 20001, false}, 2});                      // parts of a slab
    cases.push_back({{2, 36, 1500, true}, 4});                       // blocks of a sample
    if (sizeof(T) == 4) cases.push_back({{7, 40, 14000, true}, 4});  // more samples than are in flight
    for (const Case& k : cases)
        for (bool at_end : {false, true}) {
            where = std::string(kernels.name) + " " + type + " (" + std::to_string(k.shape.n) + ", " +
                    std::to_string(k.shape.c) + ", " + std::to_string(k.shape.s) + ")" +
                    (k.shape.channels_last ? " channels last" : "") + " groups " + std::to_string(k.groups);
            run<T>(kernels, k, at_end, true);
            run<T>(kernels, k, at_end, false);
        }
    for (int64_t width = 1; width <= 130; width += width < 35 ? 1 : 19)
        for (bool rms : {false, true}) {
            where = std::string(kernels.name) + " " + type + " rows of " + std::to_string(width) + (rms ? " rms" : "");
            run_layer<T>(kernels, 7, width, rms, true);
            run_layer<T>(kernels, 9, width, rms, false);
            run_layer<T>(kernels, 70, width, rms, true);
            run_added<T>(kernels, 7, width, rms, width % 2 == 0);
        }
    where = std::string(kernels.name) + " " + type + " long rows";
    run_layer<T>(kernels, 1, 33333, false, true);   // parts of a row, tiles of columns
    run_layer<T>(kernels, 66, 16401, true, false);  // two chunks of rows
    run_added<T>(kernels, 66, 16401, false, true);
}

}  // namespace

#include "element.h"

namespace {

template <class T> void run_type(const Kernels& kernels, const char* type) {
    run_all<T>(kernels, type);
    run_elements<T>(kernels, type);
}

}  // namespace

int main() {
    for (const char* name : {"baseline", "avx2", "avx512", "neon"}) {
        const char* problem = "";
        const Kernels* kernels = choose_kernels(name, &problem);
        if (kernels == nullptr) {
            std::printf("%s: skipped, %s\n", name, problem);
            continue;
        }
        run_type<float>(*kernels, "float32");
        run_type<double>(*kernels, "float64");
        run_type<bf16>(*kernels, "bfloat16");
        run_type<f16>(*kernels, "float16");
        std::printf("%s: %s\n", name, failures ? "failed" : "passed");
    }
    return failures ? 1 : 0;
}
