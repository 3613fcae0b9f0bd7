#include "registry.hpp"

#include <algorithm>
#include <array>

#include "error.hpp"

namespace tigerfg {
namespace {

constexpr std::size_t max_arguments = 64;
constexpr int default_shared_limit = 48 * 1024;

}  // namespace

Registry& Registry::instance() {
    // Never destroyed: other threads may still launch while the process ends, and the driver frees
    // what is loaded.
    static Registry& registry = *new Registry;
    return registry;
}

cudaKernel_t Registry::prepared(const Kernel& kernel, int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Loaded& loaded = loaded_[static_cast<std::size_t>(&kernel - kernels().begin())];
    if (loaded.library == nullptr) {
        check(cudaLibraryLoadData(&loaded.library, kernel.cubin, nullptr, nullptr, 0, nullptr,
                                  nullptr, 0),
              "loading", kernel.name);
    }
    if (loaded.kernel == nullptr) {
        check(cudaLibraryGetKernel(&loaded.kernel, loaded.library, kernel.entry), "loading",
              kernel.name);
    }
    auto& devices = loaded.devices;
    if (std::find(devices.begin(), devices.end(), device) == devices.end()) {
        if (kernel.shared > default_shared_limit) {
            // A cudaKernel_t stands in for the function's address.
            check(cudaFuncSetAttribute(reinterpret_cast<const void*>(loaded.kernel),
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared),
                  "raising the shared memory limit of", kernel.name);
        }
        devices.push_back(device);
    }
    return loaded.kernel;
}

void Registry::launch(const Kernel& kernel, const Device& device, dim3 grid,
                      void* const* arguments, cudaStream_t stream) {
    std::array<void*, max_arguments> all{};
    const std::size_t given = kernel.arguments().count;
    if (kernel.argument_count > max_arguments) {
        fail(TIGERFG_INTERNAL, "%s has %zu arguments", kernel.name, kernel.argument_count);
    }
    std::copy(arguments, arguments + given, all.begin());
    void* no_scratch = nullptr;
    std::fill_n(all.begin() + static_cast<std::ptrdiff_t>(given), Kernel::scratch_count,
                &no_scratch);
    const cudaKernel_t loaded = prepared(kernel, device.ordinal);
    check(cudaLaunchKernel(reinterpret_cast<const void*>(loaded), grid,
                           dim3(static_cast<unsigned>(kernel.threads)), all.data(),
                           static_cast<std::size_t>(kernel.shared), stream),
          "launching", kernel.name);
}

void Registry::fill(void* memory, int value, std::size_t bytes, cudaStream_t stream) {
    check(cudaMemsetAsync(memory, value, bytes, stream), "filling", "the workspace");
}

void Registry::unload() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Loaded& loaded : loaded_) {
        if (loaded.library != nullptr) {
            const cudaLibrary_t library = loaded.library;
            loaded = Loaded{};
            check(cudaLibraryUnload(library), "unloading", "a kernel");
        }
    }
}

}  // namespace tigerfg
