// The door of every call, and what a test can set and ask: settings, failures on command, counters. What is left over is told by
// report.cpp. Settings are named once, in `defaults`, and read from the environment as FAKE_GPU_<KEY IN CAPITALS>.
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gpu.h"

namespace fake {

static thread_local const char* calling = "";
static thread_local uint64_t this_thread = 0;

static const std::map<std::string, long long>& defaults() {
  static const std::map<std::string, long long> all = {
      {"devices", 1},
      {"total", 4096ll << 20},           // bytes of device memory
      {"context_bytes", 527ll << 20},    // what a context takes of them, as measured on an H100
      {"shared_optin", 227 << 10},       // bytes of shared memory that a block may be allowed: an H100's; 99 KiB on 8.6, 8.9 and 12
      {"copy_bytes_per_second", 0},      // 0: as fast as the host copies
      {"query_steps", 1},                // how many queued operations a query lets pass
      {"newest_first", 0},               // a synchronise of everything runs the streams in this order
      {"quarantine", 256ll << 20},       // bytes of freed memory that stay readable, as poison
      {"poison", 1},                     // 0: fresh memory is zero, which is faster and hides bugs
      {"fail_alloc", 0},                 // the N-th allocation from now fails
      {"fail_alloc_from", 0},            // and every one after it
      {"fail_alloc_kinds", 7},           // 1 device, 2 pinned, 4 growth of a pool
      {"fault_launch", 0},               // the N-th launch from now is an illegal address
      {"algorithms", 1},                 // that cublasLt offers for a product
      {"first_algorithm_ms", 0},         // what a product by the first takes longer, for events: nobody waits for it
      {"columns_computed", 0},           // products of more columns leave poison in their result; 0: all are computed
      {"picky_algorithms", 0},           // 1: an algorithm takes no other number of rows than it was asked for with
      {"stall_launch", 0},               // the N-th launch from now sets `stalling`, and does not end until that is 0 again
      {"stalling", 0},
  };
  return all;
}

long long setting(const char* key) { return gpu().settings.at(key); }
void count(const char* key, long long by) { gpu().counts[key] += by; }

// Those after which the vendor says that the process must be started again.
bool is_sticky(CUresult code) {
  static const std::set<CUresult> all = {226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911};
  return all.count(code) > 0;
}

uint64_t thread_id() {
  static std::atomic<uint64_t> threads{0};
  if (this_thread == 0) this_thread = ++threads;
  return this_thread;
}

uint64_t new_handle() { return gpu().next_handle += 16; }

// `name:code:N` lets the N-th call of `name` from now fail with `code`; `name:code:N+` every one from there.
static bool add_failure(Gpu& gpu, const std::string& text) {
  Failure failure;
  char name[64] = "", plus = 0;
  int got = sscanf(text.c_str(), "%63[^:]:%d:%lld%c", name, &failure.code, &failure.countdown, &plus);
  if (got < 3 || failure.countdown < 1 || (got == 4 && plus != '+')) return false;
  failure.call = name;
  failure.from_then_on = plus == '+';
  gpu.failures.push_back(failure);
  return true;
}

// A misspelt setting must not be a test that tests nothing.
static void refuse_unknown(const Gpu& gpu) {
  for (char** entry = environ; *entry; ++entry) {
    std::string name = *entry;
    name = name.substr(0, name.find('='));
    if (name.rfind("FAKE_GPU_", 0) != 0 || name == "FAKE_GPU_FAIL" || name == "FAKE_GPU_REPORT") continue;
    std::string key = name.substr(9);
    for (char& c : key) c = c >= 'A' && c <= 'Z' ? c + 32 : c;
    if (gpu.settings.count(key)) continue;
    fprintf(stderr, "fake gpu: %s is no setting\n", name.c_str());
    abort();
  }
}

static void read_environment(Gpu& gpu) {
  refuse_unknown(gpu);
  for (auto& [key, value] : gpu.settings) {
    std::string name = "FAKE_GPU_" + key;
    for (char& c : name) c = c >= 'a' && c <= 'z' ? c - 32 : c;
    const char* told = getenv(name.c_str());
    if (!told) continue;
    char* end = nullptr;
    long long read = strtoll(told, &end, 0);
    if (*told == 0 || *end != 0) {
      fprintf(stderr, "fake gpu: %s=%s is no number\n", name.c_str(), told);
      abort();
    }
    value = read;
  }
  std::string failures = getenv("FAKE_GPU_FAIL") ? getenv("FAKE_GPU_FAIL") : "";
  for (size_t at = 0; at < failures.size();) {
    size_t end = std::min(failures.find(',', at), failures.size());
    if (!add_failure(gpu, failures.substr(at, end - at))) {
      fprintf(stderr, "fake gpu: FAKE_GPU_FAIL wants NAME:CODE:N or NAME:CODE:N+, not %s\n", failures.c_str());
      abort();
    }
    at = end + 1;
  }
}

Gpu& gpu() {
  // Never destroyed: threads may still call while the process ends.
  static Gpu* one = new Gpu;
  static std::once_flag once;
  std::call_once(once, [] {
    one->settings = defaults();
    read_environment(*one);
  });
  return *one;
}

static CUresult fail_on_command(const char* name) {
  CUresult code = SUCCESS;
  for (Failure& failure : gpu().failures) {
    if (failure.call != name || failure.countdown == 0) continue;
    if (failure.countdown > 1) {
      --failure.countdown;
      continue;
    }
    code = failure.code;
    if (!failure.from_then_on) failure.countdown = 0;
  }
  return code;
}

bool fail_allocation(AllocationKind kind) {
  long long& left = gpu().settings["fail_alloc"];
  if (left <= 0 || !(setting("fail_alloc_kinds") & kind)) return false;
  if (left > 1) {
    --left;
    return false;
  }
  if (!setting("fail_alloc_from")) left = 0;
  return true;
}

Call::Call(const char* name, Needs needs) : lock(gpu().lock), outer_(calling) {
  calling = name;
  Gpu& g = gpu();
  ++g.calls[name];
  if (CUresult code = fail_on_command(name)) {
    result = is_sticky(code) ? fault(code) : code;
    return;
  }
  if (needs == NOTHING) return;
  if (!g.initialised) {
    result = misuse(NOT_INITIALIZED, "called before cuInit");
    return;
  }
  if (needs == INITIALISED) return;
  if (g.sticky) {
    result = g.sticky;
    return;
  }
  if (needs != CONTEXT) return;
  if (current_context_is_gone()) {
    result = misuse(CONTEXT_IS_DESTROYED, "the context that is current was released");
  } else if (!context_is_current()) {
    ++g.counts["calls_without_context"];
    result = misuse(INVALID_CONTEXT, "no context is current on thread %llu", (unsigned long long)thread_id());
  }
}
Call::~Call() { calling = outer_; }

CUresult misuse(CUresult code, const char* format, ...) {
  Gpu& g = gpu();
  ++g.misuses;
  if (g.messages.size() < 16) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    g.messages.push_back((*calling ? std::string(calling) + ": " : "") + text);
  }
  return code;
}

CUresult fault(CUresult code) {
  Gpu& g = gpu();
  if (!g.sticky) g.sticky = code;
  auto give_up = [](const std::shared_ptr<Stream>& stream) {
    stream->queue.clear();
    stream->done = stream->queued;
  };
  for (auto& [handle, stream] : g.streams) give_up(stream);
  for (auto& [thread, stream] : g.per_thread) give_up(stream);
  for (auto& stream : g.departed) give_up(stream);
  g.departed.clear();
  if (g.legacy) give_up(g.legacy);
  g.moved.notify_all();
  return g.sticky;
}

}  // namespace fake

using namespace fake;

// Sets what `defaults` names, or `fail:NAME:CODE` to the N-th call from now (negative: that one and every one after it).
// Answers 0, or 1 where there is no such key.
EXPORT int fake_gpu_set(const char* key, long long value) {
  std::lock_guard<std::mutex> hold(gpu().lock);
  if (strncmp(key, "fail:", 5) == 0) {
    std::string text = std::string(key + 5) + ":" + std::to_string(value < 0 ? -value : value) + (value < 0 ? "+" : "");
    return add_failure(gpu(), text) ? 0 : 1;
  }
  if (strcmp(key, "forget_failures") == 0) {
    gpu().failures.clear();
    for (const char* one : {"fail_alloc", "fail_alloc_from", "fault_launch", "stall_launch", "stalling"}) gpu().settings[one] = 0;
    gpu().moved.notify_all();
    return 0;
  }
  auto found = gpu().settings.find(key);
  if (found == gpu().settings.end()) return 1;
  found->second = value;
  gpu().moved.notify_all();  // somebody may wait for the end of a stall
  return 0;
}

// A setting, a counter (`allocations`, `launches`, `copies`, `copied_bytes`, …), `calls:NAME`, or one of the figures below.
// -1 where there is no such key.
EXPORT long long fake_gpu_get(const char* key) {
  Gpu& g = gpu();
  std::lock_guard<std::mutex> hold(g.lock);
  std::string name = key;
  if (name.rfind("calls:", 0) == 0) return g.calls.count(name.substr(6)) ? g.calls[name.substr(6)] : 0;
  if (name == "misuses") return g.misuses;
  if (name == "free") return (long long)vram_free();
  if (name == "pending") return (long long)pending();
  if (name == "sticky") return g.sticky;
  if (name == "retained") return g.retained;
  if (g.settings.count(name)) return g.settings[name];
  static const std::set<std::string> counters = {"allocations", "frees",        "launches",    "copies", "copied_bytes",
                                                 "memsets",     "matmuls",      "graph_launches", "pool_growths",
                                                 "pinned_allocations", "calls_without_context", "matmuls_by_others"};
  if (!counters.count(name)) return -1;
  return g.counts.count(name) ? g.counts[name] : 0;
}
