// The embedded kernels and what a launch needs to know of them.
#pragma once

#include <cstddef>
#include <cstring>

namespace tigerfg {

template <class T>
struct Span {
    const T* first;
    std::size_t count;
    const T* begin() const noexcept { return first; }
    const T* end() const noexcept { return first + count; }
    const T& operator[](std::size_t index) const noexcept { return first[index]; }
};

enum class Type { pointer, int8, int32, int64, float32 };

struct Argument {
    const char* name;
    const char* triton_type;  // "*fp16", "i32", ...
    Type type;
    bool aligned;  // a multiple of 16
};

struct Constant {
    const char* name;
    double value;
};

struct Kernel {
    const char* name;
    const char* op;
    int arch;    // 90 for compute capability 9.0
    bool exact;  // compiled for this capability alone (sm_90a), else also for newer minor ones
    const char* target;
    const char* entry;
    const unsigned char* cubin;
    std::size_t cubin_size;
    int threads;
    int shared;  // dynamic shared memory in bytes
    const char* grid[3];
    const Argument* argument_list;  // Triton's two scratch pointers last
    std::size_t argument_count;
    const Constant* constant_list;
    std::size_t constant_count;

    static constexpr std::size_t scratch_count = 2;

    // What a caller passes: all but the scratch pointers.
    Span<Argument> arguments() const noexcept {
        return {argument_list, argument_count - scratch_count};
    }

    // A compile-time argument's value, or `otherwise` where it has none (or None).
    double constant(const char* constant_name, double otherwise) const noexcept {
        for (const Constant& constant : Span<Constant>{constant_list, constant_count}) {
            if (std::strcmp(constant.name, constant_name) == 0) return constant.value;
        }
        return otherwise;
    }
};

// All of them, by operator, architecture and name; generated.
Span<Kernel> kernels() noexcept;

}  // namespace tigerfg
