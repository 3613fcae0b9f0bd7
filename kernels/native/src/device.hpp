// The current device, and which embedded kernels run on it.
#pragma once

#include "table.hpp"

namespace tigerfg {

struct Device {
    int ordinal;
    int arch;  // the embedded architecture that it runs, e.g. 86 on compute capability 8.7
    int multiprocessors;
};

// Throws where there is no driver or device, or no kernel is embedded for it.
Device current_device();

// The kernel of that name for an architecture; throws NOT_FOUND.
const Kernel& find(const char* name, int arch);

}  // namespace tigerfg
