#include "args.hpp"
#include "launch.hpp"

namespace {

using namespace tigerfg;

constexpr std::int32_t max_size = 16384;  // MAX_SIZE of kernels/preprocess.py

const Kernel& kernel_for(const Device& device, const tigerfg_preprocess_args& args) {
    const Kernel* kernel = select(device, "preprocess_kernel", [&](const Kernel& candidate) {
        return takes(candidate, "pixels_ptr", args.dtype) &&
               candidate.constant("SUPPORT", 0) == static_cast<double>(args.interpolation);
    });
    if (kernel == nullptr) {
        fail(TIGERFG_UNSUPPORTED, "dtype: the library holds no preprocess kernel for %s on sm_%d",
             type_name(args.dtype), device.arch);
    }
    return *kernel;
}

}  // namespace

tigerfg_status tigerfg_preprocess_affine(const float mean[3], const float std[3],
                                         float affine[6]) {
    return guarded([&] {
        require_pointer(mean, "mean");
        require_pointer(std, "std");
        require_pointer(affine, "affine");
        for (int channel = 0; channel < 3; ++channel) {
            if (!(std[channel] > 0)) {
                fail(TIGERFG_INVALID_ARGUMENT, "std[%d]: %g must be positive", channel,
                     static_cast<double>(std[channel]));
            }
            const double deviation = std[channel];
            affine[channel] = static_cast<float>(1 / (255 * deviation));
            affine[3 + channel] = static_cast<float>(mean[channel] / deviation);
        }
    });
}

tigerfg_status tigerfg_preprocess(const tigerfg_preprocess_args* given, tigerfg_stream stream) {
    return guarded([&] {
        const auto args = read(given);
        type_name(args.dtype);
        require_range(args.interpolation, TIGERFG_BILINEAR, TIGERFG_LANCZOS, "interpolation");
        require_range(args.batch, 0, 2147483647, "batch");
        require_range(args.size, 1, max_size, "size");
        require_range(args.patch, 1, args.size, "patch");
        if (args.size % args.patch != 0) {
            fail(TIGERFG_INVALID_ARGUMENT, "patch: %d must divide size, %d", args.patch, args.size);
        }
        if (args.batch == 0) return;
        require_pointer(args.packed, "packed");
        if (reinterpret_cast<std::uintptr_t>(args.packed) % 4 != 0) {  // it is read in words
            fail(TIGERFG_INVALID_ARGUMENT, "packed: the address %p is not a multiple of 4 bytes",
                 static_cast<const void*>(args.packed));
        }
        require_pointer(args.offsets, "offsets");
        require_pointer(args.sizes, "sizes");
        require_pointer(args.affine, "affine");
        require_pointer(args.pixels, "pixels");
        require_pointer(args.patch_mask, "patch_mask");
        require_pointer(args.extents, "extents");
        const Device device = current_device();
        const Kernel& kernel = kernel_for(device, args);
        const auto block_h = static_cast<std::int32_t>(kernel.constant("BLOCK_H", 1));
        const auto block_w = static_cast<std::int32_t>(kernel.constant("BLOCK_W", 1));
        const std::int64_t tiles =
            std::int64_t{ceil_div(args.size, block_h)} * ceil_div(args.size, block_w);
        Launch(kernel, device)
            .set("packed_ptr", args.packed, "packed")
            .set("offsets_ptr", args.offsets, "offsets")
            .set("sizes_ptr", args.sizes, "sizes")
            .set("boxes_ptr", args.boxes, "boxes")
            .set("affine_ptr", args.affine, "affine")
            .set("pixels_ptr", args.pixels, "pixels")
            .set("mask_ptr", args.patch_mask, "patch_mask")
            .set("extents_ptr", args.extents, "extents")
            .set("size", args.size, "size")
            .set("patch", args.patch, "patch")
            .set("boxed", args.boxes == nullptr ? 0 : 1, "boxes")
            .run(grid(args.batch * tiles), stream);
    });
}
