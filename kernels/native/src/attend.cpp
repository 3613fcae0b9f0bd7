#include "attend.hpp"

#include "args.hpp"

namespace tigerfg {
namespace {

constexpr const char* entry = "grounding_kernel";
constexpr std::int64_t max_splits = 16;  // MAX_SPLITS of kernels/combine.py

// Those that read a mask: without one, the workspace stands for it.
bool fits(const Kernel& kernel, const AttendShape& shape, bool whole) {
    return takes(kernel, "v_ptr", shape.dtype) && kernel.constant("D", 0) == shape.width &&
           kernel.constant("MASKED", 0) != 0 && (kernel.constant("FINISH", 0) != 0) == whole;
}

// The narrowest block of queries that takes all of them, or else the widest.
const Kernel& splitting_kernel(const Device& device, const AttendShape& shape) {
    const Kernel* best = nullptr;
    for (const Kernel& kernel : kernels()) {
        if (kernel.arch != device.arch || std::strcmp(kernel.entry, entry) != 0 ||
            !fits(kernel, shape, false)) {
            continue;
        }
        const double block = kernel.constant("BLOCK_Q", 0);
        const double queries = static_cast<double>(shape.queries);
        const double chosen = best == nullptr ? 0 : best->constant("BLOCK_Q", 0);
        const bool better = chosen >= queries ? block >= queries && block < chosen : block > chosen;
        if (best == nullptr || better) best = &kernel;
    }
    if (best == nullptr) unsupported(device, "grounding", shape.dtype, shape.width);
    return *best;
}

}  // namespace

AttendPlan plan_attend(const Device& device, const AttendShape& shape) {
    const Kernel& splitting = splitting_kernel(device, shape);
    const auto block_q = static_cast<std::int64_t>(splitting.constant("BLOCK_Q", 1));
    const auto block_n = static_cast<std::int64_t>(splitting.constant("BLOCK_N", 1));
    const std::int64_t query_blocks = ceil_div(shape.queries, block_q);
    std::int64_t splits = device.multiprocessors / (shape.batch * query_blocks);
    splits = std::max<std::int64_t>(
        1, std::min({splits, ceil_div(shape.patches, block_n), max_splits}));
    const std::int64_t blocks = shape.batch * splits * query_blocks;
    if (splits == 1 && query_blocks == 1) {
        const Kernel* whole = select(device, entry, [&](const Kernel& kernel) {
            return fits(kernel, shape, true) && kernel.constant("BLOCK_Q", 0) == block_q;
        });
        if (whole != nullptr) return {whole, splits, blocks, true};
    }
    return {&splitting, splits, blocks, false};
}

void run_attend(const Device& device, const AttendShape& shape, const AttendPlan& plan,
                const AttendData& data, cudaStream_t stream) {
    const void* mask = data.patch_mask;
    if (mask == nullptr) {
        Registry::instance().fill(data.one, 1, 16, stream);
        mask = data.one;
    }
    const bool masked = data.patch_mask != nullptr;
    Launch(*plan.kernel, device)
        .set("x_ptr", data.x, "x")
        .set("v_ptr", data.v, "v")
        .set("mask_ptr", mask, "patch_mask")
        .set("p_ptr", data.p, "p")
        .set("stats_ptr", plan.whole ? data.logits : data.stats, "workspace")
        .set("logits_ptr", data.logits, "workspace")
        .set("map_ptr", plan.whole ? data.map : data.logits, "map")
        .set("stride_xb", shape.x_queries * shape.width, "width")
        .set("stride_vb", data.v_batch_stride, "v_batch_stride")
        .set("stride_vn", data.v_patch_stride, "v_patch_stride")
        .set("stride_mb", masked ? shape.patches : 0, "patches")
        .set("stride_mn", masked ? 1 : 0, "patches")
        .set("patches", shape.patches, "patches")
        .set("queries", shape.queries, "queries")
        .set("splits", plan.splits, "batch")
        .set("x_queries", shape.x_queries, "queries")
        .set("map_queries", shape.map_queries, "queries")
        .run(grid(plan.blocks), stream);
}

void check_attend(const AttendShape& shape, std::int64_t& v_batch_stride,
                  std::int64_t& v_patch_stride) {
    constexpr std::int64_t most = 2147483647;
    type_name(shape.dtype);
    require_range(shape.batch, 0, most, "batch");
    require_range(shape.queries, 1, most, "queries");
    require_range(shape.patches, 1, most, "patches");
    require_range(shape.width, 16, most, "width");
    default_strides(shape.patches, shape.width, v_batch_stride, v_patch_stride);
}

}  // namespace tigerfg
