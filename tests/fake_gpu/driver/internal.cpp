// The driver's side of internal.h.
#include "internal.h"

#include "gpu.h"

using namespace fake;

EXPORT CUresult fake_gpu_enqueue(CUstream handle, const char* what, const char* counter, const FakeTouch* touches, int number,
                                 void (*run)(void*), void (*drop)(void*), void* data) {
  std::lock_guard<std::mutex> hold(gpu().lock);
  std::shared_ptr<void> kept(data, drop);
  if (gpu().sticky) return gpu().sticky;
  CUresult code = SUCCESS;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  Op op;
  op.what = what;
  for (const FakeTouch* touch = touches; touch < touches + number; ++touch) {
    op.touches.push_back({touch->at, touch->bytes, touch->writes != 0});
    if (!promised(op.touches.back(), what)) return INVALID_VALUE;
  }
  op.run = [kept, run, counter] {
    run(kept.get());
    count(counter);
    return SUCCESS;
  };
  return enqueue(stream, std::move(op));
}

EXPORT void fake_gpu_count(const char* counter, long long by) {
  std::lock_guard<std::mutex> hold(gpu().lock);
  count(counter, by);
}

EXPORT void fake_gpu_take_longer(double ms) { gpu().ahead_ms += ms; }

EXPORT void fake_gpu_misuse(const char* text) {
  std::lock_guard<std::mutex> hold(gpu().lock);
  misuse(0, "%s", text);
}

EXPORT CUresult fake_gpu_ready(const char* name) {
  Call call(name, CONTEXT);
  return call.result;
}
