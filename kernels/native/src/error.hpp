// Errors: thrown inside the library, a status and a thread's message outside.
#pragma once

#include <cuda_runtime_api.h>

#include <new>

#include "tigerfg/kernels.h"

namespace tigerfg {

struct Failure {
    tigerfg_status status;
};

// Sets the thread's message, printf style, and throws.
[[noreturn]] [[gnu::format(printf, 2, 3)]] void fail(tigerfg_status status, const char* format,
                                                     ...);

void set_message(const char* message) noexcept;

// Throws if a CUDA call failed: "... while loading some_kernel: ...".
void check(cudaError_t error, const char* doing, const char* subject);

// Runs the body of a function of the C API.
template <class Body>
tigerfg_status guarded(Body&& body) noexcept {
    try {
        body();
        return TIGERFG_OK;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::bad_alloc&) {
        set_message("out of host memory");
        return TIGERFG_OUT_OF_MEMORY;
    } catch (...) {
        set_message("unexpected exception");
        return TIGERFG_INTERNAL;
    }
}

}  // namespace tigerfg
