#include "args.hpp"

namespace tigerfg {

const char* type_name(tigerfg_dtype dtype) {
    switch (dtype) {
        case TIGERFG_FLOAT16:
            return "fp16";
        case TIGERFG_BFLOAT16:
            return "bf16";
        case TIGERFG_FLOAT32:
            return "fp32";
    }
    fail(TIGERFG_INVALID_ARGUMENT, "dtype: %d is no tigerfg_dtype", static_cast<int>(dtype));
}

std::int64_t type_size(tigerfg_dtype dtype) { return dtype == TIGERFG_FLOAT32 ? 4 : 2; }

dim3 grid(std::int64_t blocks) {
    constexpr std::int64_t most = 2147483647;  // CUDA's limit in x
    require_range(blocks, 1, most, "batch: the launch's number of blocks");
    return dim3(static_cast<unsigned>(blocks));
}

void require_workspace(const void* workspace, std::size_t bytes, std::size_t needed) {
    if (needed == 0) return;
    require_pointer(workspace, "workspace");
    if (bytes < needed) {
        fail(TIGERFG_INVALID_ARGUMENT, "workspace_bytes: %zu, but %zu are needed", bytes, needed);
    }
}

void require_counters(const std::int32_t* counters, std::size_t count, std::size_t needed) {
    if (needed == 0) return;
    require_pointer(counters, "counters");
    if (count < needed) {
        fail(TIGERFG_INVALID_ARGUMENT, "counters_count: %zu, but %zu are needed", count, needed);
    }
}

void unsupported(const Device& device, const char* op, tigerfg_dtype dtype, std::int64_t width) {
    fail(TIGERFG_UNSUPPORTED,
         "width: the library holds no %s kernel for %s and width %lld on sm_%d", op,
         type_name(dtype), static_cast<long long>(width), device.arch);
}

bool takes(const Kernel& kernel, const char* argument, tigerfg_dtype dtype) {
    for (const Argument& candidate : kernel.arguments()) {
        if (std::strcmp(candidate.name, argument) == 0) {
            return candidate.triton_type[0] == '*' &&
                   std::strcmp(candidate.triton_type + 1, type_name(dtype)) == 0;
        }
    }
    return false;
}

}  // namespace tigerfg
