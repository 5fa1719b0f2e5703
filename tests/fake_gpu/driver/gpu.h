// The state of the fake GPU and what the files of this folder share. One lock guards all of it: `Call` takes it at the door of
// every exported function. This header must not know any single function of the driver API.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "abi.h"

namespace fake {

constexpr uint64_t MIB = 1 << 20;
constexpr uint64_t POOL_STEP = 32 * MIB;  // by what a pool grows, as measured on an H100
constexpr int POISON = 0xff;              // four of them are a NaN, in 16 bits too

inline uint64_t round_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

// === Work ===

struct Stream;
struct Capture;

// Everything of a stream up to and with its `upto`-th operation.
struct Point {
  std::shared_ptr<Stream> stream;
  uint64_t upto = 0;
};

// Memory that an operation reads or writes; it must be alive when the operation is queued and when it runs.
struct Touch {
  uint64_t at, bytes;
  bool writes;
};

struct Op {
  const char* what = "";
  std::vector<Point> after;
  std::vector<Touch> touches;
  bool stalls = false;       // it does not end while the setting `stalling` is on
  uint64_t bus_bytes = 0;    // what goes over the bus: the artificial bandwidth holds for it
  long long graph_bytes = 0;  // what a node of a graph allocates, or frees
  std::function<CUresult()> run;
};

struct Stream {
  uint64_t id = 0;
  bool blocking = true;  // ordered with the legacy default stream
  unsigned flags = 0;
  int priority = 0;
  uint64_t queued = 0, done = 0;
  std::deque<Op> queue;
  bool busy = false;  // some thread runs its front without the lock
  std::shared_ptr<Capture> capture;
};

// One record of an event; recording the event again makes another.
struct Mark {
  Point at;
  bool passed = false;
  double ms = 0;
};

struct Event {
  unsigned flags = 0;
  std::shared_ptr<Mark> mark;
  std::shared_ptr<Capture> capture;  // when it was last recorded in a stream that captured
  size_t node = 0;
};

// === Memory ===

struct Pool {
  uint64_t id = 0;
  bool is_default = false, destroyed = false;
  uint64_t max_size = 0, threshold = 0;
  uint64_t used = 0, used_high = 0, reserved = 0, reserved_high = 0;
  uint64_t live = 0;
  int reuse[4] = {0, 1, 1, 1};
  // Freed by the caller, but the host has not synchronised past the free: it still counts as held.
  struct Unobserved {
    uint64_t token, stream, bytes;
  };
  std::vector<Unobserved> unobserved;
  uint64_t held() const;
};

enum class Kind { plain, pooled, graph, pinned, registered };

struct Region {
  uint64_t base = 0, bytes = 0;
  Kind kind = Kind::plain;
  std::shared_ptr<Pool> pool;
  bool promised = true;  // in the order of calls: allocated and not yet freed
  bool alive = true;     // in the order of execution
};

// Addresses that are handed out once each, upwards. Every block ends at a page that cannot be touched.
class Arena {
 public:
  uint64_t take(uint64_t bytes);                // 0 when the address space or the host's memory is at its end
  void poison(uint64_t base, uint64_t bytes);   // fresh contents, and the margins round them
  bool margins_whole(uint64_t base, uint64_t bytes) const;
  void retire(uint64_t base, uint64_t bytes);   // poisoned, and after a while gone
  bool owns(uint64_t at) const { return at >= first_ && at < last_; }

 private:
  bool reserve();
  uint64_t first_ = 0, last_ = 0, next_ = 0;
  std::deque<std::pair<uint64_t, uint64_t>> quarantine_;
  uint64_t quarantined_ = 0;
};

// === Modules and graphs ===

struct Kernel {
  std::string name;
  void (*run)(const unsigned*, const unsigned*, unsigned, void**) = nullptr;
  std::vector<unsigned char> sizes, is_pointer;
  bool described = false;  // found in the table of the kernels' library
};
struct Function {
  uint64_t module = 0;
  Kernel kernel;
  int max_dynamic_shared = 48 << 10;
  int carveout = -1;
};
struct Module {
  std::vector<uint64_t> functions;
};

struct Node {
  Op op;
  std::vector<size_t> after;
};
struct Graph {
  ~Graph();  // its own memory goes with it
  std::vector<Node> nodes;
  std::vector<uint64_t> blocks;  // bases of memory that it allocates
  bool auto_free = false;        // memory that it left allocated is freed when it is launched again
};
struct Capture {
  uint64_t origin = 0;  // the stream that began it
  int mode = 0;
  uint64_t thread = 0;
  bool broken = false, ended = false;
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  std::map<uint64_t, std::vector<size_t>> tails;  // by stream: the nodes that its next one follows
};

// === The device ===

// Settings and counters are told by name, so that a test can set them from outside: see control.cpp.
struct Failure {
  std::string call;  // empty: any allocation
  long long countdown = 0;
  bool from_then_on = false;
  CUresult code = SUCCESS;
};

struct Gpu {
  std::mutex lock;
  std::condition_variable moved;  // some stream got further
  std::map<std::string, long long> settings;
  std::map<std::string, long long> counts, calls;
  std::vector<Failure> failures;

  bool initialised = false;
  uint64_t next_handle = 0x7a000;
  uint64_t context = 0;  // 0 while nobody retains the primary context
  long long retained = 0;
  unsigned context_flags = 0;
  CUresult sticky = SUCCESS;
  std::map<std::string, long long> lost;  // what was left when a context went

  std::map<uint64_t, std::shared_ptr<Stream>> streams;
  std::vector<std::shared_ptr<Stream>> departed;  // destroyed with work still queued
  std::shared_ptr<Stream> legacy;
  std::map<uint64_t, std::shared_ptr<Stream>> per_thread;
  std::unordered_map<uint64_t, Event> events;
  std::vector<std::shared_ptr<Capture>> captures;
  double ahead_ms = 0;  // time that only events know of

  Arena arena;
  std::map<uint64_t, Region> regions;  // by base
  std::map<uint64_t, std::shared_ptr<Pool>> pools;
  std::vector<std::shared_ptr<Pool>> orphans;  // destroyed with memory still in use
  std::shared_ptr<Pool> default_pool, current_pool;
  uint64_t plain_bytes = 0, small_bytes = 0;  // of cuMemAlloc
  uint64_t graph_used = 0, graph_used_high = 0, graph_reserved = 0, graph_reserved_high = 0;

  std::unordered_map<uint64_t, Module> modules;
  std::unordered_map<uint64_t, Function> functions;
  std::unordered_map<uint64_t, std::shared_ptr<Graph>> graphs;
  std::unordered_map<uint64_t, std::shared_ptr<Graph>> execs;
  std::set<uint64_t> capturing_threads, capturing_streams, launching_threads, launching_streams;  // of graphs

  long long misuses = 0;
  std::vector<std::string> messages;
};
Gpu& gpu();

// What a function needs before it may begin.
enum Needs {
  NOTHING,      // works before cuInit
  INITIALISED,  // works without a context and after a fault
  DEVICE,       // needs no current context, but a context that has not failed
  CONTEXT,      // needs a context that is current on this thread and has not failed
};

// The door: takes the lock, fails on command, checks what the function needs.
class Call {
 public:
  Call(const char* name, Needs needs);
  ~Call();
  bool refused() const { return result != SUCCESS; }
  CUresult result = SUCCESS;
  std::unique_lock<std::mutex> lock;

 private:
  const char* outer_;
};

// Counts a misuse, keeps its message and gives `code` back.
CUresult misuse(CUresult code, const char* format, ...) __attribute__((format(printf, 2, 3)));
// The context fails for good: nothing that is queued will run.
CUresult fault(CUresult code);
bool is_sticky(CUresult code);

long long setting(const char* key);
void count(const char* key, long long by = 1);
enum AllocationKind { DEVICE_MEMORY = 1, PINNED_MEMORY = 2, POOL_GROWTH = 4 };
bool fail_allocation(AllocationKind kind);  // by command
std::string report();
uint64_t new_handle();
uint64_t thread_id();
bool context_is_current();
bool current_context_is_gone();
const char* error_name(CUresult code);

// === Streams ===

std::shared_ptr<Stream> make_stream(unsigned flags, int priority);
// Null and an error in `result` when there is no such stream, or it is a default one and no context is current.
std::shared_ptr<Stream> find_stream(CUstream handle, CUresult* result);
// Queues it, or hands it to the capture that the stream is part of.
CUresult enqueue(const std::shared_ptr<Stream>& stream, Op op);
// NOT_READY where it would have to wait for what stalls, and must not.
CUresult run_to(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Stream>& stream, uint64_t upto, bool may_wait = true);
CUresult run_all(std::unique_lock<std::mutex>& lock);
void run_some(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Stream>& stream, uint64_t upto);
Op wait_for(const Point& point);
uint64_t pending();
bool queued_work_touches(uint64_t at, uint64_t bytes);

// === Memory ===

// The region that holds all of [at, at + bytes), or null.
Region* find_region(uint64_t at, uint64_t bytes);
// Whether a touch is of memory that the caller may use now, in the order of calls; says so when not.
bool promised(const Touch& touch, const char* what);
bool alive(const Touch& touch, const char* what);
uint64_t vram_total();
uint64_t vram_used();
uint64_t vram_free();
void observe();  // the host synchronised: pools may give back
void drop_memory();
CUresult pool_reserve(Pool& pool, uint64_t bytes, uint64_t stream);
void pool_return(Pool& pool, uint64_t bytes);
uint64_t take_block(uint64_t bytes, Kind kind);
void end_region(uint64_t base);

// === Graphs ===

// An operation of a stream that captures becomes a node.
CUresult capture_op(const std::shared_ptr<Stream>& stream, Op op);
// For a call that no capture allows: CAPTURE_UNSUPPORTED and broken captures, or SUCCESS.
CUresult unsafe_in_capture();

}  // namespace fake
