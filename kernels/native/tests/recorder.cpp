// Stands in for device.cpp and registry.cpp: an imagined device, and launches as lines of JSON.
#include "recorder.hpp"

#include <cstdio>

#include "error.hpp"
#include "registry.hpp"

namespace tigerfg {

Device imagined{0, 90, 132};

Device current_device() { return imagined; }

Registry& Registry::instance() {
    static Registry registry;
    return registry;
}

void Registry::launch(const Kernel& kernel, const Device&, dim3 grid, void* const* arguments,
                      cudaStream_t) {
    std::printf("{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"integers\": {", kernel.name, grid.x,
                grid.y, grid.z);
    const char* separator = "";
    for (std::size_t i = 0; i < kernel.arguments().count; ++i) {
        const Argument& argument = kernel.arguments()[i];
        if (argument.type == Type::pointer) continue;
        const long long value =
            argument.type == Type::int64
                ? static_cast<long long>(*static_cast<const std::int64_t*>(arguments[i]))
                : static_cast<long long>(*static_cast<const std::int32_t*>(arguments[i]));
        std::printf("%s\"%s\": %lld", separator, argument.name, value);
        separator = ", ";
    }
    std::printf("}}\n");
}

void Registry::fill(void*, int, std::size_t, cudaStream_t) {}

}  // namespace tigerfg
