#include "device.hpp"

#include <algorithm>
#include <string>

#include "error.hpp"

namespace tigerfg {
namespace {

// Code for sm_90a runs on 9.0 alone; code for sm_86 also on 8.7 and 8.9, but not on 9.0.
bool runs_on(const Kernel& kernel, int capability) noexcept {
    if (kernel.exact) return kernel.arch == capability;
    return kernel.arch / 10 == capability / 10 && kernel.arch <= capability;
}

std::string embedded_targets() {
    std::string targets;
    for (const Kernel& kernel : kernels()) {
        if (targets.find(kernel.target) == std::string::npos) {
            targets += targets.empty() ? "" : ", ";
            targets += kernel.target;
        }
    }
    return targets;
}

int attribute(cudaDeviceAttr name, int ordinal) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, ordinal), "reading", "a device attribute");
    return value;
}

}  // namespace

Device current_device() {
    int ordinal = 0;
    check(cudaGetDevice(&ordinal), "asking for", "the current device");
    const int capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, ordinal) +
                           attribute(cudaDevAttrComputeCapabilityMinor, ordinal);
    int arch = 0;
    for (const Kernel& kernel : kernels()) {
        if (runs_on(kernel, capability)) arch = std::max(arch, kernel.arch);
    }
    if (arch == 0) {
        fail(TIGERFG_UNSUPPORTED,
             "device %d has compute capability %d.%d; the library holds kernels for %s", ordinal,
             capability / 10, capability % 10, embedded_targets().c_str());
    }
    return {ordinal, arch, attribute(cudaDevAttrMultiProcessorCount, ordinal)};
}

const Kernel& find(const char* name, int arch) {
    for (const Kernel& kernel : kernels()) {
        if (kernel.arch == arch && std::strcmp(kernel.name, name) == 0) return kernel;
    }
    fail(TIGERFG_NOT_FOUND, "name: the library holds no kernel %s for sm_%d", name, arch);
}

}  // namespace tigerfg
