// Loads kernels when they are first launched.
#pragma once

#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

#include "device.hpp"

namespace tigerfg {

class Registry {
public:
    static Registry& instance();

    // `arguments`: addresses of the values, without Triton's scratch pointers.
    void launch(const Kernel& kernel, const Device& device, dim3 grid, void* const* arguments,
                cudaStream_t stream);

    // Sets bytes of device memory.
    void fill(void* memory, int value, std::size_t bytes, cudaStream_t stream);

    void unload();

private:
    struct Loaded {
        cudaLibrary_t library = nullptr;
        cudaKernel_t kernel = nullptr;
        std::vector<int> devices;  // where the shared memory limit has been raised
    };

    Registry() : loaded_(kernels().count) {}
    cudaKernel_t prepared(const Kernel& kernel, int device);

    std::mutex mutex_;
    std::vector<Loaded> loaded_;  // as kernels()
};

}  // namespace tigerfg
