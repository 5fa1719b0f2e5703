// Stream capture and graphs: cuStreamBeginCapture, cuGraph…. A stream that captures hands its operations to a graph instead of
// its queue; a launch replays them in the order in which they were captured, which their dependencies allow.
#include <algorithm>

#include "gpu.h"

namespace fake {

CUresult capture_op(const std::shared_ptr<Stream>& stream, Op op) {
  auto& capture = *stream->capture;
  if (capture.broken) return misuse(CAPTURE_INVALIDATED, "the capture was broken before");
  Node node;
  node.op = std::move(op);
  node.op.after.clear();
  node.after = capture.tails[stream->id];
  capture.tails[stream->id] = {capture.graph->nodes.size()};
  capture.graph->nodes.push_back(std::move(node));
  return SUCCESS;
}

// What the calling thread forbids itself: in global mode it heeds the captures of others that are in global mode, too.
static thread_local int own_mode = CAPTURE_GLOBAL;

CUresult unsafe_in_capture() {
  for (auto& capture : gpu().captures) {
    bool own = capture->thread == thread_id();
    bool forbids = own ? capture->mode != CAPTURE_RELAXED : capture->mode == CAPTURE_GLOBAL && own_mode == CAPTURE_GLOBAL;
    if (!forbids || own_mode == CAPTURE_RELAXED) continue;
    capture->broken = true;
    return misuse(CAPTURE_UNSUPPORTED, "not allowed while %s captures", own ? "this thread" : "another thread");
  }
  return SUCCESS;
}

// Every node must be followed by what the capturing stream has reached, else some stream was not joined back.
static bool all_joined(const Capture& capture) {
  const auto& nodes = capture.graph->nodes;
  std::vector<bool> reached(nodes.size());
  std::vector<size_t> open;
  if (auto tail = capture.tails.find(capture.origin); tail != capture.tails.end()) open = tail->second;
  while (!open.empty()) {
    size_t at = open.back();
    open.pop_back();
    if (reached[at]) continue;
    reached[at] = true;
    open.insert(open.end(), nodes[at].after.begin(), nodes[at].after.end());
  }
  return std::find(reached.begin(), reached.end(), false) == reached.end();
}

static void leave_capture(const std::shared_ptr<Capture>& capture) {
  auto& g = gpu();
  auto leave = [&](const std::shared_ptr<Stream>& stream) {
    if (stream->capture == capture) stream->capture.reset();
  };
  for (auto& [handle, stream] : g.streams) leave(stream);
  for (auto& [thread, stream] : g.per_thread) leave(stream);
  g.captures.erase(std::remove(g.captures.begin(), g.captures.end(), capture), g.captures.end());
  capture->ended = true;
}

// Nobody names it and no launch of it is queued any more.
Graph::~Graph() {
  auto& g = gpu();
  for (uint64_t base : blocks) {
    auto found = g.regions.find(base);
    if (found == g.regions.end()) continue;
    if (found->second.alive) g.graph_used -= found->second.bytes;
    end_region(base);
  }
}

// The most that its own allocations take at once.
static uint64_t peak(const Graph& graph) {
  long long now = 0, most = 0;
  for (auto& node : graph.nodes) most = std::max(most, now += node.op.graph_bytes);
  return uint64_t(most);
}

static CUresult reserve_for(const Graph& graph) {
  auto& g = gpu();
  uint64_t need = round_up(g.graph_used + peak(graph), POOL_STEP);
  if (need <= g.graph_reserved) return SUCCESS;
  if (need - g.graph_reserved > vram_free() || fail_allocation(POOL_GROWTH)) return OUT_OF_MEMORY;
  g.graph_reserved = need;
  g.graph_reserved_high = std::max(g.graph_reserved_high, need);
  return SUCCESS;
}

static CUresult replay(const Graph& graph) {
  for (auto& node : graph.nodes) {
    for (auto& touch : node.op.touches)
      if (!alive(touch, node.op.what)) return ILLEGAL_ADDRESS;
    if (CUresult code = node.op.run()) return code;
  }
  count("graph_launches");
  return SUCCESS;
}

static CUresult launch(const std::shared_ptr<Graph>& graph, CUstream handle) {
  CUresult code = SUCCESS;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  if (stream->capture) return misuse(NOT_SUPPORTED, "a graph within a capture is not modelled");
  if ((code = reserve_for(*graph))) return code;
  Op op;
  op.what = "cuGraphLaunch";
  bool good = true;
  for (auto& node : graph->nodes) {
    op.bus_bytes += node.op.bus_bytes;
    for (auto& touch : node.op.touches) {
      good = promised(touch, "a node of a graph") && good;
      // What the graph itself allocates is alive only while it runs.
      Region* region = find_region(touch.at, 0);
      if (region && region->kind != Kind::graph) op.touches.push_back(touch);
    }
  }
  op.run = [graph, good] { return good ? replay(*graph) : ILLEGAL_ADDRESS; };
  gpu().launching_threads.insert(thread_id());
  gpu().launching_streams.insert(stream->id);
  return enqueue(stream, std::move(op));
}

// A graph that allocates can be instantiated once at a time.
static bool taken(const std::shared_ptr<Graph>& graph) {
  if (graph->blocks.empty()) return false;
  for (auto& [handle, exec] : gpu().execs)
    if (exec == graph) return true;
  return false;
}

}  // namespace fake

using namespace fake;

EXPORT CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
  Call call("cuStreamBeginCapture_v2", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  if (mode < CAPTURE_GLOBAL || mode > CAPTURE_RELAXED) return misuse(INVALID_VALUE, "mode %d", mode);
  if (stream == gpu().legacy) return misuse(CAPTURE_UNSUPPORTED, "the legacy default stream cannot capture");
  if (stream->capture) return misuse(ILLEGAL_STATE, "the stream captures already");
  auto capture = std::make_shared<Capture>();
  capture->origin = stream->id;
  capture->mode = mode;
  capture->thread = thread_id();
  capture->tails[stream->id];
  stream->capture = capture;
  gpu().captures.push_back(capture);
  gpu().capturing_threads.insert(thread_id());
  gpu().capturing_streams.insert(stream->id);
  return SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
  Call call("cuThreadExchangeStreamCaptureMode", INITIALISED);
  if (call.refused()) return call.result;
  if (!mode || *mode < CAPTURE_GLOBAL || *mode > CAPTURE_RELAXED) return misuse(INVALID_VALUE, "no such mode");
  std::swap(*mode, own_mode);
  return SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  Call call("cuStreamEndCapture", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (!stream) return code;
  auto capture = stream->capture;
  if (!graph) return misuse(INVALID_VALUE, "nowhere to tell the graph");
  *graph = 0;
  if (!capture) return misuse(ILLEGAL_STATE, "the stream does not capture");
  // Both mistakes end it for good (seen with 580.159): the first breaks it, the second leaves nothing to end.
  if (capture->origin != stream->id) {
    capture->broken = true;
    return misuse(CAPTURE_UNMATCHED, "another stream began this capture");
  }
  if (capture->mode != CAPTURE_RELAXED && capture->thread != thread_id()) {
    leave_capture(capture);
    return misuse(CAPTURE_WRONG_THREAD, "another thread began this capture");
  }
  leave_capture(capture);
  if (capture->broken) return misuse(CAPTURE_INVALIDATED, "the capture was broken before");
  if (!all_joined(*capture)) return misuse(CAPTURE_UNJOINED, "a stream was not joined back");
  *graph = new_handle();
  gpu().graphs[*graph] = capture->graph;
  return SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(CUstream handle, int* status) {
  Call call("cuStreamIsCapturing", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto stream = find_stream(handle, &code);
  if (stream) *status = !stream->capture ? CAPTURE_NONE : stream->capture->broken ? CAPTURE_BROKEN : CAPTURE_ACTIVE;
  return code;
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph handle, unsigned long long flags) {
  Call call("cuGraphInstantiateWithFlags", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().graphs.find(handle);
  if (found == gpu().graphs.end()) return misuse(INVALID_VALUE, "no such graph: 0x%llx", (unsigned long long)handle);
  if (flags > 15) return misuse(INVALID_VALUE, "flags %llu", flags);
  if (taken(found->second)) return misuse(NOT_SUPPORTED, "a graph that allocates, a second time");
  *exec = new_handle();
  found->second->auto_free = flags & INSTANTIATE_AUTO_FREE;
  gpu().execs[*exec] = found->second;
  return SUCCESS;
}

EXPORT CUresult cuGraphGetNodes(CUgraph handle, uint64_t* nodes, size_t* number) {
  Call call("cuGraphGetNodes", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().graphs.find(handle);
  if (found == gpu().graphs.end()) return misuse(INVALID_VALUE, "no such graph: 0x%llx", (unsigned long long)handle);
  if (nodes) return misuse(NOT_SUPPORTED, "nodes have no handles here, only a number");
  *number = found->second->nodes.size();
  return SUCCESS;
}

EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
  Call call("cuGraphLaunch", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().execs.find(exec);
  if (found == gpu().execs.end()) return misuse(INVALID_VALUE, "no such graph: 0x%llx", (unsigned long long)exec);
  return launch(found->second, stream);
}

EXPORT CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) {
  Call call("cuGraphUpload", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  auto found = gpu().execs.find(exec);
  if (found == gpu().execs.end()) return misuse(INVALID_VALUE, "no such graph: 0x%llx", (unsigned long long)exec);
  return find_stream(stream, &code) ? reserve_for(*found->second) : code;
}

EXPORT CUresult cuGraphDestroy(CUgraph handle) {
  Call call("cuGraphDestroy", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().graphs.find(handle);
  if (found == gpu().graphs.end()) return misuse(INVALID_VALUE, "no such graph: 0x%llx", (unsigned long long)handle);
  gpu().graphs.erase(found);
  return SUCCESS;
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec handle) {
  Call call("cuGraphExecDestroy", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().execs.find(handle);
  if (found == gpu().execs.end()) return misuse(INVALID_VALUE, "no such graph: 0x%llx", (unsigned long long)handle);
  gpu().execs.erase(found);  // a launch that is queued still runs
  return SUCCESS;
}

EXPORT CUresult cuDeviceGraphMemTrim(CUdevice device) {
  Call call("cuDeviceGraphMemTrim", DEVICE);
  if (call.refused()) return call.result;
  if (device != 0) return INVALID_DEVICE;
  gpu().graph_reserved = std::min(gpu().graph_reserved, round_up(gpu().graph_used, POOL_STEP));
  return SUCCESS;
}

EXPORT CUresult cuDeviceGetGraphMemAttribute(CUdevice device, int attribute, void* value) {
  Call call("cuDeviceGetGraphMemAttribute", DEVICE);
  if (call.refused()) return call.result;
  if (device != 0) return INVALID_DEVICE;
  Gpu& g = gpu();
  const uint64_t all[] = {g.graph_used, g.graph_used_high, g.graph_reserved, g.graph_reserved_high};
  if (attribute < GRAPH_USED || attribute > GRAPH_RESERVED_HIGH) return misuse(INVALID_VALUE, "attribute %d", attribute);
  *static_cast<uint64_t*>(value) = all[attribute];
  return SUCCESS;
}
