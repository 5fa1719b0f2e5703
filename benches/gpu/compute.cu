// Work: what launches, allocations and graphs cost, and how fast matrix products of encoders are.
#include <cublasLt.h>
#include <cuda_bf16.h>

#include "probe.h"

// Host microseconds for one call of `what`, when so many are queued and then waited for.
template <class What>
static double each_us(int count, CUstream stream, What what) {
  std::vector<double> took;
  for (int round = 0; round < 7; ++round) {
    auto began = Clock::now();
    for (int i = 0; i < count; ++i) what();
    double queued = ms_since(began);
    DRV(cuStreamSynchronize(stream));
    if (round > 0) took.push_back(queued * 1e3 / count);
  }
  return median(took);
}

void launch_section() {
  enter();
  CUstream stream = new_stream();
  constexpr int n = 64 * 384;
  float* data;
  RT(cudaMalloc(&data, n * sizeof(float)));
  RT(cudaMemset(data, 0, n * sizeof(float)));
  figure("launching a kernel", each_us(500, stream, [&] { launch_small(stream, data, n); }), "us");
  CUevent event;
  DRV(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  figure("recording an event", each_us(500, stream, [&] { DRV(cuEventRecord(event, stream)); }), "us");
  CUstream other = new_stream();
  figure("waiting for an event on a stream", each_us(500, other, [&] { DRV(cuStreamWaitEvent(other, event, 0)); }), "us");
  figure("creating and destroying an event", each_us(500, stream, [&] {
           CUevent one;
           DRV(cuEventCreate(&one, CU_EVENT_DISABLE_TIMING));
           DRV(cuEventDestroy(one));
         }), "us");
  auto pair = [&] {
    CUdeviceptr one;
    DRV(cuMemAllocAsync(&one, 1 << 20, stream));
    DRV(cuMemFreeAsync(one, stream));
  };
  figure("allocating and freeing 1 MiB, queued", each_us(500, stream, pair), "us");
  auto pair_and_wait = [&] {
    pair();
    DRV(cuStreamSynchronize(stream));
  };
  figure("and waited for, release threshold 0", each_us(200, stream, pair_and_wait), "us");
  CUmemoryPool defaults;
  DRV(cuDeviceGetDefaultMemPool(&defaults, 0));
  cuuint64_t keep = 4 * GIB_BYTES;
  DRV(cuMemPoolSetAttribute(defaults, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
  figure("and waited for, release threshold 4 GiB", each_us(200, stream, pair_and_wait), "us");
  // A forward pass's worth of kernels, launched and as a graph.
  for (int kernels : {50, 200}) {
    std::string name = std::to_string(kernels) + " kernels,";
    auto forward = [&] {
      for (int i = 0; i < kernels; ++i) launch_small(stream, data, n);
    };
    std::vector<double> launched, replayed;
    for (int i = 0; i < 200; ++i) {
      auto began = Clock::now();
      forward();
      DRV(cuStreamSynchronize(stream));
      launched.push_back(ms_since(began) * 1e3);
    }
    double before = free_mib();
    DRV(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    forward();
    CUgraph graph;
    DRV(cuStreamEndCapture(stream, &graph));
    CUgraphExec exec;
    auto began = Clock::now();
    DRV(cuGraphInstantiate(&exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
    figure(name + " instantiating a graph", ms_since(began), "ms");
    DRV(cuGraphUpload(exec, stream));
    DRV(cuStreamSynchronize(stream));
    figure(name + " a graph takes", before - free_mib(), "MiB");
    for (int i = 0; i < 200; ++i) {
      began = Clock::now();
      DRV(cuGraphLaunch(exec, stream));
      DRV(cuStreamSynchronize(stream));
      replayed.push_back(ms_since(began) * 1e3);
    }
    figure(name + " launched and waited for", median(launched), "us");
    figure(name + " replayed and waited for", median(replayed), "us");
    DRV(cuGraphExecDestroy(exec));
    DRV(cuGraphDestroy(graph));
    DRV(cuDeviceGraphMemTrim(0));
    figure(name + " left after destroying", before - free_mib(), "MiB");
  }
  // A graph that allocates inside, as a captured forward pass of a library does.
  double before = free_mib();
  DRV(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  for (int i = 0; i < 20; ++i) {
    CUdeviceptr one;
    DRV(cuMemAllocAsync(&one, 64 * MIB_BYTES, stream));
    launch_small(stream, reinterpret_cast<float*>(one), n);
    DRV(cuMemFreeAsync(one, stream));
  }
  CUgraph graph;
  DRV(cuStreamEndCapture(stream, &graph));
  CUgraphExec exec;
  DRV(cuGraphInstantiate(&exec, graph, CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH));
  DRV(cuGraphLaunch(exec, stream));
  DRV(cuStreamSynchronize(stream));
  figure("a graph that allocates 20 x 64 MiB in turn takes", before - free_mib(), "MiB");
  DRV(cuGraphExecDestroy(exec));
  DRV(cuGraphDestroy(graph));
  figure("after destroying it", before - free_mib(), "MiB");
  DRV(cuDeviceGraphMemTrim(0));
  figure("after trimming graph memory", before - free_mib(), "MiB");
}

#define LT(call)                                                            \
  do {                                                                      \
    cublasStatus_t status_ = (call);                                        \
    if (status_ != CUBLAS_STATUS_SUCCESS) {                                 \
      std::fprintf(stderr, "%s:%d: %s gave %d\n", __FILE__, __LINE__, #call, int(status_)); \
      std::exit(1);                                                         \
    }                                                                       \
  } while (0)

__global__ void fill(void* out, size_t count, bool half, uint32_t seed) {
  for (size_t at = blockIdx.x * size_t(blockDim.x) + threadIdx.x; at < count; at += size_t(gridDim.x) * blockDim.x) {
    uint32_t x = (uint32_t(at) ^ seed) * 2654435761u;
    x ^= x >> 15;
    float value = (x & 0xffff) / 32768.0f - 1.0f;
    if (half) static_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16(value);
    else static_cast<float*>(out)[at] = value;
  }
}

// One product as a linear layer of so many tokens: `[tokens, in] x [out, in]^T + bias`, with or without GELU after it.
struct Product {
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t what;
  cublasLtMatrixLayout_t weight, input, output;
  static constexpr int MOST = 24;
  cublasLtMatmulHeuristicResult_t found[MOST];
  int candidates = 0;
  bool possible = false;
  double heuristic_us = 0;

  Product(cublasLtHandle_t handle, int tokens, int in, int out, cudaDataType type, cublasComputeType_t compute,
          cublasLtEpilogue_t epilogue, void* bias, size_t workspace, int wanted = 1)
      : handle(handle) {
    LT(cublasLtMatmulDescCreate(&what, compute, CUDA_R_32F));
    cublasOperation_t turned = CUBLAS_OP_T;
    LT(cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned));
    LT(cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    LT(cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    LT(cublasLtMatrixLayoutCreate(&weight, type, in, out, in));
    LT(cublasLtMatrixLayoutCreate(&input, type, in, tokens, in));
    LT(cublasLtMatrixLayoutCreate(&output, type, out, tokens, out));
    cublasLtMatmulPreference_t preference;
    LT(cublasLtMatmulPreferenceCreate(&preference));
    LT(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                            sizeof workspace));
    auto began = Clock::now();
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, what, weight, input, output, output, preference,
                                                           wanted, found, &candidates);
    heuristic_us = ms_since(began) * 1e3;
    possible = status == CUBLAS_STATUS_SUCCESS && candidates > 0;
    LT(cublasLtMatmulPreferenceDestroy(preference));
  }
};

void gemm_section() {
  enter();
  CUstream stream = new_stream();
  auto began = Clock::now();
  cublasLtHandle_t handle;
  LT(cublasLtCreate(&handle));
  figure("creating a handle", ms_since(began), "ms");
  const size_t workspace_bytes = 32 * MIB_BYTES;
  constexpr int most = 16384;
  void *weight, *input, *output, *bias, *workspace;
  RT(cudaMalloc(&weight, size_t(4096) * 4096 * 4));
  RT(cudaMalloc(&input, size_t(most) * 4096 * 4));
  RT(cudaMalloc(&output, size_t(most) * 4096 * 4));
  RT(cudaMalloc(&bias, 4096 * 4));
  RT(cudaMalloc(&workspace, workspace_bytes));
  double before = free_mib();
  struct Kind {
    const char* name;
    cudaDataType type;
    cublasComputeType_t compute;
  };
  bool first = true;
  for (Kind kind : {Kind{"bf16", CUDA_R_16BF, CUBLAS_COMPUTE_32F}, Kind{"tf32", CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32},
                    Kind{"f32", CUDA_R_32F, CUBLAS_COMPUTE_32F}}) {
    bool half = kind.type == CUDA_R_16BF;
    fill<<<1024, 256>>>(weight, size_t(4096) * 4096, half, 1);
    fill<<<1024, 256>>>(input, size_t(most) * 4096, half, 2);
    fill<<<1, 256>>>(bias, 4096, half, 3);
    RT(cudaDeviceSynchronize());
    for (auto [in, out] : {std::pair{384, 1536}, std::pair{768, 3072}, std::pair{1024, 4096}})
      for (int tokens : {1, 16, 64, 256, 1024, 4096, 16384})
        for (bool gelu : {false, true}) {
          auto epilogue = gelu ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
          Product product(handle, tokens, in, out, kind.type, kind.compute, epilogue, bias, workspace_bytes);
          std::string name = std::string(kind.name) + " " + std::to_string(tokens) + " x " + std::to_string(in) + " x " +
                             std::to_string(out) + (gelu ? " gelu" : "");
          if (!product.possible) {
            word(name, "no algorithm");
            continue;
          }
          float one = 1, zero = 0;
          auto run = [&] {
            LT(cublasLtMatmul(handle, product.what, &one, weight, product.weight, input, product.input, &zero, output,
                              product.output, output, product.output, &product.found[0].algo, workspace,
                              workspace_bytes, stream));
          };
          auto at_first = Clock::now();
          run();
          DRV(cuStreamSynchronize(stream));
          if (first) {
            figure("first product, heuristic", product.heuristic_us, "us");
            figure("first product", ms_since(at_first), "ms");
            figure("memory after the first product, beside operands", before - free_mib(), "MiB");
            first = false;
          }
          // As a graph, so that launching does not count.
          const int repeats = 20;
          DRV(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
          for (int i = 0; i < repeats; ++i) run();
          CUgraph graph;
          DRV(cuStreamEndCapture(stream, &graph));
          CUgraphExec exec;
          DRV(cuGraphInstantiate(&exec, graph, 0));
          cudaEvent_t from, to;
          RT(cudaEventCreate(&from));
          RT(cudaEventCreate(&to));
          std::vector<double> took;
          for (int i = 0; i < 12; ++i) {
            RT(cudaEventRecord(from, stream));
            DRV(cuGraphLaunch(exec, stream));
            RT(cudaEventRecord(to, stream));
            RT(cudaEventSynchronize(to));
            float ms;
            RT(cudaEventElapsedTime(&ms, from, to));
            if (i > 1) took.push_back(ms * 1e3 / repeats);
          }
          DRV(cuGraphExecDestroy(exec));
          DRV(cuGraphDestroy(graph));
          figure(name, median(took), "us");
          figure(name + ", rate", 2.0 * tokens * in * out / median(took) / 1e6, "TFLOP/s");
        }
  }
}

// Whether another algorithm than the one that cublasLt takes to be the fastest is faster: the products of a BERT-base layer.
void algorithms_section() {
  enter();
  CUstream stream = new_stream();
  cublasLtHandle_t handle;
  LT(cublasLtCreate(&handle));
  const size_t workspace_bytes = 32 * MIB_BYTES;
  constexpr size_t most = 16384;
  void *weight, *input, *output, *residual, *bias, *workspace;
  RT(cudaMalloc(&weight, 3072 * 3072 * 2));
  RT(cudaMalloc(&input, most * 3072 * 2));
  RT(cudaMalloc(&output, most * 3072 * 2));
  RT(cudaMalloc(&residual, most * 3072 * 2));
  RT(cudaMalloc(&bias, 4096 * 2));
  RT(cudaMalloc(&workspace, workspace_bytes));
  fill<<<1024, 256>>>(weight, 3072 * 3072, true, 1);
  fill<<<1024, 256>>>(input, most * 3072, true, 2);
  fill<<<1024, 256>>>(residual, most * 3072, true, 4);
  fill<<<1, 256>>>(bias, 4096, true, 3);
  RT(cudaDeviceSynchronize());
  struct Of {
    const char* name;
    int in, out;
    bool added;
    cublasLtEpilogue_t epilogue;
  };
  for (Of of : {Of{"qkv", 768, 2304, false, CUBLASLT_EPILOGUE_BIAS}, Of{"output", 768, 768, true, CUBLASLT_EPILOGUE_BIAS},
                Of{"output, not added", 768, 768, false, CUBLASLT_EPILOGUE_BIAS},
                Of{"up", 768, 3072, false, CUBLASLT_EPILOGUE_BIAS}, Of{"up, gelu", 768, 3072, false, CUBLASLT_EPILOGUE_GELU_BIAS},
                Of{"up, bare", 768, 3072, false, CUBLASLT_EPILOGUE_DEFAULT},
                Of{"down", 3072, 768, true, CUBLASLT_EPILOGUE_BIAS}})
    for (int tokens : {128, 2048, 8192, 16384}) {
      Product product(handle, tokens, of.in, of.out, CUDA_R_16BF, CUBLAS_COMPUTE_32F, of.epilogue, bias, workspace_bytes,
                      Product::MOST);
      std::string name = std::string(of.name) + ", " + std::to_string(tokens);
      float one = 1, beta = of.added ? 1 : 0;
      std::vector<double> each;
      for (int at = 0; at < product.candidates; ++at) {
        auto run = [&] {
          return cublasLtMatmul(handle, product.what, &one, weight, product.weight, input, product.input, &beta,
                                of.added ? residual : output, product.output, output, product.output,
                                &product.found[at].algo, workspace, workspace_bytes, stream);
        };
        if (run() != CUBLAS_STATUS_SUCCESS) continue;
        DRV(cuStreamSynchronize(stream));
        DRV(cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        for (int i = 0; i < 10; ++i) LT(run());
        CUgraph graph;
        DRV(cuStreamEndCapture(stream, &graph));
        CUgraphExec exec;
        DRV(cuGraphInstantiate(&exec, graph, 0));
        cudaEvent_t from, to;
        RT(cudaEventCreate(&from));
        RT(cudaEventCreate(&to));
        std::vector<double> took;
        for (int i = 0; i < 6; ++i) {
          RT(cudaEventRecord(from, stream));
          DRV(cuGraphLaunch(exec, stream));
          RT(cudaEventRecord(to, stream));
          RT(cudaEventSynchronize(to));
          float ms;
          RT(cudaEventElapsedTime(&ms, from, to));
          if (i > 0) took.push_back(ms * 1e3 / 10);
        }
        DRV(cuGraphExecDestroy(exec));
        DRV(cuGraphDestroy(graph));
        each.push_back(median(took));
      }
      if (each.empty()) {
        word(name, "no algorithm");
        continue;
      }
      size_t best = std::min_element(each.begin(), each.end()) - each.begin();
      figure(name + ", as cublasLt says", each[0], "us");
      figure(name + ", as cublasLt says, rate", 2.0 * tokens * of.in * of.out / each[0] / 1e6, "TFLOP/s");
      figure(name + ", the fastest of " + std::to_string(each.size()) + " (number " + std::to_string(best) + ")", each[best], "us");
      figure(name + ", asking", product.heuristic_us, "us");
    }
}
