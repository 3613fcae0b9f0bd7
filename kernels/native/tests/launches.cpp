// Prints the launches that a call makes on an imagined device, one line of JSON each.
//
//     tigerfg_launches ARCH MULTIPROCESSORS grounding dtype batch queries patches width
//     ... grounded_embedding dtype batch heads queries_per_head patches width embedding_dim
//     ... pooled_embedding dtype kind batch patches width embedding_dim
//     ... preprocess dtype interpolation batch size patch
//
// Without arguments it calls every operator on every architecture: an argument that does not
// match its kernel is an internal error, and an operator whose kernels are embedded must launch.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "recorder.hpp"
#include "tigerfg/kernels.h"

namespace {

using Numbers = std::vector<std::int32_t>;

// Where pointers point; nothing is read there.
template <class T = void>
T* somewhere() {
    return reinterpret_cast<T*>(0x1000);
}

template <class Args>
Args zeroed() {
    Args args{};
    args.struct_size = sizeof args;
    return args;
}

// Asks for the workspace and gives just that.
template <class Args>
tigerfg_status with_workspace(Args& args,
                              tigerfg_status (*measure)(const Args*, size_t*, size_t*)) {
    size_t counters = 0;
    const tigerfg_status status = measure(&args, &args.workspace_bytes, &counters);
    args.workspace = somewhere();
    if constexpr (!std::is_same_v<Args, tigerfg_grounding_args>) {
        args.counters = somewhere<std::int32_t>();
        args.counters_count = counters;
    }
    return status;
}

tigerfg_status grounding(const Numbers& n) {
    auto args = zeroed<tigerfg_grounding_args>();
    args.dtype = static_cast<tigerfg_dtype>(n.at(0));
    args.batch = n.at(1);
    args.queries = n.at(2);
    args.patches = n.at(3);
    args.width = n.at(4);
    args.x = args.v = somewhere();
    args.patch_mask = somewhere<std::uint8_t>();
    args.p = somewhere();
    args.map = somewhere<float>();
    const tigerfg_status status = with_workspace(args, tigerfg_grounding_workspace);
    return status == TIGERFG_OK ? tigerfg_grounding(&args, nullptr) : status;
}

tigerfg_status grounded_embedding(const Numbers& n) {
    auto args = zeroed<tigerfg_grounded_embedding_args>();
    args.dtype = static_cast<tigerfg_dtype>(n.at(0));
    args.batch = n.at(1);
    args.heads = n.at(2);
    args.queries_per_head = n.at(3);
    args.patches = n.at(4);
    args.width = n.at(5);
    args.embedding_dim = n.at(6);
    args.x = args.v = args.text = args.w_v = args.w_o = args.gate_pool = somewhere();
    args.gate_text = args.norm_weight = args.norm_bias = args.projection = somewhere();
    args.patch_mask = somewhere<std::uint8_t>();
    args.z = args.map = somewhere<float>();
    const tigerfg_status status = with_workspace(args, tigerfg_grounded_embedding_workspace);
    return status == TIGERFG_OK ? tigerfg_grounded_embedding(&args, nullptr) : status;
}

tigerfg_status pooled_embedding(const Numbers& n) {
    auto args = zeroed<tigerfg_pooled_embedding_args>();
    args.dtype = static_cast<tigerfg_dtype>(n.at(0));
    args.pooling = static_cast<tigerfg_pooling>(n.at(1));
    args.batch = n.at(2);
    args.patches = n.at(3);
    args.width = n.at(4);
    args.embedding_dim = n.at(5);
    args.v = args.projection = somewhere();
    args.patch_mask = somewhere<std::uint8_t>();
    args.query = args.norm_weight = args.norm_bias = args.z = somewhere<float>();
    const tigerfg_status status = with_workspace(args, tigerfg_pooled_embedding_workspace);
    return status == TIGERFG_OK ? tigerfg_pooled_embedding(&args, nullptr) : status;
}

tigerfg_status preprocess(const Numbers& n) {
    auto args = zeroed<tigerfg_preprocess_args>();
    args.dtype = static_cast<tigerfg_dtype>(n.at(0));
    args.interpolation = static_cast<tigerfg_interpolation>(n.at(1));
    args.batch = n.at(2);
    args.size = n.at(3);
    args.patch = n.at(4);
    args.packed = somewhere<std::uint8_t>();
    args.offsets = somewhere<std::int64_t>();
    args.sizes = args.extents = somewhere<std::int32_t>();
    args.boxes = args.affine = somewhere<float>();
    args.pixels = somewhere();
    args.patch_mask = somewhere<std::uint8_t>();
    return tigerfg_preprocess(&args, nullptr);
}

tigerfg_status call(const char* op, const Numbers& numbers) {
    if (std::strcmp(op, "grounding") == 0) return grounding(numbers);
    if (std::strcmp(op, "grounded_embedding") == 0) return grounded_embedding(numbers);
    if (std::strcmp(op, "pooled_embedding") == 0) return pooled_embedding(numbers);
    if (std::strcmp(op, "preprocess") == 0) return preprocess(numbers);
    std::fprintf(stderr, "unknown operator %s\n", op);
    return TIGERFG_INVALID_ARGUMENT;
}

// Whether a kernel of the imagined architecture is embedded whose name begins so.
bool holds(const std::string& begin) {
    for (const auto& kernel : tigerfg::kernels()) {
        if (kernel.arch == tigerfg::imagined.arch &&
            std::strncmp(kernel.name, begin.c_str(), begin.size()) == 0) {
            return true;
        }
    }
    return false;
}

// Few and many items, few and many queries. An operator may be missing only where the kernel that
// it is known by is not embedded either.
int call_everything() {
    const char* const types[] = {"fp16", "bf16", "fp32"};
    const char* const poolings[] = {"mean_masked", "attention_masked", "cls"};
    const char* const interpolations[] = {"bilinear", "bicubic", "lanczos"};
    std::set<int> archs;
    for (const auto& kernel : tigerfg::kernels()) archs.insert(kernel.arch);
    int wrong = 0;
    int absent = 0;
    const auto count = [&](const std::string& kernel, tigerfg_status status) {
        if (status == TIGERFG_OK) return;
        if (status == TIGERFG_UNSUPPORTED && !holds(kernel)) {
            ++absent;
            return;
        }
        ++wrong;
        std::printf("FAILED: %s is embedded for sm_%d: %s\n", kernel.c_str(),
                    tigerfg::imagined.arch, tigerfg_last_error());
    };
    for (const int arch : archs) {
        tigerfg::imagined.arch = arch;
        for (std::int32_t dtype = 1; dtype <= 3; ++dtype) {
            const std::string type = types[dtype - 1];
            const std::string form = "_" + type + "_d768";
            for (const std::int32_t batch : {1, 300}) {
                for (std::int32_t way = 1; way <= 3; ++way) {
                    count("grounding_split" + form, grounding({dtype, batch, 13 * way, 196, 768}));
                    count("tail_split" + form,
                          grounded_embedding({dtype, batch, 12, way, 196, 768, 256}));
                    count(std::string("pooled_embedding_") + poolings[way - 1] + form,
                          pooled_embedding({dtype, way, batch, 196, 768, 256}));
                    count("preprocess_" + type + "_" + interpolations[way - 1],
                          preprocess({dtype, way, batch, 224, 16}));
                }
            }
        }
    }
    std::printf("%d calls wrong, %d not embedded\n", wrong, absent);
    return wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
    if (count == 1) return call_everything();
    if (count < 4) return 2;
    tigerfg::imagined.arch = std::atoi(words[1]);
    tigerfg::imagined.multiprocessors = std::atoi(words[2]);
    Numbers numbers;
    for (int i = 4; i < count; ++i) numbers.push_back(std::atoi(words[i]));
    const tigerfg_status status = call(words[3], numbers);
    if (status != TIGERFG_OK) std::fprintf(stderr, "%s\n", tigerfg_last_error());
    return status;
}
