#include "args.hpp"
#include "attend.hpp"

namespace {

using namespace tigerfg;
using Args = tigerfg_grounded_embedding_args;

struct Plan {
    AttendShape shape;
    AttendPlan attend;
    const Kernel* tail;
    std::int64_t block;   // items that one program of the tail takes
    std::int64_t blocks;  // of items
};

struct Memory {
    void* one;
    void* logits;
    void* p;
    void* stats;  // where the pass is split
    void* sums;
};

AttendShape shape_of(const Args& args) {
    const std::int64_t map_queries = std::int64_t{args.heads} * args.queries_per_head;
    return {args.dtype,
            args.batch,
            map_queries + 1,
            args.patches,
            args.width,
            map_queries + args.pool_by_attention,
            map_queries};
}

Args checked(const Args* given) {
    constexpr std::int64_t most = 2147483647;
    Args args = read(given);
    require_range(args.heads, 1, most, "heads");
    require_range(args.queries_per_head, 1, most, "queries_per_head");
    require_range(args.pool_by_attention, 0, 1, "pool_by_attention");
    require_range(args.embedding_dim, 1, most, "embedding_dim");
    check_attend(shape_of(args), args.v_batch_stride, args.v_patch_stride);
    if (args.width % args.heads != 0) {
        fail(TIGERFG_INVALID_ARGUMENT, "heads: %d must divide the width, %d", args.heads,
             args.width);
    }
    return args;
}

Plan plan(const Device& device, const Args& args) {
    const AttendShape shape = shape_of(args);
    const AttendPlan attend = plan_attend(device, shape);
    const Kernel* tail = select(device, "tail_kernel", [&](const Kernel& kernel) {
        return takes(kernel, "text_ptr", args.dtype) && kernel.constant("D", 0) == args.width &&
               kernel.constant("HEAD", 0) == args.width / args.heads &&
               kernel.constant("E", 0) == args.embedding_dim &&
               (kernel.constant("SPLIT", 0) != 0) != attend.whole;
    });
    if (tail == nullptr) {
        fail(TIGERFG_UNSUPPORTED,
             "width: the library holds no embedding kernel for %s, width %d, heads of %d and "
             "embedding_dim %d on sm_%d",
             type_name(args.dtype), args.width, args.width / args.heads, args.embedding_dim,
             device.arch);
    }
    const auto block = static_cast<std::int64_t>(tail->constant("BLOCK_I", 1));
    return {shape, attend, tail, block, ceil_div<std::int64_t>(args.batch, block)};
}

Memory lay_out(Workspace& workspace, const Args& args, const Plan& plan) {
    const std::int64_t rows = plan.shape.batch * plan.shape.queries;
    const std::int64_t splits = plan.attend.whole ? 0 : plan.attend.splits;
    const std::int64_t p_bytes =
        plan.attend.whole ? type_size(args.dtype) * rows : 4 * rows * splits;
    return {workspace.take(16), workspace.take(4 * rows * args.patches),
            workspace.take(p_bytes * args.width), workspace.take(8 * rows * splits),
            workspace.take(4 * plan.blocks * (args.heads + 1) * args.width * plan.block)};
}

void run_tail(const Device& device, const Args& args, const Plan& plan, const Memory& memory,
              cudaStream_t stream) {
    const bool split = !plan.attend.whole;
    std::int64_t programs = plan.blocks * args.heads;
    if (split) {
        const auto block_n = static_cast<std::int32_t>(plan.tail->constant("BLOCK_N", 1));
        programs += std::int64_t{args.batch} * ceil_div(args.patches, block_n);
    }
    Launch(*plan.tail, device)
        .set("p_ptr", memory.p, "workspace")
        .set("stats_ptr", split ? memory.stats : memory.sums, "workspace")
        .set("logits_ptr", memory.logits, "workspace")
        .set("text_ptr", args.text, "text")
        .set("w_v_ptr", args.w_v, "w_v")
        .set("w_o_ptr", args.w_o, "w_o")
        .set("gate_pool_ptr", args.gate_pool, "gate_pool")
        .set("gate_text_ptr", args.gate_text, "gate_text")
        .set("norm_weight_ptr", args.norm_weight, "norm_weight")
        .set("norm_bias_ptr", args.norm_bias, "norm_bias")
        .set("projection_ptr", args.projection, "projection")
        .set("sums_ptr", memory.sums, "workspace")
        .set("counters_ptr", args.counters, "counters")
        .set("z_ptr", args.z, "z")
        .set("map_ptr", args.map, "map")
        .set("batch", args.batch, "batch")
        .set("patches", args.patches, "patches")
        .set("queries", plan.shape.queries, "queries_per_head")
        .set("splits", plan.attend.splits, "batch")
        .set("heads", args.heads, "heads")
        .set("per_head", args.queries_per_head, "queries_per_head")
        .run(grid(programs), stream);
}

}  // namespace

tigerfg_status tigerfg_grounded_embedding_workspace(const Args* given, size_t* bytes,
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
        *counters = static_cast<std::size_t>(planned.blocks);
    });
}

tigerfg_status tigerfg_grounded_embedding(const Args* given, tigerfg_stream stream) {
    return guarded([&] {
        const Args args = checked(given);
        if (args.batch == 0) return;
        const struct {
            const void* pointer;
            const char* field;
        } needed[] = {{args.x, "x"},
                      {args.v, "v"},
                      {args.text, "text"},
                      {args.w_v, "w_v"},
                      {args.w_o, "w_o"},
                      {args.gate_pool, "gate_pool"},
                      {args.gate_text, "gate_text"},
                      {args.norm_weight, "norm_weight"},
                      {args.norm_bias, "norm_bias"},
                      {args.projection, "projection"},
                      {args.z, "z"},
                      {args.map, "map"}};
        for (const auto& field : needed) require_pointer(field.pointer, field.field);
        const Device device = current_device();
        const Plan planned = plan(device, args);
        Workspace workspace(args.workspace);
        const Memory memory = lay_out(workspace, args, planned);
        require_workspace(args.workspace, args.workspace_bytes, workspace.size());
        require_counters(args.counters, args.counters_count,
                         static_cast<std::size_t>(planned.blocks));
        run_attend(device, planned.shape, planned.attend,
                   {args.x, args.v, args.v_batch_stride, args.v_patch_stride, args.patch_mask,
                    memory.one, memory.p, memory.stats, memory.logits, args.map},
                   stream);
        run_tail(device, args, planned, memory, stream);
    });
}
