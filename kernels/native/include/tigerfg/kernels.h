/* tigerfg kernels: the Triton kernels of tigerfg, compiled ahead of time, for C and C++.
 *
 * No Python, Triton or CUDA toolkit is needed at run time: only the NVIDIA driver. Rules:
 *
 * - What can fail returns a status; tigerfg_last_error() says more of this thread's last failure.
 * - Pointers to data are device pointers, unless said otherwise. The current device
 *   (cudaSetDevice) is the stream's.
 * - Work is enqueued on the caller's stream; nothing synchronises or allocates device memory. A
 *   kernel is loaded at its first launch on a device: make that launch before capturing a graph.
 * - All functions may be called from several threads at once, except tigerfg_kernels_unload.
 */
#ifndef TIGERFG_KERNELS_H
#define TIGERFG_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include <tigerfg/kernels_export.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The type behind cudaStream_t and CUstream; NULL is the default stream. */
typedef struct CUstream_st *tigerfg_stream;

typedef enum tigerfg_status {
    TIGERFG_OK = 0,
    TIGERFG_INVALID_ARGUMENT = 1, /* the message names the field */
    TIGERFG_NOT_FOUND = 2,        /* no kernel of that name or index */
    TIGERFG_UNSUPPORTED = 3,      /* no kernel for this device, type or width */
    TIGERFG_NO_DRIVER = 4,        /* the NVIDIA driver is missing or too old */
    TIGERFG_NO_DEVICE = 5,        /* a driver, but no GPU */
    TIGERFG_OUT_OF_MEMORY = 6,
    TIGERFG_CUDA_ERROR = 7,
    TIGERFG_INTERNAL = 8
} tigerfg_status;

/* A short description of a status; never NULL. */
TIGERFG_API const char *tigerfg_status_string(tigerfg_status status);

/* What went wrong in this thread's last call that failed; "" if none did. Valid until the next. */
TIGERFG_API const char *tigerfg_last_error(void);

/* The library's version, e.g. "0.1.0". */
TIGERFG_API const char *tigerfg_kernels_version(void);

/* ---- The operators --------------------------------------------------------------------------
 *
 * Each takes one struct: set all of it to zero, then struct_size to its sizeof, then the fields.
 * New versions append fields for which zero means what was before. Arrays are contiguous and begin
 * at multiples of 16 bytes unless said otherwise; a batch of 0 does nothing.
 *
 * <op>_workspace(args, &bytes, &counters) says how much memory the call needs on the current
 * device; of the pointers in args it looks only at whether patch_mask is NULL. The workspace may
 * hold anything before and after. The counters are int32 that must be zero before the first call
 * and are left zero by each; where 0 are asked for, NULL will do. Calls that can overlap must not
 * share either: keep one pair per stream. */

typedef enum tigerfg_dtype {
    TIGERFG_FLOAT16 = 1,
    TIGERFG_BFLOAT16 = 2,
    TIGERFG_FLOAT32 = 3
} tigerfg_dtype;

/* Text-guided grounding attention over raw patches, key LayerNorm included (epsilon 1e-6):
 *
 *     a_q = softmax_n(x_q . LN(v_n)),  p_q = sum_n a_qn v_n,  map = mean_q a_q
 *
 * An item without a valid patch gives zeros. */
typedef struct tigerfg_grounding_args {
    size_t struct_size;
    tigerfg_dtype dtype; /* of x, v and p */
    int32_t batch;
    int32_t queries;
    int32_t patches;
    int32_t width;
    const void *x; /* (batch, queries, width): absorbed queries, softmax scale included */
    const void *v; /* (batch, patches, width), strided */
    int64_t v_batch_stride;    /* in elements, a multiple of 16; both 0: contiguous */
    int64_t v_patch_stride;    /* likewise */
    const uint8_t *patch_mask; /* (batch, patches), 1 where the patch is valid; NULL: all */
    void *p;                   /* out: (batch, queries, width) */
    float *map;                /* out: (batch, patches) */
    void *workspace;
    size_t workspace_bytes;
} tigerfg_grounding_args;

TIGERFG_API tigerfg_status tigerfg_grounding_workspace(const tigerfg_grounding_args *args,
                                                       size_t *bytes, size_t *counters);
TIGERFG_API tigerfg_status tigerfg_grounding(const tigerfg_grounding_args *args,
                                             tigerfg_stream stream);

/* An item's embedding, from its patches and its text, in two launches:
 *
 *     g = W_o concat_h(W_v^h mean_m p_m^h)                          (p from the grounding above)
 *     z = l2norm(projection . LN(g + gate_pool * v_pool + gate_text * text))
 *
 * v_pool is the mean of the valid patches, or attention by one more query. */
typedef struct tigerfg_grounded_embedding_args {
    size_t struct_size;
    tigerfg_dtype dtype; /* of all inputs */
    int32_t batch;
    int32_t heads;
    int32_t queries_per_head;
    int32_t patches;
    int32_t width;
    int32_t embedding_dim;
    int32_t pool_by_attention; /* 1: x ends with one more query, which pools the picture */
    const void *x;    /* (batch, heads * queries_per_head + pool_by_attention, width) */
    const void *v;    /* (batch, patches, width), strided */
    int64_t v_batch_stride;    /* in elements, a multiple of 16; both 0: contiguous */
    int64_t v_patch_stride;    /* likewise */
    const uint8_t *patch_mask; /* (batch, patches), 1 where the patch is valid; NULL: all */
    const void *text;          /* (batch, width) */
    const void *w_v;           /* (width, width), head by head */
    const void *w_o;           /* (width, width) */
    const void *gate_pool;     /* (width) */
    const void *gate_text;     /* (width) */
    const void *norm_weight;   /* (width) */
    const void *norm_bias;     /* (width) */
    const void *projection;    /* (embedding_dim, width) */
    float *z;                  /* out: (batch, embedding_dim) */
    float *map;                /* out: (batch, patches) */
    void *workspace;
    size_t workspace_bytes;
    int32_t *counters;
    size_t counters_count;
} tigerfg_grounded_embedding_args;

TIGERFG_API tigerfg_status tigerfg_grounded_embedding_workspace(
    const tigerfg_grounded_embedding_args *args, size_t *bytes, size_t *counters);
TIGERFG_API tigerfg_status tigerfg_grounded_embedding(const tigerfg_grounded_embedding_args *args,
                                                      tigerfg_stream stream);

/* A picture's embedding from its patches, in one launch: z = l2norm(projection . LN(pooled)). */
typedef enum tigerfg_pooling {
    TIGERFG_POOL_MEAN = 1,      /* the mean of the valid patches */
    TIGERFG_POOL_ATTENTION = 2, /* attention over the valid patches by one learnt query */
    TIGERFG_POOL_CLS = 3        /* the first patch */
} tigerfg_pooling;

typedef struct tigerfg_pooled_embedding_args {
    size_t struct_size;
    tigerfg_dtype dtype; /* of v and projection */
    tigerfg_pooling pooling;
    int32_t batch;
    int32_t patches;
    int32_t width;
    int32_t embedding_dim;
    const void *v;             /* (batch, patches, width), strided */
    int64_t v_batch_stride;    /* in elements, a multiple of 16; both 0: contiguous */
    int64_t v_patch_stride;    /* likewise */
    const uint8_t *patch_mask; /* (batch, patches), 1 where the patch is valid; NULL: all */
    const float *query;        /* (width), softmax scale included; for attention alone */
    const float *norm_weight;  /* (width) */
    const float *norm_bias;    /* (width) */
    const void *projection;    /* (embedding_dim, width) */
    float *z;                  /* out: (batch, embedding_dim) */
    void *workspace;
    size_t workspace_bytes;
    int32_t *counters;
    size_t counters_count;
} tigerfg_pooled_embedding_args;

TIGERFG_API tigerfg_status tigerfg_pooled_embedding_workspace(
    const tigerfg_pooled_embedding_args *args, size_t *bytes, size_t *counters);
TIGERFG_API tigerfg_status tigerfg_pooled_embedding(const tigerfg_pooled_embedding_args *args,
                                                    tigerfg_stream stream);

/* Photos to model pixels: crop, antialiased resize (as Pillow's), letterbox, normalisation. */
typedef enum tigerfg_interpolation {
    TIGERFG_BILINEAR = 1,
    TIGERFG_BICUBIC = 2,
    TIGERFG_LANCZOS = 3
} tigerfg_interpolation;

typedef struct tigerfg_preprocess_args {
    size_t struct_size;
    tigerfg_dtype dtype; /* of pixels */
    tigerfg_interpolation interpolation;
    int32_t batch;
    int32_t size;  /* of the square result, at most 16384 */
    int32_t patch; /* divides size */
    const uint8_t *packed;  /* interleaved RGB of all images, rows without padding; the address is
                               a multiple of 4, and the bytes up to the next one are readable */
    const int64_t *offsets; /* (batch): where in packed each begins */
    const int32_t *sizes;   /* (batch, 2): height and width of each */
    const float *boxes;     /* (batch, 4): x0, y0, x1, y1 in pixels; NULL: whole pictures */
    const float *affine;    /* (6), see tigerfg_preprocess_affine */
    void *pixels;           /* out: (batch, 3, size, size) */
    uint8_t *patch_mask;    /* out: (batch, (size / patch)^2), 1 where a patch shows the picture */
    int32_t *extents;       /* out: (batch, 2): width and height of the picture in the result */
} tigerfg_preprocess_args;

TIGERFG_API tigerfg_status tigerfg_preprocess(const tigerfg_preprocess_args *args,
                                              tigerfg_stream stream);

/* The six host floats that affine points to on the device: 1 / (255 std), then mean / std. */
TIGERFG_API tigerfg_status tigerfg_preprocess_affine(const float mean[3], const float std[3],
                                                     float affine[6]);

/* ---- Any kernel by its name ---------------------------------------------------------------- */

typedef struct tigerfg_argument_info {
    const char *name;
    const char *type; /* "*fp16": a device pointer; "i32", "i64": integers; "fp32": a float */
    int aligned;      /* must be a multiple of 16: a pointer in bytes, an integer in value */
} tigerfg_argument_info;

typedef struct tigerfg_kernel_info {
    size_t struct_size; /* in: sizeof(tigerfg_kernel_info) */
    const char *name;   /* e.g. "pooled_embedding_mean_fp16_d768_e256" */
    const char *op;     /* "grounding", "tail", "pooling" or "preprocess" */
    const char *target; /* "sm_90a" */
    int arch;           /* 90 for compute capability 9.0 */
    int threads;        /* of a block */
    int shared_bytes;   /* dynamic shared memory of a block */
    size_t cubin_bytes;
    size_t argument_count;
    const char *grid[3]; /* launch grid as rules, "1" where there is no such dimension */
} tigerfg_kernel_info;

/* How many kernels the library holds, each architecture's counted. */
TIGERFG_API size_t tigerfg_kernels_count(void);

/* The name of the kernel at an index; NULL beyond the last. */
TIGERFG_API const char *tigerfg_kernels_name(size_t index);

/* Fills a description; its struct_size is set by the caller. */
TIGERFG_API tigerfg_status tigerfg_kernels_info(size_t index, tigerfg_kernel_info *info);

/* Describes one of a kernel's arguments. */
TIGERFG_API tigerfg_status tigerfg_kernels_argument(size_t index, size_t argument,
                                                    tigerfg_argument_info *info);

/* The index of a kernel for an architecture (90), or for the current device if arch is 0. */
TIGERFG_API tigerfg_status tigerfg_kernel_find(const char *name, int arch, size_t *index);

/* Launches the current device's form of a kernel.
 *
 * arguments[i] is the host address of argument i's value, as many as tigerfg_kernel_info says;
 * they are read before the function returns. Shapes and alignment are the caller's to get right:
 * the operators above check them. */
TIGERFG_API tigerfg_status tigerfg_kernel_launch(const char *name, const unsigned int grid[3],
                                                 void *const *arguments, tigerfg_stream stream);

/* Unloads all kernels; the next launch loads again. No launch may be under way in any thread or on
 * any stream. Not needed before the process ends. */
TIGERFG_API tigerfg_status tigerfg_kernels_unload(void);

#ifdef __cplusplus
}
#endif

#endif
