#include "args.hpp"
#include "attend.hpp"

namespace {

using namespace tigerfg;

struct Memory {
    void* one;
    void* logits;
    void* parts;  // these two where the pass is split
    void* stats;
};

AttendShape shape_of(const tigerfg_grounding_args& args) {
    return {args.dtype, args.batch,   args.queries, args.patches,
            args.width, args.queries, args.queries};
}

Memory lay_out(Workspace& workspace, const AttendShape& shape, const AttendPlan& plan) {
    const std::int64_t rows = shape.batch * shape.queries;
    const std::int64_t splits = plan.whole ? 0 : plan.splits;
    return {workspace.take(16), workspace.take(4 * rows * shape.patches),
            workspace.take(4 * rows * splits * shape.width), workspace.take(8 * rows * splits)};
}

void combine(const Device& device, const tigerfg_grounding_args& args, const AttendPlan& plan,
             const Memory& memory, cudaStream_t stream) {
    const Kernel* kernel = select(device, "grounding_combine_kernel", [&](const Kernel& candidate) {
        return takes(candidate, "p_ptr", args.dtype) && candidate.constant("D", 0) == args.width &&
               candidate.constant("PER_QUERY", 0) == 0;
    });
    if (kernel == nullptr) unsupported(device, "joining", args.dtype, args.width);
    const auto block_n = static_cast<std::int32_t>(kernel->constant("BLOCK_N", 1));
    const std::int64_t parts = std::int64_t{args.queries} + ceil_div(args.patches, block_n);
    require_range(parts, 1, 65535, "queries");  // CUDA's limit in y
    dim3 blocks = grid(args.batch);
    blocks.y = static_cast<unsigned>(parts);
    Launch(*kernel, device)
        .set("parts_ptr", memory.parts, "workspace")
        .set("stats_ptr", memory.stats, "workspace")
        .set("logits_ptr", memory.logits, "workspace")
        .set("p_ptr", args.p, "p")
        .set("map_ptr", args.map, "map")
        .set("patches", args.patches, "patches")
        .set("queries", args.queries, "queries")
        .set("splits", plan.splits, "batch")
        .run(blocks, stream);
}

}  // namespace

tigerfg_status tigerfg_grounding_workspace(const tigerfg_grounding_args* given, size_t* bytes,
                                           size_t* counters) {
    return guarded([&] {
        auto args = read(given);
        require_pointer(bytes, "bytes");
        require_pointer(counters, "counters");
        check_attend(shape_of(args), args.v_batch_stride, args.v_patch_stride);
        *bytes = *counters = 0;
        if (args.batch == 0) return;
        Workspace workspace(nullptr);
        lay_out(workspace, shape_of(args), plan_attend(current_device(), shape_of(args)));
        *bytes = workspace.size();
    });
}

tigerfg_status tigerfg_grounding(const tigerfg_grounding_args* given, tigerfg_stream stream) {
    return guarded([&] {
        auto args = read(given);
        const AttendShape shape = shape_of(args);
        check_attend(shape, args.v_batch_stride, args.v_patch_stride);
        if (args.batch == 0) return;
        require_pointer(args.x, "x");
        require_pointer(args.v, "v");
        require_pointer(args.p, "p");
        require_pointer(args.map, "map");
        const Device device = current_device();
        const AttendPlan plan = plan_attend(device, shape);
        Workspace workspace(args.workspace);
        const Memory memory = lay_out(workspace, shape, plan);
        require_workspace(args.workspace, args.workspace_bytes, workspace.size());
        run_attend(device, shape, plan,
                   {args.x, args.v, args.v_batch_stride, args.v_patch_stride, args.patch_mask,
                    memory.one, plan.whole ? args.p : memory.parts, memory.stats, memory.logits,
                    args.map},
                   stream);
        if (!plan.whole) combine(device, args, plan, memory, stream);
    });
}
