#include "error.hpp"

#include <cstdarg>
#include <cstdio>

namespace tigerfg {
namespace {

constexpr std::size_t message_size = 512;
thread_local char message[message_size] = "";

tigerfg_status status_of(cudaError_t error) noexcept {
    switch (error) {
        case cudaErrorInsufficientDriver:
            return TIGERFG_NO_DRIVER;
        case cudaErrorNoDevice:
            return TIGERFG_NO_DEVICE;
        case cudaErrorMemoryAllocation:
            return TIGERFG_OUT_OF_MEMORY;
        default:
            return TIGERFG_CUDA_ERROR;
    }
}

}  // namespace

void set_message(const char* text) noexcept { std::snprintf(message, message_size, "%s", text); }

void fail(tigerfg_status status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, message_size, format, arguments);
    va_end(arguments);
    throw Failure{status};
}

void check(cudaError_t error, const char* doing, const char* subject) {
    if (error == cudaSuccess) return;
    const tigerfg_status status = status_of(error);
    if (status == TIGERFG_NO_DRIVER) {
        fail(status, "no usable NVIDIA driver: none is installed, or it is older than CUDA %d.%d",
             CUDART_VERSION / 1000, CUDART_VERSION / 10 % 100);
    }
    fail(status, "%s (%d) while %s %s: %s", cudaGetErrorName(error), static_cast<int>(error), doing,
         subject, cudaGetErrorString(error));
}

}  // namespace tigerfg

const char* tigerfg_last_error(void) { return tigerfg::message; }

const char* tigerfg_status_string(tigerfg_status status) {
    switch (status) {
        case TIGERFG_OK:
            return "ok";
        case TIGERFG_INVALID_ARGUMENT:
            return "invalid argument";
        case TIGERFG_NOT_FOUND:
            return "no such kernel";
        case TIGERFG_UNSUPPORTED:
            return "no kernel for this device, type or width";
        case TIGERFG_NO_DRIVER:
            return "no usable NVIDIA driver";
        case TIGERFG_NO_DEVICE:
            return "no GPU";
        case TIGERFG_OUT_OF_MEMORY:
            return "out of memory";
        case TIGERFG_CUDA_ERROR:
            return "CUDA error";
        case TIGERFG_INTERNAL:
            return "internal error";
    }
    return "unknown status";
}
