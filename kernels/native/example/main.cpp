// Grounds random queries in random patches on the GPU and checks the result against a plain loop.
//
// Prints "result ok"; exits with 77 where there is no driver or no GPU.
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <tigerfg/kernels.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

constexpr int batch = 3;
constexpr int queries = 12;
constexpr int patches = 196;
constexpr int width = 768;
constexpr int skipped = 77;

void check(cudaError_t error) {
    if (error != cudaSuccess) {
        std::printf("CUDA: %s\n", cudaGetErrorString(error));
        std::exit(1);
    }
}

void check(tigerfg_status status) {
    if (status == TIGERFG_OK) return;
    std::printf("%s\n", tigerfg_last_error());
    std::exit(status == TIGERFG_NO_DRIVER || status == TIGERFG_NO_DEVICE ? skipped : 1);
}

template <class T>
T* on_device(const std::vector<T>& values) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, values.size() * sizeof(T)));
    check(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return static_cast<T*>(memory);
}

template <class T>
std::vector<T> on_host(const T* memory, std::size_t count) {
    std::vector<T> values(count);
    check(cudaMemcpy(values.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}

std::vector<__half> random_halves(std::size_t count, float scale, std::mt19937& generator) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<__half> values(count);
    for (__half& value : values) value = __float2half(normal(generator));
    return values;
}

// a = softmax over the valid patches of x . LN(v), p = sum a v, for one query of one item.
void ground(const __half* x, const __half* v, const unsigned char* mask, std::vector<double>& a,
            std::vector<double>& p) {
    double top = -INFINITY;
    for (int n = 0; n < patches; ++n) {
        double mean = 0, square = 0, product = 0;
        for (int d = 0; d < width; ++d) mean += __half2float(v[n * width + d]) / width;
        for (int d = 0; d < width; ++d) {
            const double centred = __half2float(v[n * width + d]) - mean;
            square += centred * centred / width;
            product += centred * __half2float(x[d]);
        }
        a[n] = mask[n] ? product / std::sqrt(square + 1e-6) : -INFINITY;
        top = std::max(top, a[n]);
    }
    double total = 0;
    for (double& weight : a) total += weight = std::exp(weight - top);
    std::fill(p.begin(), p.end(), 0.0);
    for (int n = 0; n < patches; ++n) {
        a[n] /= total;
        for (int d = 0; d < width; ++d) p[d] += a[n] * __half2float(v[n * width + d]);
    }
}

}  // namespace

int main() {
    std::mt19937 generator(1);
    const auto x = random_halves(batch * queries * width, 0.05f, generator);
    const auto v = random_halves(batch * patches * width, 1.0f, generator);
    std::vector<unsigned char> mask(batch * patches, 1);
    std::fill(mask.end() - patches / 2, mask.end(), 0);  // half of the last picture is padding

    tigerfg_grounding_args args{};
    args.struct_size = sizeof args;
    args.dtype = TIGERFG_FLOAT16;
    args.batch = batch;
    args.queries = queries;
    args.patches = patches;
    args.width = width;
    std::size_t counters = 0;  // this operator needs none
    check(tigerfg_grounding_workspace(&args, &args.workspace_bytes, &counters));
    args.x = on_device(x);
    args.v = on_device(v);
    args.patch_mask = on_device(mask);
    auto* p = on_device(std::vector<__half>(batch * queries * width));
    args.p = p;
    args.map = on_device(std::vector<float>(batch * patches));
    args.workspace = on_device(std::vector<char>(args.workspace_bytes));

    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream));
    check(tigerfg_grounding(&args, stream));
    check(cudaStreamSynchronize(stream));

    const auto p_found = on_host(p, batch * queries * width);
    const auto map_found = on_host(args.map, batch * patches);
    double p_error = 0, map_error = 0;
    std::vector<double> a(patches), p_expected(width);
    for (int b = 0; b < batch; ++b) {
        std::vector<double> map(patches, 0.0);
        for (int q = 0; q < queries; ++q) {
            const int row = b * queries + q;
            ground(&x[row * width], &v[b * patches * width], &mask[b * patches], a, p_expected);
            for (int n = 0; n < patches; ++n) map[n] += a[n] / queries;
            for (int d = 0; d < width; ++d) {
                const double found = __half2float(p_found[row * width + d]);
                p_error = std::max(p_error, std::fabs(found - p_expected[d]));
            }
        }
        for (int n = 0; n < patches; ++n) {
            map_error = std::max(map_error, std::fabs(map_found[b * patches + n] - map[n]));
        }
    }
    // Weights and results are rounded to float16, by 2^-12 of themselves, and |p| stays below 1;
    // the map is float32 all the way from sums of float16 products.
    const bool ok = p_error < 1e-3 && map_error < 1e-6;
    std::printf("grounding %d x %d queries x %d patches x %d: error of p %.1e, of the map %.1e\n",
                batch, queries, patches, width, p_error, map_error);
    std::printf(ok ? "result ok\n" : "result WRONG\n");
    return ok ? 0 : 1;
}
