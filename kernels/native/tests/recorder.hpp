#pragma once

#include "device.hpp"

namespace tigerfg {

extern Device imagined;  // what current_device() gives

}  // namespace tigerfg
