// The pass over the patches, which grounding and the item's embedding begin with.
#pragma once

#include "launch.hpp"
#include "tigerfg/kernels.h"

namespace tigerfg {

struct AttendShape {
    tigerfg_dtype dtype;
    std::int64_t batch, queries, patches, width;
    std::int64_t x_queries;    // that x holds; the others are zero, which weigh all patches alike
    std::int64_t map_queries;  // that the map is the mean of
};

// How the pass is launched; as kernels/attend.py does.
struct AttendPlan {
    const Kernel* kernel;
    std::int64_t splits;
    std::int64_t blocks;
    bool whole;  // one program an item: p and the map are final; else splits are to be joined
};

AttendPlan plan_attend(const Device& device, const AttendShape& shape);

// Where the pass reads and writes; strides in elements.
struct AttendData {
    const void* x;
    const void* v;
    std::int64_t v_batch_stride, v_patch_stride;
    const std::uint8_t* patch_mask;  // NULL: all
    void* one;  // 16 bytes of the workspace, which stand for the mask where there is none
    void* p;    // whole: (batch, queries, width); else float32 (batch, splits, queries, width)
    void* stats;    // not whole: (batch, splits, queries, 2)
    void* logits;   // (batch, queries, patches)
    float* map;     // whole: (batch, patches)
};

void run_attend(const Device& device, const AttendShape& shape, const AttendPlan& plan,
                const AttendData& data, cudaStream_t stream);

// Checks sizes and strides, and replaces strides of 0 by those of a contiguous v.
void check_attend(const AttendShape& shape, std::int64_t& v_batch_stride,
                  std::int64_t& v_patch_stride);

}  // namespace tigerfg
