// Checks of what a caller passes in an operator's struct.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "device.hpp"
#include "error.hpp"

namespace tigerfg {

// A copy of the caller's struct, which may come from a newer header whose fields are not set.
template <class Args>
Args read(const Args* given) {
    if (given == nullptr) fail(TIGERFG_INVALID_ARGUMENT, "args: is NULL");
    const std::size_t size = given->struct_size;
    if (size < sizeof(Args)) {
        fail(TIGERFG_INVALID_ARGUMENT, "args.struct_size: %zu; set it to sizeof *args, %zu", size,
             sizeof(Args));
    }
    const auto* bytes = reinterpret_cast<const unsigned char*>(given);
    if (std::any_of(bytes + sizeof(Args), bytes + size, [](unsigned char b) { return b != 0; })) {
        fail(TIGERFG_INVALID_ARGUMENT,
             "args.struct_size: %zu, and a field that library version %s does not know is set",
             size, TIGERFG_VERSION);
    }
    return *given;
}

inline void require_pointer(const void* pointer, const char* field) {
    if (pointer == nullptr) fail(TIGERFG_INVALID_ARGUMENT, "%s: is NULL", field);
}

inline void require_range(std::int64_t value, std::int64_t least, std::int64_t most,
                          const char* field) {
    if (value < least || value > most) {
        fail(TIGERFG_INVALID_ARGUMENT, "%s: %lld must be from %lld to %lld", field,
             static_cast<long long>(value), static_cast<long long>(least),
             static_cast<long long>(most));
    }
}

// Triton's name of a type, and the bytes of an element.
const char* type_name(tigerfg_dtype dtype);
std::int64_t type_size(tigerfg_dtype dtype);

template <class T>
constexpr T ceil_div(T value, T by) {
    return (value + by - 1) / by;
}

// Strides of 0 become those of contiguous patches (batch, patches, width).
inline void default_strides(std::int64_t patches, std::int64_t width, std::int64_t& batch_stride,
                            std::int64_t& patch_stride) noexcept {
    if (batch_stride != 0 || patch_stride != 0) return;
    patch_stride = width;
    batch_stride = patches * width;
}

// A one-dimensional launch grid.
dim3 grid(std::int64_t blocks);

// Parts of a workspace, one after the other; without a base it only counts.
class Workspace {
public:
    explicit Workspace(void* base) noexcept : base_(static_cast<unsigned char*>(base)) {}

    // The next part, of so many bytes.
    void* take(std::int64_t bytes) noexcept {
        void* part = base_ == nullptr ? nullptr : base_ + size_;
        size_ += ceil_div<std::size_t>(static_cast<std::size_t>(bytes), 256) * 256;
        return part;
    }
    std::size_t size() const noexcept { return size_; }

private:
    unsigned char* base_;
    std::size_t size_ = 0;
};

// Fails unless a workspace is there and large enough.
void require_workspace(const void* workspace, std::size_t bytes, std::size_t needed);
void require_counters(const std::int32_t* counters, std::size_t count, std::size_t needed);

// The first kernel of the device with that entry that fits; NULL where there is none.
template <class Fits>
const Kernel* select(const Device& device, const char* entry, Fits&& fits) {
    for (const Kernel& kernel : kernels()) {
        if (kernel.arch == device.arch && std::strcmp(kernel.entry, entry) == 0 && fits(kernel)) {
            return &kernel;
        }
    }
    return nullptr;
}

// Fails for a width that no kernel was compiled for.
[[noreturn]] void unsupported(const Device& device, const char* op, tigerfg_dtype dtype,
                              std::int64_t width);

// Whether a pointer argument of the kernel has elements of that type.
bool takes(const Kernel& kernel, const char* argument, tigerfg_dtype dtype);

}  // namespace tigerfg
