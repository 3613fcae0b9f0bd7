// The C API for any kernel by its name.
#include "device.hpp"
#include "error.hpp"
#include "registry.hpp"

namespace {

using namespace tigerfg;

const Kernel& kernel_at(std::size_t index) {
    if (index >= kernels().count) {
        fail(TIGERFG_NOT_FOUND, "index: %zu, but the library holds %zu kernels", index,
             kernels().count);
    }
    return kernels()[index];
}

void require(const void* pointer, const char* field) {
    if (pointer == nullptr) fail(TIGERFG_INVALID_ARGUMENT, "%s: is NULL", field);
}

}  // namespace

const char* tigerfg_kernels_version(void) { return TIGERFG_VERSION; }

size_t tigerfg_kernels_count(void) { return kernels().count; }

const char* tigerfg_kernels_name(size_t index) {
    return index < kernels().count ? kernels()[index].name : nullptr;
}

tigerfg_status tigerfg_kernels_info(size_t index, tigerfg_kernel_info* info) {
    return guarded([&] {
        require(info, "info");
        if (info->struct_size != sizeof *info) {
            fail(TIGERFG_INVALID_ARGUMENT,
                 "info.struct_size: %zu; set it to sizeof(tigerfg_kernel_info), %zu",
                 info->struct_size, sizeof *info);
        }
        const Kernel& kernel = kernel_at(index);
        *info = {sizeof *info,
                 kernel.name,
                 kernel.op,
                 kernel.target,
                 kernel.arch,
                 kernel.threads,
                 kernel.shared,
                 kernel.cubin_size,
                 kernel.arguments().count,
                 {kernel.grid[0], kernel.grid[1], kernel.grid[2]}};
    });
}

tigerfg_status tigerfg_kernels_argument(size_t index, size_t argument,
                                        tigerfg_argument_info* info) {
    return guarded([&] {
        require(info, "info");
        const Kernel& kernel = kernel_at(index);
        if (argument >= kernel.arguments().count) {
            fail(TIGERFG_NOT_FOUND, "argument: %zu, but %s takes %zu", argument, kernel.name,
                 kernel.arguments().count);
        }
        const Argument& found = kernel.arguments()[argument];
        *info = {found.name, found.triton_type, found.aligned ? 1 : 0};
    });
}

tigerfg_status tigerfg_kernel_find(const char* name, int arch, size_t* index) {
    return guarded([&] {
        require(name, "name");
        require(index, "index");
        const Kernel& kernel = find(name, arch == 0 ? current_device().arch : arch);
        *index = static_cast<size_t>(&kernel - kernels().begin());
    });
}

tigerfg_status tigerfg_kernel_launch(const char* name, const unsigned int grid[3],
                                     void* const* arguments, tigerfg_stream stream) {
    return guarded([&] {
        require(name, "name");
        require(grid, "grid");
        require(arguments, "arguments");
        const Device device = current_device();
        const Kernel& kernel = find(name, device.arch);
        for (std::size_t i = 0; i < kernel.arguments().count; ++i) {
            require(arguments[i], kernel.arguments()[i].name);
        }
        Registry::instance().launch(kernel, device, dim3(grid[0], grid[1], grid[2]), arguments,
                                    stream);
    });
}

tigerfg_status tigerfg_kernels_unload(void) {
    return guarded([] { Registry::instance().unload(); });
}
