// Torch tensors as the core sees them: an owned Python reference and what DLPack tells of it. Needs the GIL throughout.
//
// Tensors of others come in through edge.h alone; those that torch makes for the core are checked by `made`.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "dlpack.h"
#include "pages.h"
#include "reuse.h"
#include "torch.h"
#include "view.h"

namespace normkit {

inline int dtype_code(dlpack::DataType type) {
    if (type.lanes != 1) return -1;
    if (type.code == dlpack::kBfloat) return type.bits == 16 ? int(kBFloat16) : -1;
    if (type.code != dlpack::kFloat) return -1;
    return type.bits == 32 ? int(kFloat32) : type.bits == 64 ? int(kFloat64) : type.bits == 16 ? int(kFloat16) : -1;
}

inline bool is_plain(nb::handle tensor) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    return type == torch()->tensor.ptr() || type == torch()->parameter.ptr();
}

// A tensor, or nothing.
class Tensor {
  public:
    Tensor() = default;

    // A plain tensor (no subclass) that torch shows the memory of; nothing where it is none. Not checked: its data.
    static Tensor look(nb::handle given) {
        Tensor found;
        if (!is_plain(given)) return found;
        if (torch()->exchange->tensor_from_object(given.ptr(), &found.view_) == 0) found.object_ = nb::borrow(given);
        else PyErr_Clear();
        return found;
    }

    // What torch has made for the core.
    static Tensor made(const nb::object& object) {
        Tensor tensor = look(object);
        if (!tensor || !tensor.has_memory()) refuse_made(class_name(object));
        return tensor;
    }

    explicit operator bool() const { return object_.is_valid(); }
    nb::handle handle() const { return object_; }
    nb::object object() const { return object_.is_valid() ? object_ : nb::none(); }

    int dtype() const { return dtype_code(view_.dtype); }
    bool is(dlpack::TypeCode code, int bits) const {
        return view_.dtype.code == code && view_.dtype.bits == bits && view_.dtype.lanes == 1;
    }
    bool is_real() const {  // integers and floating point; no complex numbers and no bool
        const uint8_t code = view_.dtype.code;
        return code == dlpack::kInt || code == dlpack::kUInt || code == dlpack::kFloat || code == dlpack::kBfloat;
    }
    bool on_cpu() const { return view_.device.type == dlpack::kCpu; }
    int64_t rank() const { return view_.ndim; }
    int64_t size(int64_t axis) const { return view_.shape[axis]; }
    int64_t elements() const {
        int64_t n = 1;
        for (int64_t i = 0; i < rank(); ++i) n *= size(i);
        return n;
    }
    int64_t span() const {  // elements of memory from the first to the last
        int64_t last = 0;
        for (int64_t i = 0; i < rank(); ++i) last += (size(i) - 1) * view_.strides[i];
        return elements() ? last + 1 : 0;
    }
    int64_t element_bytes() const { return std::max(1, view_.dtype.bits / 8); }
    int64_t bytes() const { return elements() * element_bytes(); }
    const dlpack::Tensor& view() const { return view_; }

    template <class P = void> P* data() const {
        return object_.is_valid() ? reinterpret_cast<P*>(static_cast<char*>(view_.data) + view_.byte_offset) : nullptr;
    }
    uintptr_t address() const { return reinterpret_cast<uintptr_t>(data()); }
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

    // The tensor in row-major order; itself where it is so.
    Tensor contiguous() const& { return Tensor(*this).contiguous(); }
    Tensor contiguous() && {
        return !*this || is_contiguous() ? std::move(*this) : made(call(torch()->contiguous, object_));
    }

    // The tensor in another's dtype and strides; itself where it has them.
    Tensor like(const Tensor& other) const& { return Tensor(*this).like(other); }
    Tensor like(const Tensor& other) && {
        if (!*this || (dtype() == other.dtype() && same_layout(other))) return std::move(*this);
        Tensor copy = empty_like(other);
        copy.fill(*this);
        return copy;
    }

    void fill(const Tensor& values) const { call(torch()->copy, object_, values.object_); }

    void zero() const {
        if (*this) call(torch()->zero, object_);
    }

    // Of the other's dtype, sizes and strides. Large ones take memory that an earlier one gave back.
    static Tensor empty_like(const Tensor& other) {
        if (other.bytes() >= kReuseBytes)
            if (Tensor reused = reused_like(other)) return reused;
        Tensor fresh = made(call(torch()->empty_like, other.object_));
        advise_huge_pages(fresh.data(), fresh.bytes());
        return fresh;
    }

    // Of a row-major parameter's dtype and sizes.
    static Tensor gradient_of(const Tensor& parameter) { return made(call(torch()->empty_like, parameter.object_)); }

    // Row-major, on the CPU whatever torch's default device is: torch's allocator is asked itself. rows < 0: a vector.
    static Tensor empty(dlpack::DataType type, int64_t rows, int64_t columns) {
        int64_t sizes[] = {rows, columns};
        const bool vector = rows < 0;
        dlpack::Tensor prototype{nullptr, {dlpack::kCpu, 0}, vector ? 1 : 2, type, sizes + vector, nullptr, 0};
        dlpack::ManagedTensor* managed = nullptr;
        auto set_error = [](void*, const char*, const char* message) { PyErr_SetString(PyExc_RuntimeError, message); };
        if (torch()->exchange->allocate(&prototype, &managed, nullptr, set_error) != 0) nb::raise_python_error();
        return from_managed(managed);
    }

    // Doubles of shape (3 * slices, sets); as_bytes: their bytes, (3 * slices, 8 * sets).
    static Tensor statistics(int64_t sets, int64_t slices = 1, bool as_bytes = false) {
        if (as_bytes) return empty({dlpack::kUInt, 8, 1}, 3 * slices, int64_t(sizeof(double)) * sets);
        return empty({dlpack::kFloat, 64, 1}, 3 * slices, sets);
    }

    static Tensor byte_vector(int64_t count) { return empty({dlpack::kUInt, 8, 1}, -1, count); }

  private:
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

    static Tensor from_managed(dlpack::ManagedTensor* managed) {
        Tensor tensor;
        void* object = nullptr;
        tensor.view_ = managed->tensor;  // what it points to lives as long as the tensor
        if (torch()->exchange->managed_to_object(managed, &object) != 0) nb::raise_python_error();
        tensor.object_ = owned(static_cast<PyObject*>(object));
        if (!is_plain(tensor.object_) || !tensor.has_memory()) refuse_made(class_name(tensor.object_));
        return tensor;
    }

    bool has_memory() const { return on_cpu() && (data() != nullptr || elements() == 0); }

    [[noreturn]] static void refuse_made(const std::string& name) {
        const std::string made = "torch made a " + name + " without";
        raise(PyExc_RuntimeError, "the native core needs memory on the CPU and " + made +
                                      ": a mode of torch is active "
                                      "that changes what its functions return");
    }

    static Tensor reused_like(const Tensor& other);  // nothing where no memory may be kept, or of too many axes

    nb::object object_;
    dlpack::Tensor view_{};
};

// What the looks of one call have found: each of its tensors is looked at once.
class Looks {
  public:
    const Tensor& look(nb::handle given) {
        for (int i = 0; i < count_; ++i)
            if (found_[i].handle().is(given)) return found_[i];
        Tensor& next = found_[count_ < kMost ? count_++ : kMost - 1];
        return next = Tensor::look(given);
    }

  private:
    static constexpr int kMost = 6;  // input, weight, bias, residual, running mean and variance
    Tensor found_[kMost];
    int count_ = 0;
};

// The managed tensor that carries a reused block: sizes and strides follow it.
struct ReusedTensor {
    dlpack::ManagedTensor managed;
    Block block;
    int64_t extents[2 * 16];
};

inline Tensor Tensor::reused_like(const Tensor& other) {
    constexpr int64_t kRank = sizeof(ReusedTensor::extents) / sizeof(int64_t) / 2;
    if (other.rank() > kRank || !(other.is_contiguous() || other.is_channels_last()))
        return {};  // strides with gaps need more
    Block block = blocks().take(other.bytes());
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
    return from_managed(&made->managed);
}

}  // namespace normkit
