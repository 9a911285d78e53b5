// torch 2.4 to 2.9 under the interface of later ones: the table of DLPack functions (dlpack.h) and a parallel loop.
//
// A tensor is read through libtorch's C shim: its at::Tensor lies at a known place in the Python object, which
// kernels/older_torch.py finds and proves. Its address is asked of Python, since the shim prints what it cannot give.
// Memory becomes a tensor through a capsule of DLPack's first version. Threads are those of torch's own libgomp.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>

#include "aligned.h"
#include "dlpack.h"
#include "parallel.h"
#include "torch.h"

namespace normkit {

class OlderTorch {
  public:
    // Addresses of libtorch's functions, and what of Python is called.
    struct Functions {
        int32_t (*dim)(void* tensor, int64_t* out);
        int32_t (*sizes)(void* tensor, int64_t** out);
        int32_t (*strides)(void* tensor, int64_t** out);
        int32_t (*dtype)(void* tensor, int32_t* out);
        int32_t (*device_type)(void* tensor, int32_t* out);
    };

    // The table as a capsule, which is what later versions of torch have.
    static nb::object table(const Functions& functions, Py_ssize_t offset, nb::object data_ptr, nb::object from_dlpack) {
        self() = new OlderTorch{functions, offset, std::move(data_ptr), std::move(from_dlpack)};
        static dlpack::Exchange exchange{{{1, 0}, nullptr}, &allocate, nullptr, &to_object, &look, nullptr};
        return owned(PyCapsule_New(&exchange, "dlpack_exchange_api", nullptr));
    }

  private:
    OlderTorch(const Functions& functions, Py_ssize_t offset, nb::object data_ptr, nb::object from_dlpack)
        : functions_(functions), offset_(offset), data_ptr_(std::move(data_ptr)), from_dlpack_(std::move(from_dlpack)) {}

    static OlderTorch*& self() {
        static OlderTorch* found = nullptr;  // kept for ever: at exit Python may be gone before it
        return found;
    }

    static int look(void* object, dlpack::Tensor* out) {
        const OlderTorch& torch = *self();
        PyObject* argument = static_cast<PyObject*>(object);
        PyObject* address = PyObject_Vectorcall(torch.data_ptr_.ptr(), &argument, 1, nullptr);
        if (address == nullptr) return -1;  // no memory of its own: sparse, a wrapper, a batch of gradients
        out->data = PyLong_AsVoidPtr(address);
        Py_DECREF(address);
        void* tensor = static_cast<char*>(object) + torch.offset_;
        int64_t rank = 0;
        int32_t scalar = 0, device = 0;
        const Functions& f = torch.functions_;
        if (f.dim(tensor, &rank) || f.sizes(tensor, &out->shape) || f.strides(tensor, &out->strides) ||
            f.dtype(tensor, &scalar) || f.device_type(tensor, &device) || device != 0) {
            PyErr_SetString(PyExc_RuntimeError, "the tensor is not on the CPU, or libtorch does not show it");
            return -1;
        }
        out->ndim = int32_t(rank);
        out->dtype = type_of(scalar);
        out->device = {dlpack::kCpu, 0};
        out->byte_offset = 0;
        return 0;
    }

    // c10::ScalarType, whose numbers are part of libtorch's C interface.
    static dlpack::DataType type_of(int32_t scalar) {
        constexpr uint8_t kComplex = 5, kBool = 6, kOther = 255;
        static constexpr dlpack::DataType known[] = {
            {dlpack::kUInt, 8, 1},  {dlpack::kInt, 8, 1},    {dlpack::kInt, 16, 1}, {dlpack::kInt, 32, 1},
            {dlpack::kInt, 64, 1},  {dlpack::kFloat, 16, 1}, {dlpack::kFloat, 32, 1}, {dlpack::kFloat, 64, 1},
            {kComplex, 32, 1},      {kComplex, 64, 1},       {kComplex, 128, 1},    {kBool, 8, 1},
            {kOther, 8, 1},         {kOther, 8, 1},          {kOther, 32, 1},       {dlpack::kBfloat, 16, 1},
        };
        return scalar >= 0 && scalar < int32_t(std::size(known)) ? known[scalar] : dlpack::DataType{kOther, 8, 1};
    }

    struct Allocated {
        dlpack::ManagedTensor managed;
        int64_t extents[4];
    };

    // Row-major, of one axis or two; memory of the C library.
    static int allocate(dlpack::Tensor* prototype, dlpack::ManagedTensor** out, void* context,
                        void (*error)(void*, const char*, const char*)) {
        const int32_t rank = prototype->ndim;
        int64_t bytes = prototype->dtype.bits / 8;
        for (int32_t i = 0; i < rank; ++i) bytes *= prototype->shape[i];
        void* data = rank <= 2 ? allocate_aligned(bytes + 1, kAlignment) : nullptr;
        if (data == nullptr) {
            error(context, "MemoryError", "the native core cannot allocate its statistics");
            return -1;
        }
        auto* made = new Allocated{};
        made->managed.deleter = [](dlpack::ManagedTensor* managed) {
            free_aligned(managed->tensor.data);
            delete reinterpret_cast<Allocated*>(managed);  // its first member
        };
        dlpack::Tensor& view = made->managed.tensor;
        view = *prototype;
        view.data = data;
        view.shape = made->extents;
        view.strides = made->extents + 2;
        int64_t stride = 1;
        for (int32_t i = rank - 1; i >= 0; --i) {
            view.shape[i] = prototype->shape[i];
            view.strides[i] = stride;
            stride *= view.shape[i];
        }
        *out = &made->managed;
        return 0;
    }

    // DLPack's first version of a managed tensor.
    struct Unversioned {
        dlpack::Tensor tensor;
        void* context;
        void (*deleter)(Unversioned*);
    };

    static int to_object(dlpack::ManagedTensor* managed, void** object) {
        auto* handed = new Unversioned{managed->tensor, managed, [](Unversioned* given) {
                                           auto* whole = static_cast<dlpack::ManagedTensor*>(given->context);
                                           whole->deleter(whole);
                                           delete given;
                                       }};
        PyObject* capsule = PyCapsule_New(handed, "dltensor", nullptr);
        if (capsule == nullptr) {
            handed->deleter(handed);
            return -1;
        }
        *object = PyObject_Vectorcall(self()->from_dlpack_.ptr(), &capsule, 1, nullptr);
        Py_DECREF(capsule);
        return *object == nullptr ? -1 : 0;
    }

    static constexpr size_t kAlignment = 64;  // a cache line, as torch's allocator has it

    Functions functions_;
    Py_ssize_t offset_;
    nb::object data_ptr_, from_dlpack_;
};

// at::parallel_for over libgomp, as torch's header has it: the threads that torch uses, as many as set_num_threads says.
class GompLoop {
  public:
    struct Functions {
        void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
        int (*team_size)();
        int (*thread)();
        int (*max_threads)();  // at::get_num_threads, which makes the thread's setting first
        bool (*in_region)();   // at::in_parallel_region
    };

    static ParallelFunction over(const Functions& functions) {
        self() = functions;
        return &run;
    }

  private:
    struct Loop {
        int64_t begin, end, grain;
        RangeFunction body;
        void* context;
    };

    static Functions& self() {
        static Functions found{};
        return found;
    }

    static int run(int64_t begin, int64_t end, int64_t grain, RangeFunction body, void* context) {
        Loop loop{begin, end, grain, body, context};
        if (end - begin <= grain || self().in_region() || self().max_threads() <= 1)
            body(begin, end, context);
        else
            self().parallel(&share, &loop, 0, 0);  // 0: the thread's own setting
        return 0;
    }

    // One thread's part.
    static void share(void* given) {
        const Loop& loop = *static_cast<const Loop*>(given);
        auto parts = [](int64_t n, int64_t by) { return (n + by - 1) / by; };
        int64_t team = self().team_size();
        if (loop.grain > 0) team = std::min(team, parts(loop.end - loop.begin, loop.grain));
        const int64_t chunk = parts(loop.end - loop.begin, team), begin = loop.begin + self().thread() * chunk;
        if (begin < loop.end) loop.body(begin, std::min(loop.end, begin + chunk), loop.context);
    }
};

}  // namespace normkit
