// Torch tensors as the door sees them: an owned Python reference and what DLPack tells of it. Needs the GIL throughout.
//
// Errors of Python travel as nanobind's python_error; an object that is no dense tensor of a known dtype is copied into
// one by torch itself.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <string>

#include "dlpack.h"
#include "reuse.h"
#include "view.h"

namespace normkit {

namespace nb = nanobind;

// What the door needs of torch, looked up once.
struct Torch {
    const dlpack::Exchange* exchange = nullptr;
    nb::object tensor, parameter, empty, empty_like, float64, uint8, contiguous_format, increment_version;
    nb::object contiguous, copy, zero, is_neg, resolve_neg;   // names of methods
    nb::object dtype_keyword, memory_format_keyword;          // tuples of one keyword

    explicit Torch(nb::handle torch) {
        nb::object capsule = torch.attr("Tensor").attr("__dlpack_c_exchange_api__");
        exchange = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (exchange == nullptr) nb::raise_python_error();
        if (exchange->header.version.major != 1 || exchange->tensor_from_object == nullptr)
            throw std::runtime_error("torch speaks another version of DLPack's exchange table than 1");
        tensor = torch.attr("Tensor");
        parameter = torch.attr("nn").attr("Parameter");
        empty = torch.attr("empty");
        empty_like = torch.attr("empty_like");
        float64 = torch.attr("float64");
        uint8 = torch.attr("uint8");
        contiguous_format = torch.attr("contiguous_format");
        increment_version = torch.attr("autograd").attr("graph").attr("increment_version");
        contiguous = nb::str("contiguous");
        copy = nb::str("copy_");
        zero = nb::str("zero_");
        is_neg = nb::str("is_neg");
        resolve_neg = nb::str("resolve_neg");
        dtype_keyword = nb::make_tuple("dtype");
        memory_format_keyword = nb::make_tuple("memory_format");
    }
};

inline const Torch*& torch() {
    static const Torch* found = nullptr;  // kept for ever: at exit Python may be gone before it
    return found;
}

inline nb::object owned(PyObject* object) {
    if (object == nullptr) nb::raise_python_error();
    return nb::steal(object);
}

inline int dtype_code(dlpack::DataType type) {
    if (type.lanes != 1) return -1;
    if (type.code == dlpack::kBfloat) return type.bits == 16 ? int(kBFloat16) : -1;
    if (type.code != dlpack::kFloat) return -1;
    return type.bits == 32 ? int(kFloat32) : type.bits == 64 ? int(kFloat64) : type.bits == 16 ? int(kFloat16) : -1;
}

// A tensor, or nothing (None).
class Tensor {
  public:
    Tensor() = default;
    explicit Tensor(nb::handle handle) {
        if (!handle.is_none()) read(nb::borrow(handle));
    }
    explicit Tensor(nb::object object) {
        if (!object.is_none()) read(std::move(object));
    }

    explicit operator bool() const { return object_.is_valid(); }
    nb::object object() const { return object_.is_valid() ? object_ : nb::none(); }

    int dtype() const { return dtype_code(view_.dtype); }
    bool on_cpu() const { return view_.device.type == dlpack::kCpu; }
    int64_t rank() const { return view_.ndim; }
    int64_t size(int64_t axis) const { return view_.shape[axis]; }
    int64_t elements() const {
        int64_t n = 1;
        for (int64_t i = 0; i < rank(); ++i) n *= size(i);
        return n;
    }
    int64_t bytes() const { return elements() * (view_.dtype.bits / 8); }
    const dlpack::Tensor& view() const { return view_; }

    template <class P = void> P* data() const {
        return object_.is_valid() ? reinterpret_cast<P*>(static_cast<char*>(view_.data) + view_.byte_offset) : nullptr;
    }
    Param param() const { return {data(), object_.is_valid() ? dtype() : int(kFloat32)}; }
    MutableParam mutable_param() const { return {data(), object_.is_valid() ? dtype() : int(kFloat32)}; }

    bool is_contiguous() const { return has_order(false); }
    bool is_channels_last() const { return rank() > 2 && has_order(true); }
    bool same_sizes(const Tensor& other) const {
        return rank() == other.rank() && std::equal(view_.shape, view_.shape + rank(), other.view_.shape);
    }
    bool same_layout(const Tensor& other) const {
        if (!same_sizes(other)) return false;
        for (int64_t i = 0; i < rank(); ++i)
            if (size(i) > 1 && view_.strides[i] != other.view_.strides[i]) return false;
        return true;
    }

    // The tensor with its values in memory; itself but for one whose sign torch has yet to turn (a conjugate's part).
    Tensor resolved() const {
        if (!*this || owned(PyObject_CallMethodNoArgs(object_.ptr(), torch()->is_neg.ptr())).ptr() == Py_False) return *this;
        return Tensor(owned(PyObject_CallMethodNoArgs(object_.ptr(), torch()->resolve_neg.ptr())));
    }

    // The tensor in row-major order; itself where it is so.
    Tensor contiguous() const {
        if (!*this || is_contiguous()) return *this;
        return Tensor(owned(PyObject_CallMethodNoArgs(object_.ptr(), torch()->contiguous.ptr())));
    }

    // The tensor in another's dtype and strides; itself where it has them.
    Tensor like(const Tensor& other) const {
        if (!*this || (dtype() == other.dtype() && same_layout(other))) return *this;
        Tensor copy = empty_like(other);
        owned(PyObject_CallMethodOneArg(copy.object_.ptr(), torch()->copy.ptr(), object_.ptr()));
        return copy;
    }

    void zero() const {
        if (*this) owned(PyObject_CallMethodNoArgs(object_.ptr(), torch()->zero.ptr()));
    }

    // Of the other's dtype, sizes and strides. Large ones take memory that an earlier one gave back.
    static Tensor empty_like(const Tensor& other) {
        if (other.bytes() >= kReuseBytes)
            if (Tensor reused = reused_like(other)) return reused;
        PyObject* arguments[] = {other.object_.ptr()};
        Tensor made(owned(PyObject_Vectorcall(torch()->empty_like.ptr(), arguments, 1, nullptr)));
        advise_huge_pages(made.data(), made.bytes());
        return made;
    }

    // Of the parameter's dtype and sizes, row-major.
    static Tensor gradient_of(const Tensor& parameter) {
        PyObject* arguments[] = {parameter.object_.ptr(), torch()->contiguous_format.ptr()};
        return Tensor(owned(PyObject_Vectorcall(torch()->empty_like.ptr(), arguments, 1,
                                                torch()->memory_format_keyword.ptr())));
    }

    // Doubles of shape (3 * slices, sets).
    static Tensor statistics(int64_t sets, int64_t slices = 1) {
        nb::int_ three(3 * slices), width(sets);
        PyObject* arguments[] = {three.ptr(), width.ptr(), torch()->float64.ptr()};
        return Tensor(owned(PyObject_Vectorcall(torch()->empty.ptr(), arguments, 2, torch()->dtype_keyword.ptr())));
    }

    static Tensor byte_vector(int64_t count) {
        nb::int_ size(count);
        PyObject* arguments[] = {size.ptr(), torch()->uint8.ptr()};
        return Tensor(owned(PyObject_Vectorcall(torch()->empty.ptr(), arguments, 1, torch()->dtype_keyword.ptr())));
    }

  private:
    void read(nb::object object) {
        object_ = std::move(object);
        if (torch()->exchange->tensor_from_object(object_.ptr(), &view_) != 0) nb::raise_python_error();
    }

    // Whether memory order is that of the axes, with axis 1 innermost if asked. Axes of size 1 may have any stride.
    bool has_order(bool channels_innermost) const {
        int64_t expected = 1;
        auto fits = [&](int64_t axis) {
            if (size(axis) != 1 && view_.strides[axis] != expected) return false;
            expected *= size(axis);
            return true;
        };
        if (channels_innermost && !fits(1)) return false;
        for (int64_t axis = rank() - 1; axis >= 0; --axis)
            if (!(channels_innermost && axis == 1) && !fits(axis)) return false;
        return true;
    }

    static Tensor reused_like(const Tensor& other);  // nothing where no memory may be kept, or of too many axes

    nb::object object_;
    dlpack::Tensor view_{};
};

// The managed tensor that carries a reused block: sizes and strides live behind it.
struct ReusedTensor {
    dlpack::ManagedTensor managed;
    Block block;
    int64_t extents[2 * 16];
};

inline Tensor Tensor::reused_like(const Tensor& other) {
    constexpr int64_t kRank = sizeof(ReusedTensor::extents) / sizeof(int64_t) / 2;
    Block block = other.rank() <= kRank ? blocks().take(other.bytes()) : Block{};
    if (block.data == nullptr) return {};
    auto* made = new ReusedTensor{};
    made->block = block;
    made->managed.version = {1, 0};
    made->managed.deleter = [](dlpack::ManagedTensor* managed) {
        auto* whole = reinterpret_cast<ReusedTensor*>(managed);  // its first member
        blocks().give_back(whole->block);
        delete whole;
    };
    dlpack::Tensor& view = made->managed.tensor;
    view = other.view_;
    view.data = block.data;
    view.byte_offset = 0;
    view.shape = made->extents;
    view.strides = made->extents + kRank;
    std::copy(other.view_.shape, other.view_.shape + other.rank(), view.shape);
    std::copy(other.view_.strides, other.view_.strides + other.rank(), view.strides);
    void* object = nullptr;
    if (torch()->exchange->managed_to_object(&made->managed, &object) != 0) nb::raise_python_error();
    return Tensor(owned(static_cast<PyObject*>(object)));
}

}  // namespace normkit
