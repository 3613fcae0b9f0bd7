#include "args.hpp"
#include "launch.hpp"

namespace {

using namespace tigerfg;
using Args = tigerfg_pooled_embedding_args;

struct Plan {
    const Kernel* kernel;
    std::int64_t patches;
    std::int64_t splits;
    std::size_t counters;
    bool masked;
};

struct Memory {
    void* partial;  // these two where an item's patches are split
    void* stats;
    void* normed;
    void* ones;  // stand for the mask where the kernel reads one and the caller has none
};

Args checked(const Args* given) {
    constexpr std::int64_t most = 2147483647;
    Args args = read(given);
    type_name(args.dtype);
    require_range(args.pooling, TIGERFG_POOL_MEAN, TIGERFG_POOL_CLS, "pooling");
    require_range(args.batch, 0, most, "batch");
    require_range(args.patches, 1, most, "patches");
    require_range(args.width, 16, most, "width");
    require_range(args.embedding_dim, 16, most, "embedding_dim");
    default_strides(args.patches, args.width, args.v_batch_stride, args.v_patch_stride);
    return args;
}

// As pooled_embedding_triton of kernels/pooling.py does. Without a mask, "cls" over all patches is
// the mean.
Plan plan(const Device& device, const Args& args) {
    const bool attention = args.pooling == TIGERFG_POOL_ATTENTION;
    const bool cls = args.pooling == TIGERFG_POOL_CLS;
    const bool masked = attention || (args.patch_mask != nullptr && !cls);
    const Kernel* kernel = select(device, "pooled_embedding_kernel", [&](const Kernel& candidate) {
        return takes(candidate, "v_ptr", args.dtype) && candidate.constant("D", 0) == args.width &&
               candidate.constant("E", 0) == args.embedding_dim &&
               (candidate.constant("ATTENTION", 0) != 0) == attention &&
               (candidate.constant("MASKED", 0) != 0) == masked;
    });
    if (kernel == nullptr) {
        fail(TIGERFG_UNSUPPORTED,
             "width: the library holds no pooling kernel for %s, width %d and embedding_dim %d on "
             "sm_%d",
             type_name(args.dtype), args.width, args.embedding_dim, device.arch);
    }
    const std::int64_t patches = cls ? 1 : args.patches;
    const auto rows = static_cast<std::int64_t>(kernel->constant("ROWS", 1));
    const auto group = static_cast<std::int64_t>(kernel->constant("GROUP", 1));
    const auto most = static_cast<std::int64_t>(kernel->constant("MAX_SPLITS", 1));
    const std::int64_t filling =
        std::max<std::int64_t>(1, 2 * device.multiprocessors / std::int64_t{args.batch});
    return {kernel, patches, std::min({filling, most, ceil_div(patches, rows)}),
            static_cast<std::size_t>(args.batch + ceil_div<std::int64_t>(args.batch, group)),
            masked};
}

Memory lay_out(Workspace& workspace, const Args& args, const Plan& plan) {
    const std::int64_t batch = args.batch;
    const std::int64_t parts = plan.splits > 1 ? batch * plan.splits : 0;
    const bool fill = plan.masked && args.patch_mask == nullptr;
    return {workspace.take(4 * parts * args.width), workspace.take(8 * parts),
            workspace.take(type_size(args.dtype) * batch * args.width),
            workspace.take(fill ? batch * args.patches : 0)};
}

}  // namespace

tigerfg_status tigerfg_pooled_embedding_workspace(const Args* given, size_t* bytes,
                                                  size_t* counters) {
    return guarded([&] {
        const Args args = checked(given);
        require_pointer(bytes, "bytes");
        require_pointer(counters, "counters");
        *bytes = *counters = 0;
        if (args.batch == 0) return;
        const Plan planned = plan(current_device(), args);
        Workspace workspace(nullptr);
        lay_out(workspace, args, planned);
        *bytes = workspace.size();
        *counters = planned.counters;
    });
}

tigerfg_status tigerfg_pooled_embedding(const Args* given, tigerfg_stream stream) {
    return guarded([&] {
        const Args args = checked(given);
        if (args.batch == 0) return;
        require_pointer(args.v, "v");
        require_pointer(args.norm_weight, "norm_weight");
        require_pointer(args.norm_bias, "norm_bias");
        require_pointer(args.projection, "projection");
        require_pointer(args.z, "z");
        if (args.pooling == TIGERFG_POOL_ATTENTION) require_pointer(args.query, "query");
        const Device device = current_device();
        const Plan planned = plan(device, args);
        Workspace workspace(args.workspace);
        const Memory memory = lay_out(workspace, args, planned);
        require_workspace(args.workspace, args.workspace_bytes, workspace.size());
        require_counters(args.counters, args.counters_count, planned.counters);
        const void* mask = args.patch_mask;
        if (planned.masked && mask == nullptr) {
            const auto bytes = static_cast<std::size_t>(std::int64_t{args.batch} * args.patches);
            Registry::instance().fill(memory.ones, 1, bytes, stream);
            mask = memory.ones;
        }
        const bool attention = args.pooling == TIGERFG_POOL_ATTENTION;
        Launch(*planned.kernel, device)
            .set("v_ptr", args.v, "v")
            .set("mask_ptr", mask == nullptr ? args.v : mask, "patch_mask")
            .set("query_ptr", attention ? args.query : args.norm_weight, "query")
            .set("norm_weight_ptr", args.norm_weight, "norm_weight")
            .set("norm_bias_ptr", args.norm_bias, "norm_bias")
            .set("projection_ptr", args.projection, "projection")
            .set("z_ptr", args.z, "z")
            .set("partial_ptr", memory.partial, "workspace")
            .set("stats_ptr", memory.stats, "workspace")
            .set("normed_ptr", memory.normed, "workspace")
            .set("counters_ptr", args.counters, "counters")
            .set("batch", args.batch, "batch")
            .set("patches", planned.patches, "patches")
            .set("splits", planned.splits, "batch")
            .set("width", args.width, "width")
            .set("stride_b", args.v_batch_stride, "v_batch_stride")
            .set("stride_n", args.v_patch_stride, "v_patch_stride")
            .run(grid(args.batch * planned.splits), stream);
    });
}
