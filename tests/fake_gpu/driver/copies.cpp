// Copies and fills: cuMemcpy…, cuMemset…. The source of a copy from pageable memory is taken when it is called, that of one
// from pinned memory when it runs; a copy into pageable memory is waited for: as the vendor documents it for each.
#include <cstring>

#include "gpu.h"

namespace fake {

enum class Way { up, down, across };

// Pinned or registered memory; null for pageable.
static Region* pinned(uint64_t at, uint64_t bytes) {
  Region* region = find_region(at, bytes);
  return region && region->kind >= Kind::pinned ? region : nullptr;
}

// Host memory that is pinned in part cannot be copied in one go.
static bool half_pinned(uint64_t at, uint64_t bytes) {
  if (pinned(at, bytes)) return false;
  Region* start = find_region(at, 1);
  if (start && start->kind >= Kind::pinned) return true;
  auto next = gpu().regions.upper_bound(at);
  return next != gpu().regions.end() && next->first < at + bytes && next->second.kind >= Kind::pinned;
}

static void move(uint64_t to, uint64_t from, uint64_t bytes) {
  memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
  count("copies");
  count("copied_bytes", (long long)bytes);
}

struct Transfer {
  const char* what;
  Way way;
  uint64_t to, from, bytes;
  bool waited_for;  // the call without a stream
};

static CUresult make_op(const Transfer& t, bool capturing, Op& op, bool& must_wait) {
  op.what = t.what;
  op.bus_bytes = t.way == Way::across ? 0 : t.bytes;
  uint64_t to = t.to, from = t.from, bytes = t.bytes;
  if (t.way != Way::up) op.touches.push_back({from, bytes, false});
  if (t.way != Way::down) op.touches.push_back({to, bytes, true});
  for (auto& touch : op.touches)
    if (!promised(touch, t.what)) return INVALID_VALUE;
  op.run = [to, from, bytes] {
    move(to, from, bytes);
    return SUCCESS;
  };
  if (t.way == Way::across) return SUCCESS;
  uint64_t host = t.way == Way::up ? from : to;
  if (host == 0) return misuse(INVALID_VALUE, "%s with no host memory", t.what);
  if (half_pinned(host, bytes)) return misuse(INVALID_VALUE, "%s with host memory that is pinned in part", t.what);
  if (!pinned(host, bytes)) count("pageable_copies");
  if (pinned(host, bytes)) {
    op.touches.push_back({host, bytes, t.way == Way::down});
    must_wait = t.waited_for;
  } else if (t.way == Way::down) {
    must_wait = !capturing;
  } else if (!capturing) {  // a graph reads it anew whenever it runs
    auto taken = std::make_shared<std::vector<char>>(bytes);
    memcpy(taken->data(), reinterpret_cast<const void*>(from), bytes);
    op.run = [to, taken, bytes] {
      move(to, uint64_t(taken->data()), bytes);
      return SUCCESS;
    };
  }
  return SUCCESS;
}

static CUresult copy(std::unique_lock<std::mutex>& lock, const Transfer& t, CUstream handle) {
  CUresult code = SUCCESS;
  if (t.waited_for && (code = unsafe_in_capture())) return code;
  auto stream = find_stream(handle, &code);
  if (!stream || t.bytes == 0) return code;
  Op op;
  bool must_wait = false;
  if ((code = make_op(t, stream->capture != nullptr, op, must_wait))) return code;
  if ((code = enqueue(stream, std::move(op)))) return code;
  if (!must_wait) return SUCCESS;
  code = run_to(lock, stream, stream->queued);
  if (code == SUCCESS) observe();
  return code;
}

// cuMemcpy tells the way from the addresses.
static Way way_of(uint64_t to, uint64_t from) {
  auto on_device = [](uint64_t at) {
    Region* region = find_region(at, 0);
    return region && region->kind < Kind::pinned;
  };
  return on_device(to) ? (on_device(from) ? Way::across : Way::up) : Way::down;
}

template <class T>
static CUresult fill(const char* what, CUdeviceptr to, T value, size_t number, CUstream handle) {
  CUresult code = SUCCESS;
  auto stream = find_stream(handle, &code);
  if (!stream || number == 0) return code;
  if (to % sizeof(T)) return misuse(INVALID_VALUE, "the address is not aligned to %zu", sizeof(T));
  Op op;
  op.what = what;
  op.touches.push_back({to, number * sizeof(T), true});
  if (!promised(op.touches[0], what)) return INVALID_VALUE;
  op.run = [to, value, number] {
    std::fill_n(reinterpret_cast<T*>(to), number, value);
    count("memsets");
    return SUCCESS;
  };
  return enqueue(stream, std::move(op));
}

}  // namespace fake

using namespace fake;

// Without a stream: in the legacy default stream.
#define COPY(NAME, WAY, TO, FROM)                                                                           \
  EXPORT CUresult NAME(TO to, FROM from, size_t bytes) {                                                    \
    Call call(#NAME, CONTEXT);                                                                              \
    if (call.refused()) return call.result;                                                                 \
    return copy(call.lock, {#NAME, WAY, uint64_t(to), uint64_t(from), bytes, true}, LEGACY_STREAM);         \
  }
#define COPY_ASYNC(NAME, WAY, TO, FROM)                                                                     \
  EXPORT CUresult NAME(TO to, FROM from, size_t bytes, CUstream stream) {                                   \
    Call call(#NAME, CONTEXT);                                                                              \
    if (call.refused()) return call.result;                                                                 \
    return copy(call.lock, {#NAME, WAY, uint64_t(to), uint64_t(from), bytes, false}, stream);               \
  }

COPY(cuMemcpyHtoD_v2, Way::up, CUdeviceptr, const void*)
COPY(cuMemcpyDtoH_v2, Way::down, void*, CUdeviceptr)
COPY(cuMemcpyDtoD_v2, Way::across, CUdeviceptr, CUdeviceptr)
COPY(cuMemcpy, way_of(to, from), CUdeviceptr, CUdeviceptr)
COPY_ASYNC(cuMemcpyHtoDAsync_v2, Way::up, CUdeviceptr, const void*)
COPY_ASYNC(cuMemcpyDtoHAsync_v2, Way::down, void*, CUdeviceptr)
COPY_ASYNC(cuMemcpyDtoDAsync_v2, Way::across, CUdeviceptr, CUdeviceptr)
COPY_ASYNC(cuMemcpyAsync, way_of(to, from), CUdeviceptr, CUdeviceptr)

#define FILL(NAME, TYPE)                                                                                    \
  EXPORT CUresult NAME##_v2(CUdeviceptr to, TYPE value, size_t number) {                                    \
    Call call(#NAME "_v2", CONTEXT);                                                                        \
    return call.refused() ? call.result : fill<TYPE>(#NAME "_v2", to, value, number, LEGACY_STREAM);        \
  }                                                                                                         \
  EXPORT CUresult NAME##Async(CUdeviceptr to, TYPE value, size_t number, CUstream stream) {                 \
    Call call(#NAME "Async", CONTEXT);                                                                      \
    return call.refused() ? call.result : fill<TYPE>(#NAME "Async", to, value, number, stream);             \
  }

FILL(cuMemsetD8, unsigned char)
FILL(cuMemsetD16, unsigned short)
FILL(cuMemsetD32, unsigned)
