/* Errors and descriptions, none of which needs a device; in C, as the header must be. */
#include <stdio.h>
#include <string.h>
#include <tigerfg/kernels.h>

static int failures = 0;

static void expect(int holds, const char *what) {
    if (!holds) {
        failures += 1;
        printf("FAILED: %s; last error: %s\n", what, tigerfg_last_error());
    }
}

static void expect_error(tigerfg_status status, tigerfg_status expected, const char *message) {
    const int right = status == expected && strstr(tigerfg_last_error(), message) != NULL;
    if (!right) {
        failures += 1;
        printf("FAILED: expected %d \"%s\", got %d \"%s\"\n", expected, message, status,
               tigerfg_last_error());
    }
}

static void describe_all(void) {
    expect(tigerfg_kernels_count() > 0, "there are kernels");
    for (size_t i = 0; i < tigerfg_kernels_count(); ++i) {
        tigerfg_kernel_info info = {.struct_size = sizeof info};
        expect(tigerfg_kernels_info(i, &info) == TIGERFG_OK, "info of every kernel");
        expect(strcmp(info.name, tigerfg_kernels_name(i)) == 0, "info has the name");
        expect(info.cubin_bytes > 1000, "cubins hold code");
        expect(info.threads >= 32 && info.threads <= 1024 && info.threads % 32 == 0, "threads");
        expect(info.shared_bytes >= 0 && info.shared_bytes <= 232448, "shared memory");
        char target[8];
        snprintf(target, sizeof target, "sm_%d", info.arch);
        expect(strncmp(info.target, target, strlen(target)) == 0, "target of the architecture");
        expect(info.grid[0][0] != 0 && info.grid[2][0] != 0, "grid rules");
        expect(info.argument_count > 0, "arguments");
        for (size_t a = 0; a < info.argument_count; ++a) {
            tigerfg_argument_info argument;
            expect(tigerfg_kernels_argument(i, a, &argument) == TIGERFG_OK, "argument");
            expect(argument.name[0] != 0 && argument.type[0] != 0, "argument is described");
        }
        size_t index;
        expect(tigerfg_kernel_find(info.name, info.arch, &index) == TIGERFG_OK && index == i,
               "find by name");
    }
}

static void wrong_generic_calls(void) {
    size_t index;
    expect_error(tigerfg_kernel_find("no_such", 90, &index), TIGERFG_NOT_FOUND, "no_such");
    expect_error(tigerfg_kernel_find(NULL, 90, &index), TIGERFG_INVALID_ARGUMENT, "name");
    expect_error(tigerfg_kernel_find("x", 90, NULL), TIGERFG_INVALID_ARGUMENT, "index");
    const size_t beyond = tigerfg_kernels_count();
    tigerfg_kernel_info info = {.struct_size = sizeof info};
    expect(tigerfg_kernels_name(beyond) == NULL, "no name beyond the last");
    expect_error(tigerfg_kernels_info(beyond, &info), TIGERFG_NOT_FOUND, "index");
    expect_error(tigerfg_kernels_info(0, NULL), TIGERFG_INVALID_ARGUMENT, "info");
    info.struct_size = 1;
    expect_error(tigerfg_kernels_info(0, &info), TIGERFG_INVALID_ARGUMENT, "struct_size");
    expect_error(tigerfg_kernel_launch(NULL, NULL, NULL, NULL), TIGERFG_INVALID_ARGUMENT, "name");
    const unsigned grid[3] = {1, 1, 1};
    expect_error(tigerfg_kernel_launch("x", grid, NULL, NULL), TIGERFG_INVALID_ARGUMENT,
                 "arguments");
    expect(tigerfg_kernels_unload() == TIGERFG_OK, "nothing to unload");
    for (int status = 0; status <= TIGERFG_INTERNAL; ++status) {
        expect(strcmp(tigerfg_status_string((tigerfg_status)status), "unknown status") != 0,
               "every status is described");
    }
}

static tigerfg_grounding_args grounding_args(void) {
    return (tigerfg_grounding_args){.struct_size = sizeof(tigerfg_grounding_args),
                                    .dtype = TIGERFG_FLOAT16,
                                    .batch = 2,
                                    .queries = 12,
                                    .patches = 196,
                                    .width = 768};
}

static void wrong_grounding_calls(void) {
    expect_error(tigerfg_grounding(NULL, NULL), TIGERFG_INVALID_ARGUMENT, "args: is NULL");
    tigerfg_grounding_args args = grounding_args();
    args.struct_size = 8;
    expect_error(tigerfg_grounding(&args, NULL), TIGERFG_INVALID_ARGUMENT, "struct_size");
    args = grounding_args();
    args.dtype = (tigerfg_dtype)9;
    expect_error(tigerfg_grounding(&args, NULL), TIGERFG_INVALID_ARGUMENT, "dtype");
    args = grounding_args();
    args.queries = 0;
    expect_error(tigerfg_grounding(&args, NULL), TIGERFG_INVALID_ARGUMENT, "queries");
    args = grounding_args();
    expect_error(tigerfg_grounding(&args, NULL), TIGERFG_INVALID_ARGUMENT, "x: is NULL");
    expect_error(tigerfg_grounding_workspace(&args, NULL, NULL), TIGERFG_INVALID_ARGUMENT, "bytes");
    args.batch = 0;
    expect(tigerfg_grounding(&args, NULL) == TIGERFG_OK, "an empty batch does nothing");

    struct {
        tigerfg_grounding_args args;
        size_t newer;
    } future = {grounding_args(), 0};
    future.args.struct_size = sizeof future;
    future.args.batch = 0;
    expect(tigerfg_grounding(&future.args, NULL) == TIGERFG_OK, "a newer header, nothing used");
    future.newer = 1;
    expect_error(tigerfg_grounding(&future.args, NULL), TIGERFG_INVALID_ARGUMENT, "is set");
}

static void wrong_other_calls(void) {
    tigerfg_pooled_embedding_args pooled = {.struct_size = sizeof pooled,
                                            .dtype = TIGERFG_FLOAT16,
                                            .batch = 1,
                                            .patches = 196,
                                            .width = 768,
                                            .embedding_dim = 256};
    expect_error(tigerfg_pooled_embedding(&pooled, NULL), TIGERFG_INVALID_ARGUMENT, "pooling");
    pooled.pooling = TIGERFG_POOL_MEAN;
    expect_error(tigerfg_pooled_embedding(&pooled, NULL), TIGERFG_INVALID_ARGUMENT, "v: is NULL");

    tigerfg_grounded_embedding_args item = {.struct_size = sizeof item,
                                            .dtype = TIGERFG_FLOAT16,
                                            .batch = 1,
                                            .heads = 10,
                                            .queries_per_head = 1,
                                            .patches = 196,
                                            .width = 768,
                                            .embedding_dim = 256};
    expect_error(tigerfg_grounded_embedding(&item, NULL), TIGERFG_INVALID_ARGUMENT, "heads");

    tigerfg_preprocess_args images = {.struct_size = sizeof images,
                                      .dtype = TIGERFG_FLOAT16,
                                      .interpolation = TIGERFG_BILINEAR,
                                      .batch = 1,
                                      .size = 224,
                                      .patch = 15};
    expect_error(tigerfg_preprocess(&images, NULL), TIGERFG_INVALID_ARGUMENT, "patch");
    images.patch = 16;
    expect_error(tigerfg_preprocess(&images, NULL), TIGERFG_INVALID_ARGUMENT, "packed");
    const float mean[3] = {0.5f, 0.5f, 0.5f};
    float std[3] = {0.25f, 0.25f, 0};
    float affine[6];
    expect_error(tigerfg_preprocess_affine(mean, std, affine), TIGERFG_INVALID_ARGUMENT, "std[2]");
    std[2] = 0.25f;
    expect(tigerfg_preprocess_affine(mean, std, affine) == TIGERFG_OK && affine[5] == 2.0f,
           "mean / std");
}

int main(void) {
    expect(strcmp(tigerfg_last_error(), "") == 0, "no error at first");
    describe_all();
    wrong_generic_calls();
    wrong_grounding_calls();
    wrong_other_calls();
    if (failures == 0) printf("%zu kernels, all errors as expected\n", tigerfg_kernels_count());
    return failures == 0 ? 0 : 1;
}
