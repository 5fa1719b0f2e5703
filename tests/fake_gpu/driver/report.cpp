// What is left over, as one JSON object: asked for by fake_gpu_report, and written to FAKE_GPU_REPORT when the process ends
// (`%p` in that path is the process). It changes nothing.
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gpu.h"

namespace fake {

static std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c >= 32) out += char(c);
  }
  return out + "\"";
}

// Members of an object, in the order in which they are told.
class Members {
 public:
  void raw(const std::string& name, const std::string& json) {
    text_ += (text_.empty() ? "" : ", ") + quoted(name) + ": " + json;
  }
  void number(const std::string& name, long long value) { raw(name, std::to_string(value)); }
  std::string object() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

static std::string listed(const std::vector<std::string>& items) {
  std::string out = "[";
  for (const auto& item : items) out += (out.size() > 1 ? ", " : "") + item;
  return out + "]";
}

static const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::plain: return "plain";
    case Kind::pooled: return "pooled";
    case Kind::graph: return "graph";
    case Kind::pinned: return "pinned";
    default: return "registered";
  }
}

// Numbers and bytes of the regions of some kinds, and the first of them one by one.
static void tell_regions(Members& out, const std::string& name, const std::set<Kind>& kinds) {
  long long number = 0, bytes = 0;
  std::vector<std::string> first;
  for (auto& [base, region] : gpu().regions) {
    if (!region.promised || !kinds.count(region.kind)) continue;
    ++number;
    bytes += (long long)region.bytes;
    if (first.size() >= 32) continue;
    Members one;
    char address[32];
    snprintf(address, sizeof address, "0x%llx", (unsigned long long)base);
    one.raw("address", quoted(address));
    one.number("bytes", (long long)region.bytes);
    one.raw("kind", quoted(kind_name(region.kind)));
    if (region.pool) one.number("pool", (long long)region.pool->id);
    first.push_back(one.object());
  }
  out.number(name, number);
  out.number(name + "_bytes", bytes);
  out.raw(name + "_first", listed(first));
}

static std::string pool_json(const Pool& pool) {
  Members one;
  one.number("pool", (long long)pool.id);
  one.number("used", (long long)pool.used);
  one.number("reserved", (long long)pool.reserved);
  one.number("live", (long long)pool.live);
  return one.object();
}

template <class Map>
static std::string numbers(const Map& map) {
  Members all;
  for (auto& [name, value] : map) all.number(name, value);
  return all.object();
}

static void tell_pools(Members& out) {
  Gpu& g = gpu();
  std::vector<std::string> pools;
  long long left = 0;
  for (auto& [handle, pool] : g.pools) {
    left += !pool->is_default;
    pools.push_back(pool_json(*pool));
  }
  for (auto& pool : g.orphans) pools.push_back(pool_json(*pool));
  out.number("pools", left);
  out.raw("pools_each", listed(pools));
}

static long long in_both(const std::set<uint64_t>& one, const std::set<uint64_t>& other) {
  return std::count_if(one.begin(), one.end(), [&](uint64_t id) { return other.count(id) > 0; });
}

std::string report() {
  Gpu& g = gpu();
  Members out;
  out.number("devices", setting("devices"));
  out.number("contexts_retained", g.retained);
  out.number("total", (long long)vram_total());
  out.number("free", (long long)vram_free());
  out.number("sticky", g.sticky);
  tell_regions(out, "device_allocations", {Kind::plain, Kind::pooled, Kind::graph});
  tell_regions(out, "pinned_buffers", {Kind::pinned});
  tell_regions(out, "registered_buffers", {Kind::registered});
  tell_pools(out);
  out.number("streams", (long long)g.streams.size());
  out.number("events", (long long)g.events.size());
  out.number("modules", (long long)g.modules.size());
  out.number("graphs", (long long)g.graphs.size());
  out.number("graph_execs", (long long)g.execs.size());
  out.number("threads_that_capture_and_launch", in_both(g.capturing_threads, g.launching_threads));
  out.number("streams_that_capture_and_launch", in_both(g.capturing_streams, g.launching_streams));
  out.number("graph_memory_used", (long long)g.graph_used);
  out.number("graph_memory_reserved", (long long)g.graph_reserved);
  out.number("cublaslt_handles", g.counts["cublaslt_handles"]);
  out.number("cublaslt_descriptors", g.counts["cublaslt_descriptors"]);
  out.number("pending_operations", (long long)pending());
  out.number("misuses", g.misuses);
  std::vector<std::string> messages;
  for (auto& message : g.messages) messages.push_back(quoted(message));
  out.raw("misuse_messages", listed(messages));
  out.number("calls_without_context", g.counts["calls_without_context"]);
  out.raw("lost_with_context", numbers(g.lost));
  out.raw("counts", numbers(g.counts));
  out.raw("calls", numbers(g.calls));
  return out.object();
}

static void report_at_exit() {
  const char* told = getenv("FAKE_GPU_REPORT");
  if (!told || !*told) return;
  std::string path = told;
  size_t at = path.find("%p");
  if (at != std::string::npos) path.replace(at, 2, std::to_string(getpid()));
  // A thread that sits in a call for good must not keep the process from ending.
  std::unique_lock<std::mutex> hold(gpu().lock, std::defer_lock);
  for (int i = 0; i < 500 && !hold.try_lock(); ++i) usleep(10'000);
  if (!hold.owns_lock()) return;
  if (FILE* file = fopen(path.c_str(), "w")) {
    fprintf(file, "%s\n", report().c_str());
    fclose(file);
  } else {
    fprintf(stderr, "fake gpu: cannot write the report to %s\n", path.c_str());
  }
}
__attribute__((destructor)) static void at_exit() { report_at_exit(); }

}  // namespace fake

// Writes the report and a zero into `buffer`; answers how many bytes it takes without the zero. Cut when it does not fit.
EXPORT long long fake_gpu_report(char* buffer, long long size) {
  std::lock_guard<std::mutex> hold(fake::gpu().lock);
  std::string text = fake::report();
  if (buffer && size > 0) {
    size_t fits = std::min(size_t(size - 1), text.size());
    memcpy(buffer, text.data(), fits);
    buffer[fits] = 0;
  }
  return (long long)text.size();
}
