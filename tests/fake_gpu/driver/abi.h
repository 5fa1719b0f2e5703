// The vendor's numbers and layouts that the fake driver speaks, declared here in our own words: no CUDA header is read.
// Only what some function of this folder uses. It must not know how anything is modelled.
#pragma once
#include <cstddef>
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

using CUresult = int;
enum : CUresult {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400,
  ILLEGAL_STATE = 401,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  PRIMARY_CONTEXT_ACTIVE = 708,
  CONTEXT_IS_DESTROYED = 709,
  HOST_MEMORY_ALREADY_REGISTERED = 712,
  HOST_MEMORY_NOT_REGISTERED = 713,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
  CAPTURE_MERGE = 902,
  CAPTURE_UNMATCHED = 903,
  CAPTURE_UNJOINED = 904,
  CAPTURE_ISOLATION = 905,
  CAPTURE_IMPLICIT = 906,
  CAPTURED_EVENT = 907,
  CAPTURE_WRONG_THREAD = 908,
};

// Handles are numbers that are never given out twice, so that a stale one is always known as such.
using CUdevice = int;
using CUdeviceptr = uint64_t;
using CUcontext = uint64_t;
using CUstream = uint64_t;
using CUevent = uint64_t;
using CUmodule = uint64_t;
using CUfunction = uint64_t;
using CUgraph = uint64_t;
using CUgraphExec = uint64_t;
using CUmemoryPool = uint64_t;

constexpr CUstream LEGACY_STREAM = 1, PER_THREAD_STREAM = 2;  // and 0, which means the legacy one here

enum { STREAM_NON_BLOCKING = 1 };
enum { EVENT_BLOCKING_SYNC = 1, EVENT_DISABLE_TIMING = 2, EVENT_INTERPROCESS = 4 };
enum { CAPTURE_GLOBAL = 0, CAPTURE_THREAD_LOCAL = 1, CAPTURE_RELAXED = 2 };
enum { CAPTURE_NONE = 0, CAPTURE_ACTIVE = 1, CAPTURE_BROKEN = 2 };
enum { INSTANTIATE_AUTO_FREE = 1, INSTANTIATE_UPLOAD = 2, INSTANTIATE_DEVICE_LAUNCH = 4, INSTANTIATE_NODE_PRIORITY = 8 };
enum { LAUNCH_ATTRIBUTE_COOPERATIVE = 2, LAUNCH_ATTRIBUTE_CLUSTER = 4, LAUNCH_ATTRIBUTE_PRIORITY = 8 };

enum {
  POOL_REUSE_EVENTS = 1,
  POOL_REUSE_OPPORTUNISTIC = 2,
  POOL_REUSE_INTERNAL = 3,
  POOL_RELEASE_THRESHOLD = 4,
  POOL_RESERVED = 5,
  POOL_RESERVED_HIGH = 6,
  POOL_USED = 7,
  POOL_USED_HIGH = 8,
};

enum { GRAPH_USED = 0, GRAPH_USED_HIGH = 1, GRAPH_RESERVED = 2, GRAPH_RESERVED_HIGH = 3 };

enum {
  FUNCTION_MAX_THREADS = 0,
  FUNCTION_SHARED_BYTES = 1,
  FUNCTION_CONST_BYTES = 2,
  FUNCTION_LOCAL_BYTES = 3,
  FUNCTION_REGISTERS = 4,
  FUNCTION_PTX_VERSION = 5,
  FUNCTION_BINARY_VERSION = 6,
  FUNCTION_CACHE_MODE = 7,
  FUNCTION_MAX_DYNAMIC_SHARED = 8,
  FUNCTION_CARVEOUT = 9,
};

struct CUuuid {
  unsigned char bytes[16];
};
struct CUmemLocation {
  int type;  // 1: a device
  int id;
};
struct CUmemPoolProps {
  int alloc_type;    // 1: pinned, the only one there is for a device
  int handle_types;  // 0: not shared between processes
  CUmemLocation location;
  void* win32;
  size_t max_size;  // 0: as much as the device has
  unsigned short usage;
  unsigned char reserved[54];
};
static_assert(sizeof(CUmemPoolProps) == 88, "the layout of CUDA 13.0");

union CUlaunchAttributeValue {
  char pad[64];
  int priority;
  unsigned cluster[3];
  int cooperative;
};
struct CUlaunchAttribute {
  int id;
  char pad[4];
  CUlaunchAttributeValue value;
};
struct CUlaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  CUstream stream;
  CUlaunchAttribute* attributes;
  unsigned count;
};
static_assert(sizeof(CUlaunchConfig) == 56 && sizeof(CUlaunchAttribute) == 72, "the layout of CUDA 13.0");
