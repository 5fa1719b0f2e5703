// Memory: what pools count, what comes back, and what live traffic sees of it.
#include "probe.h"

__global__ void small_kernel(float* data, int n) {
  int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at < n) data[at] = data[at] * 0.999f + 0.001f;
}
void launch_small(CUstream stream, float* data, int n) {
  small_kernel<<<(n + 255) / 256, 256, 0, stream>>>(data, n);
}

Blue::Blue(double pace_ms) {
  thread = std::thread([this, pace_ms] {
    enter();
    CUstream stream = new_stream();
    constexpr int n = 64 * 384;
    float *device, *host;
    RT(cudaMalloc(&device, n * sizeof(float)));
    RT(cudaMallocHost(&host, n * sizeof(float)));
    for (int i = 0; i < n; ++i) host[i] = i * 1e-4f;
    auto next = Clock::now();
    while (!stop.load(std::memory_order_relaxed)) {
      if (pace_ms > 0) {
        next += std::chrono::microseconds(int64_t(pace_ms * 1000));
        while (Clock::now() < next) std::this_thread::yield();
      }
      auto began = pace_ms > 0 ? next : Clock::now();
      RT(cudaMemcpyAsync(device, host, 2048, cudaMemcpyHostToDevice, stream));
      for (int i = 0; i < 20; ++i) launch_small(stream, device, n);
      RT(cudaMemcpyAsync(host, device, 2048, cudaMemcpyDeviceToHost, stream));
      RT(cudaStreamSynchronize(stream));
      took.push_back(ms_since(began));
    }
    RT(cudaFreeHost(host));
    RT(cudaFree(device));
    DRV(cuStreamDestroy(stream));
  });
}
void Blue::tell(const std::string& name) {
  stop = true;
  thread.join();
  // The first ones found nothing warm.
  if (took.size() > 50) took.erase(took.begin(), took.begin() + 20);
  figure(name + " passes", took.size(), "");
  figure(name + " p50", percentile(took, 0.5) * 1e3, "us");
  figure(name + " p99", percentile(took, 0.99) * 1e3, "us");
  figure(name + " max", percentile(took, 1.0) * 1e3, "us");
}

void device_section() {
  auto began = Clock::now();
  DRV(cuInit(0));
  figure("cuInit", ms_since(began), "ms");
  began = Clock::now();
  enter();
  figure("primary context", ms_since(began), "ms");
  char name[128];
  DRV(cuDeviceGetName(name, sizeof name, 0));
  word("name", name);
  int driver;
  DRV(cuDriverGetVersion(&driver));
  figure("driver speaks CUDA", driver, "");
  auto attribute = [](const char* what, CUdevice_attribute which) {
    int value;
    DRV(cuDeviceGetAttribute(&value, which, 0));
    figure(what, value, "");
  };
  attribute("copy engines", CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT);
  attribute("memory pools", CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED);
  attribute("multiprocessors", CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  attribute("L2 bytes", CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  attribute("stream priorities", CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED);
  size_t free, total;
  DRV(cuMemGetInfo(&free, &total));
  figure("memory", total / MIB, "MiB");
  figure("not free with one context", (total - free) / MIB, "MiB");
  // A stream that somebody else made can still be raised.
  int least, most, got;
  DRV(cuCtxGetStreamPriorityRange(&least, &most));
  figure("least priority", least, "");
  figure("most priority", most, "");
  CUstream stream = new_stream();
  CUstreamAttrValue value = {};
  value.priority = most;
  CUresult set = cuStreamSetAttribute(stream, CU_LAUNCH_ATTRIBUTE_PRIORITY, &value);
  word("priority set later", error_name(set));
  DRV(cuStreamGetPriority(stream, &got));
  figure("priority read back", got, "");
  cuuint64_t threshold = 0;
  CUmemoryPool defaults;
  DRV(cuDeviceGetDefaultMemPool(&defaults, 0));
  DRV(cuMemPoolGetAttribute(defaults, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold));
  figure("release threshold of the default pool", double(threshold), "B");
}

// Loads and retires a generation of so many tensors, and says what is left.
static void cycles(const char* name, bool pool_each, int count) {
  constexpr int tensors = 200;
  constexpr size_t bytes = 20 * MIB_BYTES + 256 * 37;
  CUstream stream = new_stream();
  CUmemoryPool pool = pool_each ? nullptr : new_pool();
  double before = free_mib(), worst = 0;
  std::vector<double> alloc_ms, trim_ms, used_left, reserved_left, reserved_full;
  for (int cycle = 0; cycle < count; ++cycle) {
    if (pool_each) pool = new_pool();
    std::vector<CUdeviceptr> all(tensors);
    auto began = Clock::now();
    for (auto& one : all) DRV(cuMemAllocFromPoolAsync(&one, bytes, pool, stream));
    DRV(cuStreamSynchronize(stream));
    alloc_ms.push_back(ms_since(began));
    for (auto one : all) DRV(cuMemsetD8Async(one, 0x5a, bytes, stream));
    reserved_full.push_back(pool_mib(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
    for (auto one : all) DRV(cuMemFreeAsync(one, stream));
    DRV(cuStreamSynchronize(stream));
    used_left.push_back(pool_mib(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT));
    began = Clock::now();
    DRV(cuMemPoolTrimTo(pool, 0));
    trim_ms.push_back(ms_since(began));
    reserved_left.push_back(pool_mib(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT));
    if (pool_each) DRV(cuMemPoolDestroy(pool));
    worst = std::max(worst, before - free_mib());
  }
  std::string n = name;
  figure(n + " tensors MiB", tensors * bytes / MIB, "MiB");
  figure(n + " reserved when full", percentile(reserved_full, 1), "MiB");
  figure(n + " allocation", median(alloc_ms), "ms");
  figure(n + " first allocation", alloc_ms[0], "ms");
  figure(n + " used after free and sync, most", percentile(used_left, 1), "MiB");
  figure(n + " reserved after trim, most", percentile(reserved_left, 1), "MiB");
  figure(n + " trim", median(trim_ms), "ms");
  figure(n + " drift of free memory, worst", worst, "MiB");
  figure(n + " drift of free memory, last", before - free_mib(), "MiB");
  DRV(cuStreamDestroy(stream));
}

void pool_section() {
  enter();
  cycles("one pool, 20 cycles,", false, 20);
  cycles("a pool each, 20 cycles,", true, 20);
  // Freed but not yet observed: what the pool says before anybody synchronises.
  CUstream stream = new_stream();
  CUmemoryPool pool = new_pool();
  CUdeviceptr one;
  DRV(cuMemAllocFromPoolAsync(&one, GIB_BYTES, pool, stream));
  DRV(cuStreamSynchronize(stream));
  DRV(cuMemFreeAsync(one, stream));
  figure("used right after free", pool_mib(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT), "MiB");
  DRV(cuMemPoolTrimTo(pool, 0));
  figure("reserved after trim without sync", pool_mib(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), "MiB");
  DRV(cuStreamSynchronize(stream));
  DRV(cuMemPoolTrimTo(pool, 0));
  figure("reserved after sync and trim", pool_mib(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), "MiB");
  // A small tensor keeps how much?
  DRV(cuMemAllocFromPoolAsync(&one, 1000, pool, stream));
  DRV(cuStreamSynchronize(stream));
  figure("reserved for 1000 bytes", pool_mib(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), "MiB");
  figure("used for 1000 bytes", pool_mib(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT) * MIB, "B");
  DRV(cuMemFreeAsync(one, stream));
  DRV(cuStreamSynchronize(stream));
  DRV(cuMemPoolDestroy(pool));
}

// What a refusal costs whoever else uses the device.
template <class What>
static void beside_blue(const std::string& name, What what) {
  Blue blue;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  auto began = Clock::now();
  std::string said = what();
  figure(name + " took", ms_since(began), "ms");
  word(name, said);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  blue.tell(name + ", live traffic");
}

void oom_section() {
  enter();
  CUstream stream = new_stream();
  CUmemoryPool bounded = new_pool(256 * MIB_BYTES), open = new_pool();
  CUdeviceptr one = 0, two = 0;
  auto from = [&](CUdeviceptr* where, size_t bytes, CUmemoryPool pool) {
    return [=] { return error_name(cuMemAllocFromPoolAsync(where, bytes, pool, stream)); };
  };
  beside_blue("512 MiB of a pool of 256", from(&one, 512 * MIB_BYTES, bounded));
  beside_blue("200 MiB of a pool of 256", from(&one, 200 * MIB_BYTES, bounded));
  beside_blue("and 200 more", from(&two, 200 * MIB_BYTES, bounded));
  word("synchronising after it", error_name(cuStreamSynchronize(stream)));
  size_t free, total;
  DRV(cuMemGetInfo(&free, &total));
  beside_blue("more than is free", from(&two, free + GIB_BYTES, open));
  beside_blue("more than there is", from(&two, total + GIB_BYTES, open));
  beside_blue("more than is free, cudaMalloc", [&] {
    void* plain = nullptr;
    return std::string(cudaGetErrorName(cudaMalloc(&plain, free + GIB_BYTES)));
  });
  word("synchronising after that", error_name(cuStreamSynchronize(stream)));
  word("last error of the runtime", cudaGetErrorName(cudaGetLastError()));
  beside_blue("an allocation that fits", from(&two, GIB_BYTES, open));
  DRV(cuStreamSynchronize(stream));
}

void stall_section() {
  enter();
  CUstream stream = new_stream();
  auto rest = [] { std::this_thread::sleep_for(std::chrono::milliseconds(300)); };
  {
    Blue blue;
    rest();
    rest();
    blue.tell("steady");
  }
  const size_t total = 12 * GIB_BYTES;
  for (size_t step : {total, GIB_BYTES, 256 * MIB_BYTES, 64 * MIB_BYTES}) {
    std::string name = std::to_string(step / MIB_BYTES) + " MiB steps,";
    CUmemoryPool pool = new_pool();
    std::vector<CUdeviceptr> all(total / step);
    {
      Blue blue;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      auto began = Clock::now();
      for (auto& one : all) DRV(cuMemAllocFromPoolAsync(&one, step, pool, stream));
      DRV(cuStreamSynchronize(stream));
      figure(name + " allocating 12 GiB", ms_since(began), "ms");
      blue.tell(name + " allocating,");
    }
    for (auto one : all) DRV(cuMemFreeAsync(one, stream));
    DRV(cuStreamSynchronize(stream));
    {
      Blue blue;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      auto began = Clock::now();
      for (size_t left = total; left > 0;) {
        left -= step;
        DRV(cuMemPoolTrimTo(pool, left));
      }
      figure(name + " trimming 12 GiB", ms_since(began), "ms");
      blue.tell(name + " trimming,");
    }
    figure(name + " reserved after", pool_mib(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), "MiB");
    DRV(cuMemPoolDestroy(pool));
  }
  // What a server must not do beside live traffic, for comparison.
  {
    Blue blue;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    void* plain;
    auto began = Clock::now();
    RT(cudaMalloc(&plain, 8 * GIB_BYTES));
    figure("cudaMalloc of 8 GiB", ms_since(began), "ms");
    began = Clock::now();
    RT(cudaFree(plain));
    figure("cudaFree of 8 GiB", ms_since(began), "ms");
    began = Clock::now();
    void* pinned;
    RT(cudaMallocHost(&pinned, 512 * MIB_BYTES));
    figure("pinning 512 MiB", ms_since(began), "ms");
    RT(cudaFreeHost(pinned));
    blue.tell("beside cudaMalloc, cudaFree and pinning");
  }
}
