// Streams and the order of their work: cuStream…. Work is queued and runs as late as is allowed: when the host waits for it, or
// asks for it often enough. Knows operations only as something that runs; what they do is said where they are made.
#include <algorithm>
#include <chrono>
#include <thread>

#include "gpu.h"

namespace fake {

std::shared_ptr<Stream> make_stream(unsigned flags, int priority) {
  auto stream = std::make_shared<Stream>();
  stream->id = new_handle();
  stream->flags = flags;
  stream->blocking = !(flags & STREAM_NON_BLOCKING);
  stream->priority = std::max(-5, std::min(0, priority));
  return stream;
}

std::shared_ptr<Stream> find_stream(CUstream handle, CUresult* result) {
  Gpu& g = gpu();
  *result = SUCCESS;
  if (handle <= PER_THREAD_STREAM) {
    if (!context_is_current()) {
      ++g.counts["calls_without_context"];
      *result = misuse(INVALID_CONTEXT, "a default stream, and no context is current on this thread");
      return nullptr;
    }
    if (handle <= LEGACY_STREAM) return g.legacy;
    auto& own = g.per_thread[thread_id()];
    if (!own) own = make_stream(0, 0);
    return own;
  }
  auto found = g.streams.find(handle);
  if (found != g.streams.end()) return found->second;
  *result = misuse(INVALID_HANDLE, "no such stream: 0x%llx", (unsigned long long)handle);
  return nullptr;
}

static std::vector<std::shared_ptr<Stream>> every_stream() {
  Gpu& g = gpu();
  std::vector<std::shared_ptr<Stream>> all;
  if (g.legacy) all.push_back(g.legacy);
  for (auto& [thread, stream] : g.per_thread) all.push_back(stream);
  for (auto& [handle, stream] : g.streams) all.push_back(stream);
  all.insert(all.end(), g.departed.begin(), g.departed.end());
  return all;
}

uint64_t pending() {
  uint64_t sum = 0;
  for (auto& stream : every_stream()) sum += stream->queue.size();
  return sum;
}

bool queued_work_touches(uint64_t at, uint64_t bytes) {
  for (auto& stream : every_stream())
    for (auto& op : stream->queue)
      for (auto& touch : op.touches)
        if (touch.at < at + bytes && at < touch.at + touch.bytes) return true;
  return false;
}

Op wait_for(const Point& point) {
  Op op;
  op.what = "cuStreamWaitEvent";
  op.after.push_back(point);
  op.run = [] { return SUCCESS; };
  return op;
}

// The legacy default stream waits for every blocking stream, and they wait for it.
static void order_with_legacy(const std::shared_ptr<Stream>& stream, Op& op) {
  Gpu& g = gpu();
  auto follow = [&](const std::shared_ptr<Stream>& other) {
    if (other != stream && other->blocking && other->done < other->queued) op.after.push_back({other, other->queued});
  };
  if (stream == g.legacy)
    for (auto& other : every_stream()) follow(other);
  else if (stream->blocking)
    follow(g.legacy);
}

CUresult enqueue(const std::shared_ptr<Stream>& stream, Op op) {
  if (stream->capture) return capture_op(stream, std::move(op));
  if (stream->blocking && stream == gpu().legacy)
    for (auto& capture : gpu().captures)
      for (auto& [id, tail] : capture->tails) {
        auto found = gpu().streams.find(id);
        if (found == gpu().streams.end() || !found->second->blocking) continue;
        capture->broken = true;
        return misuse(CAPTURE_IMPLICIT, "the default stream would wait for a stream that captures");
      }
  order_with_legacy(stream, op);
  stream->queue.push_back(std::move(op));
  ++stream->queued;
  return SUCCESS;
}

static CUresult run_front(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Stream>& stream) {
  Gpu& g = gpu();
  stream->busy = true;
  Op op = std::move(stream->queue.front());
  long long pace = setting("copy_bytes_per_second");
  if (pace > 0 && op.bus_bytes > 0) {
    auto rest = std::chrono::nanoseconds(int64_t(double(op.bus_bytes) * 1e9 / double(pace)));
    lock.unlock();
    std::this_thread::sleep_for(rest);
    lock.lock();
  }
  stream->busy = false;
  if (g.sticky || stream->queue.empty()) return g.sticky;  // a fault, or the end of the context, while it went over the bus
  CUresult code = SUCCESS;
  for (auto& touch : op.touches)
    if (!alive(touch, op.what)) code = ILLEGAL_ADDRESS;
  if (code == SUCCESS) code = op.run();
  if (code != SUCCESS) return fault(code);
  stream->queue.pop_front();
  ++stream->done;
  g.moved.notify_all();
  return SUCCESS;
}

CUresult run_to(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Stream>& stream, uint64_t upto, bool may_wait) {
  Gpu& g = gpu();
  while (stream->done < upto) {
    if (g.sticky) return g.sticky;
    if (stream->busy || (stream->queue.front().stalls && setting("stalling"))) {
      if (!may_wait) return NOT_READY;
      g.moved.wait(lock);
      continue;
    }
    // What the front waits for may run for long without the lock, and the front may be another one afterwards.
    Point first;
    for (auto& point : stream->queue.front().after)
      if (point.stream->done < point.upto) first = point;
    if (!first.stream) {
      if (CUresult code = run_front(lock, stream)) return code;
    } else if (CUresult code = run_to(lock, first.stream, first.upto, may_wait)) {
      return code;
    }
  }
  return g.sticky;
}

void run_some(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Stream>& stream, uint64_t upto) {
  uint64_t steps = uint64_t(std::max(0ll, setting("query_steps")));
  run_to(lock, stream, std::min(upto, stream->done + steps), false);
}

CUresult run_all(std::unique_lock<std::mutex>& lock) {
  auto all = every_stream();
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a->id < b->id; });
  if (setting("newest_first")) std::reverse(all.begin(), all.end());
  for (auto& stream : all)
    if (CUresult code = run_to(lock, stream, stream->queued)) return code;
  return gpu().sticky;
}

static CUresult create(CUstream* stream, unsigned flags, int priority) {
  if (!stream || flags > STREAM_NON_BLOCKING) return misuse(INVALID_VALUE, "flags %u", flags);
  auto made = make_stream(flags, priority);
  gpu().streams[made->id] = made;
  *stream = made->id;
  return SUCCESS;
}

// A stream that captures can be neither waited for nor asked, and the capture is broken by the attempt.
static CUresult refuse_capturing(const std::shared_ptr<Stream>& stream) {
  if (!stream->capture) return SUCCESS;
  stream->capture->broken = true;
  return misuse(CAPTURE_UNSUPPORTED, "the stream captures");
}

}  // namespace fake

using namespace fake;

EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  Call call("cuStreamCreate", CONTEXT);
  return call.refused() ? call.result : create(stream, flags, 0);
}

EXPORT CUresult cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  Call call("cuStreamCreateWithPriority", CONTEXT);
  return call.refused() ? call.result : create(stream, flags, priority);
}

EXPORT CUresult cuStreamDestroy_v2(CUstream handle) {
  Call call("cuStreamDestroy_v2", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().streams.find(handle);
  if (found == gpu().streams.end()) return misuse(INVALID_HANDLE, "no such stream: 0x%llx", (unsigned long long)handle);
  if (CUresult code = refuse_capturing(found->second)) return code;
  auto& departed = gpu().departed;
  departed.erase(std::remove_if(departed.begin(), departed.end(), [](auto& s) { return s->queue.empty(); }), departed.end());
  // It returns at once; what is queued still runs.
  if (!found->second->queue.empty()) gpu().departed.push_back(found->second);
  gpu().streams.erase(found);
  return SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream handle) {
  Call call("cuStreamSynchronize", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  if ((code = refuse_capturing(stream)) || (code = unsafe_in_capture())) return code;
  if (stream == gpu().legacy)
    for (auto& other : every_stream())
      if (other->blocking && code == SUCCESS) code = run_to(call.lock, other, other->queued);
  if (code == SUCCESS) code = run_to(call.lock, stream, stream->queued);
  if (code == SUCCESS) observe();
  return code;
}

EXPORT CUresult cuStreamQuery(CUstream handle) {
  Call call("cuStreamQuery", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  if ((code = refuse_capturing(stream)) || (code = unsafe_in_capture())) return code;
  if (stream->done == stream->queued) return SUCCESS;
  run_some(call.lock, stream, stream->queued);
  return gpu().sticky ? gpu().sticky : NOT_READY;
}

EXPORT CUresult cuStreamGetPriority(CUstream handle, int* priority) {
  Call call("cuStreamGetPriority", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (stream) *priority = stream->priority;
  return code;
}

EXPORT CUresult cuStreamGetFlags(CUstream handle, unsigned* flags) {
  Call call("cuStreamGetFlags", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (stream) *flags = stream->flags;
  return code;
}

EXPORT CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
  Call call("cuStreamGetCtx", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  if (find_stream(handle, &code)) *context = gpu().context;
  return code;
}

// Of the attributes only the priority is kept; the others (1 to 4) are hints that change no result.
EXPORT CUresult cuStreamSetAttribute(CUstream handle, int attribute, const CUlaunchAttributeValue* value) {
  Call call("cuStreamSetAttribute", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  if (!value) return misuse(INVALID_VALUE, "null");
  if (attribute >= 1 && attribute <= 4) return SUCCESS;
  if (attribute != LAUNCH_ATTRIBUTE_PRIORITY) return misuse(INVALID_VALUE, "attribute %d", attribute);
  if (value->priority > 0 || value->priority < -5) return misuse(INVALID_VALUE, "priority %d", value->priority);
  stream->priority = value->priority;
  return SUCCESS;
}

EXPORT CUresult cuStreamGetAttribute(CUstream handle, int attribute, CUlaunchAttributeValue* value) {
  Call call("cuStreamGetAttribute", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  if (attribute != LAUNCH_ATTRIBUTE_PRIORITY) return misuse(INVALID_VALUE, "attribute %d", attribute);
  value->priority = stream->priority;
  return SUCCESS;
}
