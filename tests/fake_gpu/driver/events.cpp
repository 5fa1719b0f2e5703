// Events: cuEvent…, and streams that wait for them. An event remembers the point of a stream at which it was last recorded.
#include <chrono>

#include "gpu.h"

namespace fake {

static double now_ms() {
  return gpu().ahead_ms + std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static Event* find_event(CUevent handle, CUresult* result) {
  auto found = gpu().events.find(handle);
  if (found != gpu().events.end()) return &found->second;
  *result = misuse(INVALID_HANDLE, "no such event: 0x%llx", (unsigned long long)handle);
  return nullptr;
}

static bool passed(const Mark& mark) { return mark.at.stream->done >= mark.at.upto; }

// In a capture a record is only a name for what came before it.
static CUresult record_in_capture(Event& event, const std::shared_ptr<Stream>& stream) {
  Op op;
  op.what = "cuEventRecord";
  op.run = [] { return SUCCESS; };
  if (CUresult code = enqueue(stream, std::move(op))) return code;
  event.mark.reset();
  event.capture = stream->capture;
  event.node = stream->capture->graph->nodes.size() - 1;
  return SUCCESS;
}

static CUresult record(CUevent handle, CUstream to) {
  CUresult code = SUCCESS;
  Event* event = find_event(handle, &code);
  if (!event) return code;
  auto stream = find_stream(to, &code);
  if (!stream) return code;
  if (stream->capture) return record_in_capture(*event, stream);
  auto mark = std::make_shared<Mark>();
  Op op;
  op.what = "cuEventRecord";
  op.run = [mark] {
    mark->passed = true;
    mark->ms = now_ms();
    return SUCCESS;
  };
  if ((code = enqueue(stream, std::move(op)))) return code;
  mark->at = {stream, stream->queued};
  event->mark = mark;
  event->capture.reset();
  return SUCCESS;
}

// A stream joins the capture in which the event was recorded.
static CUresult join_capture(const std::shared_ptr<Stream>& stream, const Event& event) {
  if (event.capture->ended) return misuse(CAPTURED_EVENT, "the event was recorded in a capture that has ended");
  if (stream->capture && stream->capture != event.capture) {
    stream->capture->broken = event.capture->broken = true;
    return misuse(CAPTURE_MERGE, "the stream and the event belong to two captures");
  }
  stream->capture = event.capture;
  event.capture->tails[stream->id].push_back(event.node);
  return SUCCESS;
}

}  // namespace fake

using namespace fake;

EXPORT CUresult cuEventCreate(CUevent* event, unsigned flags) {
  Call call("cuEventCreate", CONTEXT);
  if (call.refused()) return call.result;
  if (!event || flags > 7) return misuse(INVALID_VALUE, "flags %u", flags);
  if ((flags & EVENT_INTERPROCESS) && !(flags & EVENT_DISABLE_TIMING))
    return misuse(INVALID_VALUE, "an event between processes cannot take the time");
  *event = new_handle();
  gpu().events[*event].flags = flags;
  return SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(CUevent event) {
  Call call("cuEventDestroy_v2", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  if (find_event(event, &code)) gpu().events.erase(event);
  return code;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
  Call call("cuEventRecord", CONTEXT);
  return call.refused() ? call.result : record(event, stream);
}

EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
  Call call("cuEventRecordWithFlags", CONTEXT);
  if (call.refused()) return call.result;
  return flags == 0 ? record(event, stream) : misuse(NOT_SUPPORTED, "flags %u are not modelled", flags);
}

EXPORT CUresult cuEventQuery(CUevent handle) {
  Call call("cuEventQuery", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  Event* event = find_event(handle, &code);
  if (!event) return code;
  if (event->capture) return misuse(CAPTURED_EVENT, "the event was recorded in a capture");
  if ((code = unsafe_in_capture())) return code;
  auto mark = event->mark;
  if (!mark || passed(*mark)) return SUCCESS;
  run_some(call.lock, mark->at.stream, mark->at.upto);
  return gpu().sticky ? gpu().sticky : NOT_READY;
}

EXPORT CUresult cuEventSynchronize(CUevent handle) {
  Call call("cuEventSynchronize", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  Event* event = find_event(handle, &code);
  if (!event) return code;
  if (event->capture) return misuse(CAPTURED_EVENT, "the event was recorded in a capture");
  if ((code = unsafe_in_capture())) return code;
  auto mark = event->mark;  // the event may be recorded again, or destroyed, while this thread waits
  if (mark) code = run_to(call.lock, mark->at.stream, mark->at.upto);
  if (code == SUCCESS) observe();
  return code;
}

EXPORT CUresult cuEventElapsedTime_v2(float* ms, CUevent start, CUevent end) {
  Call call("cuEventElapsedTime_v2", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  Event *from = find_event(start, &code), *to = from ? find_event(end, &code) : nullptr;
  if (!to) return code;
  if ((from->flags | to->flags) & EVENT_DISABLE_TIMING) return misuse(INVALID_HANDLE, "an event that takes no time");
  if (!from->mark || !to->mark) return misuse(INVALID_HANDLE, "an event that was never recorded");
  if (!from->mark->passed || !to->mark->passed) return NOT_READY;
  *ms = float(to->mark->ms - from->mark->ms);
  return SUCCESS;
}

EXPORT CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
  Call call("cuStreamWaitEvent", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  Event* event = find_event(event_handle, &code);
  if (!event) return code;
  if (flags > 1) return misuse(INVALID_VALUE, "flags %u", flags);
  if (event->capture) return join_capture(stream, *event);
  if (!event->mark) return SUCCESS;  // never recorded: nothing to wait for
  if (stream->capture) {
    stream->capture->broken = true;
    return misuse(CAPTURE_ISOLATION, "a stream that captures waits for an event from outside of the capture");
  }
  return passed(*event->mark) ? SUCCESS : enqueue(stream, wait_for(event->mark->at));
}
