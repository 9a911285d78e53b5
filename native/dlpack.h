// The part of DLPack's C interface (version 1) that is used here: torch.Tensor.__dlpack_c_exchange_api__ is a table of
// functions that read and make tensors without torch's headers. Layouts are fixed by https://dmlc.github.io/dlpack.
#pragma once
#include <cstdint>

namespace normkit::dlpack {

struct Device {
    int32_t type, id;
};
struct DataType {
    uint8_t code, bits;
    uint16_t lanes;
};
constexpr int32_t kCpu = 1;
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4 };

struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct Version {
    uint32_t major, minor;
};

struct ManagedTensor {
    Version version;
    void* context;
    void (*deleter)(ManagedTensor*);
    uint64_t flags;
    Tensor tensor;
};

struct Exchange {
    struct Header {
        Version version;
        Header* previous;
    } header;
    int (*allocate)(Tensor* prototype, ManagedTensor** out, void* context, void (*error)(void*, const char*, const char*));
    int (*managed_from_object)(void* object, ManagedTensor** out);
    int (*managed_to_object)(ManagedTensor* tensor, void** object);
    int (*tensor_from_object)(void* object, Tensor* out);  // borrowed; may be null
    int (*current_stream)(int32_t type, int32_t id, void** out);
};

}  // namespace normkit::dlpack
