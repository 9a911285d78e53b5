// A scale and a shift for each element after a norm, against sums written plainly in double. Part of main.cpp.
#pragma once

namespace {

// n samples of `period` sets, each of `segments` of `length`; rows: n * period of them. given: by statistics of channels.
struct ElementCase {
    int64_t n, period, segments, length;
    bool rows, rms, given;
};

template <class T> void run_element(const Kernels& kernels, const ElementCase& k, bool at_end) {
    const int64_t sets = k.n * k.period, size = k.segments * k.length, e = sets * size;
    const int64_t parameters = k.rows ? k.length : k.period * k.segments;
    Guarded<T> x(e, at_end), scale(e, at_end), shift(e, at_end), z(e, at_end), dz(e, at_end), dx(e, at_end);
    Guarded<T> dscale(e, at_end);
    Guarded<float> w(parameters, at_end), b(parameters, at_end), dw(parameters, at_end), db(parameters, at_end);
    Guarded<float> mean(k.period, at_end), var(k.period, at_end);
    Guarded<double> stats(3 * sets, at_end);
    for (int64_t i = 0; i < e; ++i)
        write(x[i], draw()), write(scale[i], draw()), write(shift[i], draw()), write(dz[i], draw());
    for (int64_t j = 0; j < parameters; ++j) w[j] = float(draw()), b[j] = float(draw());
    for (int64_t j = 0; j < k.period; ++j) mean[j] = float(draw()), var[j] = float(draw()) + 1.5f;

    const Parallel parallel{loop_on_threads};
    auto describe = [&](ElementCall& call) {
        call.dtype = kCode<T>, call.sets = sets, call.period = k.period, call.segments = k.segments;
        call.length = k.length, call.rows = k.rows, call.rms = k.rms, call.x = x.data(), call.scale = scale.data();
        call.weight = {w.data(), kFloat32}, call.bias = {b.data(), kFloat32};
    };
    ElementForward f;
    describe(f);
    f.shift = shift.data(), f.z = z.data(), f.stats = stats.data(), f.eps = 1e-3;
    if (k.given) f.mean = {mean.data(), kFloat32}, f.var = {var.data(), kFloat32};
    kernels.element_forward(f, parallel);
    ElementBackward g;
    describe(g);
    g.dz = dz.data(), g.stats = stats.data(), g.dx = dx.data(), g.dscale = dscale.data(), g.training = !k.given;
    g.dweight = {dw.data(), kFloat32}, g.dbias = {db.data(), kFloat32};
    kernels.element_backward(g, parallel);

    std::vector<double> dw64(parameters), db64(parameters), sizes(parameters, 1e-6);
    const double u = kRoundoff<T>, v = std::max(u, 0x1p-24);
    for (int64_t set = 0; set < sets; ++set) {
        auto at = [&](int64_t i) { return set * size + i; };
        auto parameter = [&](int64_t i) { return k.rows ? i : set % k.period * k.segments + i / k.length; };
        double m = k.given ? double(mean[set % k.period]) : 0.0, q = k.given ? double(var[set % k.period]) : 0.0;
        for (int64_t i = 0; i < size && !k.given && !k.rms; ++i) m += read(x[at(i)]) / double(size);
        for (int64_t i = 0; i < size && !k.given; ++i) q += std::pow(read(x[at(i)]) - m, 2) / double(size);
        const double rstd = 1 / std::sqrt(q + 1e-3);
        double s1 = 0, s2 = 0, a1 = 0, a2 = 0;
        for (int64_t i = 0; i < size; ++i) {
            const double xhat = (read(x[at(i)]) - m) * rstd, dy = read(dz[at(i)]) * read(scale[at(i)]);
            const double wi = w[parameter(i)], bi = b[parameter(i)], y = xhat * wi + bi;
            const double want = read(scale[at(i)]) * y + read(shift[at(i)]);
            const double terms = std::fabs(xhat * wi) + std::fabs(bi), s = std::fabs(read(scale[at(i)]));
            const double slack = 16 * u * (s * terms + std::fabs(read(shift[at(i)]))) + 1e-13;
            check(std::fabs(read(z[at(i)]) - want) <= slack, "z", read(z[at(i)]), want);
            const double d = read(dz[at(i)]) * y;
            check(std::fabs(read(dscale[at(i)]) - d) <= 16 * v * std::fabs(read(dz[at(i)])) * terms + 1e-13, "dscale",
                  read(dscale[at(i)]), d);
            s1 += k.rms ? 0.0 : wi * dy / double(size), s2 += wi * dy * xhat / double(size);
            a1 += std::fabs(wi * dy) / double(size), a2 += std::fabs(wi * dy * xhat) / double(size);
            dw64[parameter(i)] += dy * xhat, db64[parameter(i)] += dy;
            sizes[parameter(i)] += std::fabs(dy) * (1.0 + std::fabs(xhat));
        }
        for (int64_t i = 0; i < size; ++i) {
            const double xhat = (read(x[at(i)]) - m) * rstd;
            const double dxhat = read(dz[at(i)]) * read(scale[at(i)]) * w[parameter(i)];
            const double want = rstd * (dxhat - (k.given ? 0.0 : s1 + xhat * s2));
            const double room = 32 * v * rstd * (std::fabs(dxhat) + a1 + std::fabs(xhat) * a2 + 1e-6);
            check(std::fabs(read(dx[at(i)]) - want) <= room, "element dx", read(dx[at(i)]), want);
        }
    }
    for (int64_t j = 0; j < parameters; ++j) {
        check(std::fabs(dw[j] - dw64[j]) <= 0x1p-19 * sizes[j], "element dweight", dw[j], dw64[j]);
        check(std::fabs(db[j] - db64[j]) <= 0x1p-19 * sizes[j], "element dbias", db[j], db64[j]);
    }
}

template <class T> void run_elements(const Kernels& kernels, const char* type) {
    for (int64_t length = 1; length <= 130; length += length < 35 ? 1 : 19) {
        where = std::string(kernels.name) + " " + type + " elements " + std::to_string(length);
        for (bool at_end : {false, true}) {
            run_element<T>(kernels, {3, 2, 3, length, false, false, false}, at_end);
            run_element<T>(kernels, {3, 5, 1, length, false, false, true}, at_end);
            run_element<T>(kernels, {7, 1, 1, length, true, false, false}, at_end);
            run_element<T>(kernels, {70, 1, 1, length, true, true, false}, at_end);
        }
    }
    where = std::string(kernels.name) + " " + type + " many elements";
    run_element<T>(kernels, {2, 3, 2, 20001, false, false, false}, true);
    run_element<T>(kernels, {700, 1, 1, 700, true, false, false}, false);  // blocks of rows
}

}  // namespace
