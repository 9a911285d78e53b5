// The one place where tensors of others enter the core: arguments, gradients, and the saved tensors that come back.
//
// Past it a tensor is plain (no subclass), on the CPU, has its values in memory (not freed or cut short, not negated or
// zero by a flag only) and the dtype and number of elements that the kernels read, so a null pointer means "absent" and nothing
// else. What does not fit raises, with torch's class and words where torch has them.
#pragma once
#include <cstdint>
#include <string>
#include <utility>

#include "arguments.h"
#include "dlpack.h"
#include "tensor.h"
#include "torch.h"

namespace normkit {

class Edge {
  public:
    // note: what is said after the error, such as where the tensor comes from.
    explicit Edge(const char* note = "") : note_(note) {}
    explicit Edge(Looks& looks) : note_(""), looks_(&looks) {}

    // The argument, which must not be None.
    static nb::handle given(nb::handle argument, const char* name) {
        if (argument.is_none()) refuse_argument(name, "Tensor", argument);
        return argument;
    }

    // A tensor of any dtype; nothing for None.
    Tensor any(nb::handle given, const char* name) const {
        if (given.is_none()) return {};
        Tensor tensor = looks_ ? looks_->look(given) : Tensor::look(given);
        if (!tensor) refuse_unseen(given, name);
        if (!tensor.on_cpu()) refuse(PyExc_RuntimeError, name, " is not on the CPU, where the native core computes");
        if (is_doubtful(tensor)) tensor = with_memory(tensor, name);
        verify_storage(tensor, name);
        // only torch knows of a negation that it has put off; parts of complex numbers have one
        if (tensor.dtype() >= 0 && call(torch()->is_neg, tensor.handle()).ptr() != Py_False)
            tensor = Tensor::made(tensor.object().attr("resolve_neg")());
        return tensor;
    }

    // One of the four dtypes that kernels read.
    Tensor real(nb::handle given, const char* name) const {
        Tensor tensor = any(given, name);
        if (tensor && tensor.dtype() < 0)
            refuse(PyExc_TypeError, name, " must be float32, float64, bfloat16 or float16, got " + dtype_text(tensor));
        return tensor;
    }

    // n values, row-major.
    Tensor vector(nb::handle given, int64_t n, const char* name) const { return vector(any(given, name), n, name); }
    Tensor vector(Tensor tensor, int64_t n, const char* name) const {  // that `any` has let in
        if (!tensor) return tensor;
        if (tensor.elements() != n)
            refuse(PyExc_RuntimeError, name,
                   " should contain " + std::to_string(n) + " elements not " + std::to_string(tensor.elements()));
        if (tensor.dtype() < 0)  // torch's words
            refuse(PyExc_RuntimeError, "mixed dtype (CPU): expect parameter to have scalar type of Float",
                   std::string(" (") + name + " is " + dtype_text(tensor) + ")");
        return std::move(tensor).contiguous();
    }

    // n values to be written in place, row-major; nothing where they lie otherwise, and torch has to write them.
    Tensor buffer(nb::handle given, int64_t n, const char* name) const {
        const Tensor tensor = vector(Edge::given(given, name), n, name);
        return tensor.object().ptr() == given.ptr() ? tensor : Tensor();
    }

    // A tensor of another's sizes, in its dtype and strides.
    Tensor like(nb::handle given, const Tensor& other, const char* name) const {
        Tensor tensor = real(given, name);
        verify_sizes(tensor, other, name);
        return std::move(tensor).like(other);
    }

    void verify_sizes(const Tensor& tensor, const Tensor& other, const char* name) const {
        if (tensor && !tensor.same_sizes(other))
            refuse(PyExc_RuntimeError, name,
                   " must have the sizes " + sizes_text(other) + ", got " + sizes_text(tensor));
    }

    // Whole numbers of 0 to 255 that were made as bytes. A hook on saved tensors that keeps them in another dtype hands
    // back the same numbers: each floating dtype of 16 bits and more holds them.
    Tensor bytes(nb::handle given, int64_t count, const char* name) const {
        Tensor tensor = any(given, name);
        if (!tensor) return tensor;
        if (tensor.elements() != count || !tensor.is_real())
            refuse(PyExc_RuntimeError, name,
                   " must be the " + std::to_string(count) + " bytes of the forward, got " +
                       std::to_string(tensor.elements()) + " elements of " + dtype_text(tensor));
        if (!tensor.is(dlpack::kUInt, 8)) {
            const nb::object cast = tensor.object().attr("to")(torch()->uint8);
            if (!nb::cast<bool>(cast.attr("to")(tensor.object().attr("dtype")).attr("equal")(tensor.object())))
                refuse(PyExc_RuntimeError, name,
                       " must be the bytes of the forward, got other values in " + dtype_text(tensor));
            tensor = Tensor::made(cast);
        }
        return std::move(tensor).contiguous();
    }

    // The statistics of a forward, (3 * slices, sets): doubles, or their bytes.
    Tensor statistics(nb::handle given, int64_t sets, int64_t slices = 1) const {
        const int64_t count = 3 * slices * sets;
        const Tensor tensor = any(Edge::given(given, "stats"), "stats");
        if (tensor.elements() == count && tensor.is(dlpack::kFloat, 64)) return tensor.contiguous();
        if (tensor.elements() == count)
            refuse(PyExc_RuntimeError, "stats", " must be float64 as the forward made them, got " + dtype_text(tensor));
        return saved_statistics(given, count);
    }

    // `count` doubles that were saved as bytes.
    Tensor saved_statistics(nb::handle given, int64_t count) const {
        Tensor tensor = bytes(Edge::given(given, "stats"), count * int64_t(sizeof(double)), "stats");
        return tensor.address() % alignof(double) ? clone(tensor) : std::move(tensor);
    }

    // Errors, with this edge's note.
    [[noreturn]] void refuse(PyObject* type, const char* subject, const std::string& text) const {
        raise(type, subject + text + note_);
    }

  private:
    // A view of freed memory has its offset as address. On most systems no tensor lies below 1 TB; on the others the
    // closer look costs a microsecond.
    static bool is_doubtful(const Tensor& tensor) {
        return (tensor.address() >> 40 == 0 && tensor.elements() > 0) ||
               tensor.address() & (tensor.element_bytes() - 1);
    }

    // A storage that was cut short keeps an address, and what follows it in memory would be read.
    void verify_storage(const Tensor& tensor, const char* name) const {
        int64_t held = 0, needed = 0;
        if (torch()->storages.is_short(tensor.handle(), tensor.span(), tensor.element_bytes(), held, needed))
            refuse(PyExc_RuntimeError, "setStorage: ",
                   std::string(name) + " of sizes " + sizes_text(tensor) + " and strides " +
                       text_of(tensor.object().attr("stride")()) + " require a storage size of " +
                       std::to_string(needed) + " bytes, but its storage was resized to " + std::to_string(held) +
                       "; it has to be made as large again before it is read");
    }

    Tensor with_memory(const Tensor& tensor, const char* name) const {
        const nb::object object = tensor.object();
        if (nb::cast<bool>(call(torch()->is_zerotensor, object))) return clone(tensor);
        if (nb::cast<uintptr_t>(object.attr("untyped_storage")().attr("data_ptr")()) != 0)
            return tensor.address() & (tensor.element_bytes() - 1) ? clone(tensor) : tensor;
        raise(PyExc_RuntimeError,
              std::string("The tensor has a non-zero number of elements, but its data is not allocated yet.\n") + name +
                  " of sizes " + sizes_text(tensor) +
                  ": its storage was freed (resize_(0), as FSDP and offloading do) and has to be allocated before use" +
                  note_);
    }

    static Tensor clone(const Tensor& tensor) { return Tensor::made(tensor.object().attr("clone")()); }

    // Why torch does not show a tensor's memory.
    [[noreturn]] void refuse_unseen(nb::handle given, const char* name) const {
        if (!nb::isinstance(given, torch()->tensor)) refuse_argument(name, "Tensor", given);
        if (!is_plain(given))
            refuse(PyExc_TypeError, name,
                   std::string(" is a ") + class_name(given) + ": the native core takes plain tensors, no subclass");
        const std::string device = text_of(given.attr("device")), layout = text_of(given.attr("layout"));
        if (device != "cpu")
            refuse(PyExc_RuntimeError, name, " is on " + device + ", the native core computes on the CPU");
        if (layout != "torch.strided")
            refuse(PyExc_NotImplementedError, name,
                   ": could not run the native core with arguments of layout " + layout);
        refuse(PyExc_RuntimeError, name, " (" + text_of(given.attr("dtype")) + ") has no memory that torch would show");
    }

    static std::string text_of(nb::handle object) { return nb::str(object).c_str(); }
    static std::string dtype_text(const Tensor& tensor) { return text_of(tensor.object().attr("dtype")); }
    static std::string sizes_text(const Tensor& tensor) {
        std::string text = "[";
        for (int64_t i = 0; i < tensor.rank(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
        return text + "]";
    }

    const char* note_;
    Looks* looks_ = nullptr;
};

}  // namespace normkit
