#include "launch.hpp"

#include <limits>

#include "error.hpp"

namespace tigerfg {

Launch::Launch(const Kernel& kernel, const Device& device) noexcept
    : kernel_(kernel), device_(device) {}

std::size_t Launch::position(const char* argument) const {
    const auto arguments = kernel_.arguments();
    for (std::size_t i = 0; i < arguments.count && i < capacity; ++i) {
        if (std::strcmp(arguments[i].name, argument) == 0) return i;
    }
    fail(TIGERFG_INTERNAL, "%s has no argument %s", kernel_.name, argument);
}

Launch& Launch::set(const char* argument, const void* pointer, const char* field) {
    const std::size_t i = position(argument);
    if (kernel_.arguments()[i].type != Type::pointer) {
        fail(TIGERFG_INTERNAL, "%s: %s is no pointer", kernel_.name, argument);
    }
    if (kernel_.arguments()[i].aligned && reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) {
        fail(TIGERFG_INVALID_ARGUMENT, "%s: the address %p is not a multiple of 16 bytes", field,
             pointer);
    }
    values_[i].pointer = pointer;
    addresses_[i] = &values_[i];
    return *this;
}

Launch& Launch::set(const char* argument, std::int64_t integer, const char* field) {
    const std::size_t i = position(argument);
    const Argument& described = kernel_.arguments()[i];
    if (described.aligned && integer % 16 != 0) {
        fail(TIGERFG_INVALID_ARGUMENT, "%s: %lld is not a multiple of 16", field,
             static_cast<long long>(integer));
    }
    if (described.type == Type::int64) {
        values_[i].int64 = integer;
    } else if (described.type == Type::int32) {
        if (integer < std::numeric_limits<std::int32_t>::min() ||
            integer > std::numeric_limits<std::int32_t>::max()) {
            fail(TIGERFG_INVALID_ARGUMENT, "%s: %lld does not fit 32 bits", field,
                 static_cast<long long>(integer));
        }
        values_[i].int32 = static_cast<std::int32_t>(integer);
    } else {
        fail(TIGERFG_INTERNAL, "%s: %s is no integer", kernel_.name, argument);
    }
    addresses_[i] = &values_[i];
    return *this;
}

void Launch::run(dim3 grid, cudaStream_t stream) {
    const auto arguments = kernel_.arguments();
    for (std::size_t i = 0; i < arguments.count; ++i) {
        if (addresses_[i] == nullptr) {
            fail(TIGERFG_INTERNAL, "%s: %s was not set", kernel_.name, arguments[i].name);
        }
    }
    Registry::instance().launch(kernel_, device_, grid, addresses_.data(), stream);
}

}  // namespace tigerfg
