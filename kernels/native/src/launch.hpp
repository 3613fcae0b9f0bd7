// One launch of a kernel, its arguments given by name.
#pragma once

#include <array>
#include <cstdint>

#include "registry.hpp"

namespace tigerfg {

class Launch {
public:
    Launch(const Kernel& kernel, const Device& device) noexcept;

    // Sets the kernel's argument. `field` is what the caller of the C API knows it by: it is named
    // if the value is not the multiple of 16 that the kernel was compiled for.
    Launch& set(const char* argument, const void* pointer, const char* field);
    Launch& set(const char* argument, std::int64_t integer, const char* field);

    // Every argument must have been set.
    void run(dim3 grid, cudaStream_t stream);

private:
    static constexpr std::size_t capacity = 62;
    union Value {
        const void* pointer;
        std::int32_t int32;
        std::int64_t int64;
    };

    std::size_t position(const char* argument) const;

    const Kernel& kernel_;
    const Device& device_;
    std::array<Value, capacity> values_{};
    std::array<void*, capacity> addresses_{};  // of the values that are set
};

}  // namespace tigerfg
