// What the sections of the probe share: checked calls, figures on lines of their own, percentiles, timing.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

// A call that must work: anything else ends the section (each runs in a process of its own).
#define DRV(call)                                                                                     \
  do {                                                                                                \
    CUresult status_ = (call);                                                                        \
    if (status_ != CUDA_SUCCESS) {                                                                    \
      const char* name_ = "?";                                                                        \
      cuGetErrorName(status_, &name_);                                                                \
      std::fprintf(stderr, "%s:%d: %s gave %s\n", __FILE__, __LINE__, #call, name_);                  \
      std::exit(1);                                                                                   \
    }                                                                                                 \
  } while (0)
#define RT(call)                                                                                      \
  do {                                                                                                \
    cudaError_t status_ = (call);                                                                     \
    if (status_ != cudaSuccess) {                                                                     \
      std::fprintf(stderr, "%s:%d: %s gave %s\n", __FILE__, __LINE__, #call, cudaGetErrorName(status_)); \
      std::exit(1);                                                                                   \
    }                                                                                                 \
  } while (0)

constexpr double MIB = 1024.0 * 1024.0;
constexpr size_t MIB_BYTES = size_t(1) << 20;
constexpr size_t GIB_BYTES = size_t(1) << 30;

// One figure: section, name, value, unit, separated by tabs.
inline const char*& section_name() {
  static const char* name = "";
  return name;
}
inline void figure(const std::string& name, double value, const char* unit) {
  std::printf("%s\t%s\t%.6g\t%s\n", section_name(), name.c_str(), value, unit);
  std::fflush(stdout);
}
inline void word(const std::string& name, const std::string& value) {
  std::printf("%s\t%s\t%s\t\n", section_name(), name.c_str(), value.c_str());
  std::fflush(stdout);
}
inline std::string error_name(CUresult status) {
  const char* name = "?";
  cuGetErrorName(status, &name);
  return name;
}

using Clock = std::chrono::steady_clock;
inline double ms_since(Clock::time_point began) {
  return std::chrono::duration<double, std::milli>(Clock::now() - began).count();
}
inline double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  size_t at = std::min(values.size() - 1, size_t(share * values.size()));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[at];
}
inline double median(const std::vector<double>& values) { return percentile(values, 0.5); }

// The context of device 0 on this thread: the primary one, as the runtime and cudarc use it.
inline CUcontext enter() {
  static CUcontext context = [] {
    DRV(cuInit(0));
    CUcontext made;
    DRV(cuDevicePrimaryCtxRetain(&made, 0));
    return made;
  }();
  DRV(cuCtxSetCurrent(context));
  return context;
}
inline double free_mib() {
  size_t free, total;
  DRV(cuMemGetInfo(&free, &total));
  return free / MIB;
}
inline CUstream new_stream() {
  CUstream stream;
  DRV(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  return stream;
}

// A pool of device memory like the one that weights are to live in; `most` bytes bound it, 0 does not.
inline CUmemoryPool new_pool(size_t most = 0) {
  CUmemPoolProps props = {};
  props.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  props.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  props.location.id = 0;
  props.maxSize = most;
  CUmemoryPool pool;
  DRV(cuMemPoolCreate(&pool, &props));
  // Memory stays until it is trimmed, so that no synchronisation of anybody unmaps it.
  cuuint64_t keep = UINT64_MAX;
  DRV(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &keep));
  return pool;
}
inline double pool_mib(CUmemoryPool pool, CUmemPool_attribute attribute) {
  cuuint64_t bytes = 0;
  DRV(cuMemPoolGetAttribute(pool, attribute, &bytes));
  return bytes / MIB;
}

// A stand-in for live traffic: a small upload, twenty small kernels, a small download, waited for; again and again.
// `pace_ms` > 0 begins one so often, from a schedule; otherwise one follows the other.
struct Blue {
  std::atomic<bool> stop{false};
  std::vector<double> took;  // ms
  std::thread thread;
  explicit Blue(double pace_ms = 0);
  // Ends it and tells its percentiles under this name.
  void tell(const std::string& name);
};
void launch_small(CUstream stream, float* data, int n);

void device_section();
void pool_section();
void oom_section();
void stall_section();
void transfer_section();
void load_section();
void staging_section();
void beside_section();
void launch_section();
void gemm_section();
void algorithms_section();
void host_section();
