// Devices and the primary context: cuInit, cuDevice…, cuCtx…. There is at most one device and one context, the primary one;
// every thread has its own stack of what is current. Knows nothing of what a context holds but how to drop it.
#include <cstdio>
#include <cstring>

#include "gpu.h"

namespace fake {

static thread_local std::vector<uint64_t> current;  // handles; 0 stands for none

bool context_is_current() { return !current.empty() && current.back() != 0 && current.back() == gpu().context; }

bool current_context_is_gone() { return !current.empty() && current.back() != gpu().context; }

static bool is_device(CUdevice device) { return device == 0 && setting("devices") > 0; }

constexpr int SHARED_OPTIN = 97;  // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: a setting

// What an H100 answers where the answer shapes code, in the numbers of the vendor's attributes.
static const std::map<int, int>& attributes() {
  static const std::map<int, int> all = {
      {1, 1024},     {2, 1024},      {3, 1024},     {4, 64},        {5, 2147483647}, {6, 65535}, {7, 65535},
      {8, 49152},    {9, 65536},     {10, 32},      {11, 2147483647}, {12, 65536},   {13, 1980000}, {14, 512},
      {15, 1},       {16, 132},      {17, 0},       {18, 0},        {19, 1},         {20, 0},    {31, 1},
      {32, 1},       {33, 0x1b},     {34, 0},       {35, 0},        {36, 2619000},   {37, 5120}, {38, 52428800},
      {39, 2048},    {40, 3},        {41, 1},       {50, 0},        {75, 9},         {76, 0},    {78, 1},
      {79, 1},       {80, 1},        {81, 233472},  {82, 65536},    {83, 1},         {86, 0},    {87, 2},
      {88, 0},       {89, 1},        {90, 1},       {91, 1},        {95, 1},         {99, 1},
      {102, 1},      {106, 32},      {108, 32768000}, {109, 134217728}, {111, 1024}, {115, 1},   {119, 9},
      {120, 1},
  };
  return all;
}

// The last release takes with it what was still there: that is told in the report.
static void destroy_context() {
  Gpu& g = gpu();
  auto left = [&](const char* name, size_t number) {
    if (number) g.lost[name] += (long long)number;
  };
  size_t blocks = 0;
  for (auto& [base, region] : g.regions) {
    if (!region.promised) continue;
    ++blocks;
    g.lost["bytes"] += (long long)region.bytes;
  }
  left("buffers", blocks);
  left("streams", g.streams.size());
  left("events", g.events.size());
  left("modules", g.modules.size());
  left("graphs", g.graphs.size());
  left("graph_execs", g.execs.size());
  left("pending_operations", pending());
  CUresult sticky = g.sticky;  // outlives the context: only a new process helps
  fault(CONTEXT_IS_DESTROYED);
  g.sticky = sticky;
  g.streams.clear();
  g.per_thread.clear();
  g.legacy.reset();
  g.events.clear();
  g.modules.clear();
  g.functions.clear();
  g.captures.clear();
  g.execs.clear();
  g.graphs.clear();
  drop_memory();
  g.context = 0;
}

static CUresult synchronise(Call& call) {
  if (CUresult code = unsafe_in_capture()) return code;
  CUresult code = run_all(call.lock);
  if (code == SUCCESS) observe();
  return code;
}

}  // namespace fake

using namespace fake;

EXPORT CUresult cuInit(unsigned flags) {
  Call call("cuInit", NOTHING);
  if (call.refused()) return call.result;
  if (flags != 0) return misuse(INVALID_VALUE, "flags must be 0");
  if (setting("devices") <= 0) return NO_DEVICE;
  gpu().initialised = true;
  return SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
  Call call("cuDriverGetVersion", NOTHING);
  if (call.refused()) return call.result;
  if (!version) return misuse(INVALID_VALUE, "null");
  *version = 13000;
  return SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int* count) {
  Call call("cuDeviceGetCount", INITIALISED);
  if (call.refused()) return call.result;
  *count = setting("devices") > 0;
  return SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  Call call("cuDeviceGet", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(ordinal)) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  Call call("cuDeviceGetName", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  if (!name || length < 1) return misuse(INVALID_VALUE, "no room for the name");
  snprintf(name, size_t(length), "Fake GPU (tests only)");
  return SUCCESS;
}

EXPORT CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice device) {
  Call call("cuDeviceGetUuid_v2", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  for (int i = 0; i < 16; ++i) uuid->bytes[i] = (unsigned char)(0xfa + 7 * i);
  return SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  Call call("cuDeviceGetAttribute", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  if (attribute < 1 || attribute > 150) return misuse(INVALID_VALUE, "attribute %d", attribute);
  auto found = attributes().find(attribute);
  if (attribute == SHARED_OPTIN) *value = int(setting("shared_optin"));
  else *value = found == attributes().end() ? 0 : found->second;
  return SUCCESS;
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
  Call call("cuDeviceTotalMem_v2", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  *bytes = vram_total();
  return SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  Call call("cuDevicePrimaryCtxRetain", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  Gpu& g = gpu();
  if (g.sticky) return g.sticky;
  if (g.context == 0) {
    if (uint64_t(setting("context_bytes")) > vram_total()) return OUT_OF_MEMORY;
    g.context = new_handle();
    g.legacy = make_stream(0, 0);
  }
  ++g.retained;
  *context = g.context;
  return SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  Call call("cuDevicePrimaryCtxRelease_v2", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  if (gpu().retained == 0) return misuse(INVALID_CONTEXT, "released more often than retained");
  if (--gpu().retained == 0) destroy_context();
  return SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  Call call("cuDevicePrimaryCtxSetFlags_v2", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  gpu().context_flags = flags;
  return SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  Call call("cuDevicePrimaryCtxGetState", INITIALISED);
  if (call.refused()) return call.result;
  if (!is_device(device)) return INVALID_DEVICE;
  *flags = gpu().context_flags;
  *active = gpu().context != 0;
  return SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
  Call call("cuCtxSetCurrent", INITIALISED);
  if (call.refused()) return call.result;
  if (context != 0 && context != gpu().context) return misuse(INVALID_CONTEXT, "no such context");
  if (!current.empty()) current.pop_back();
  if (context != 0) current.push_back(context);
  return SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
  Call call("cuCtxGetCurrent", INITIALISED);
  if (call.refused()) return call.result;
  *context = current.empty() ? 0 : current.back();
  return SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
  Call call("cuCtxPushCurrent_v2", INITIALISED);
  if (call.refused()) return call.result;
  if (context == 0 || context != gpu().context) return misuse(INVALID_CONTEXT, "no such context");
  current.push_back(context);
  return SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  Call call("cuCtxPopCurrent_v2", INITIALISED);
  if (call.refused()) return call.result;
  if (current.empty()) return misuse(INVALID_CONTEXT, "the stack of contexts is empty");
  if (context) *context = current.back();
  current.pop_back();
  return SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
  Call call("cuCtxGetDevice", CONTEXT);
  if (call.refused()) return call.result;
  *device = 0;
  return SUCCESS;
}

EXPORT CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext context) {
  Call call("cuCtxGetDevice_v2", context == 0 ? CONTEXT : DEVICE);
  if (call.refused()) return call.result;
  if (context != 0 && context != gpu().context) return misuse(INVALID_CONTEXT, "no such context");
  *device = 0;
  return SUCCESS;
}

EXPORT CUresult cuCtxGetFlags(unsigned* flags) {
  Call call("cuCtxGetFlags", CONTEXT);
  if (call.refused()) return call.result;
  *flags = gpu().context_flags;
  return SUCCESS;
}

EXPORT CUresult cuCtxSetFlags(unsigned flags) {
  Call call("cuCtxSetFlags", CONTEXT);
  if (call.refused()) return call.result;
  gpu().context_flags = flags;
  return SUCCESS;
}

EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  Call call("cuCtxGetStreamPriorityRange", CONTEXT);
  if (call.refused()) return call.result;
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return SUCCESS;
}

EXPORT CUresult cuCtxSynchronize() {
  Call call("cuCtxSynchronize", CONTEXT);
  return call.refused() ? call.result : synchronise(call);
}

// With a context named, none needs to be current.
EXPORT CUresult cuCtxSynchronize_v2(CUcontext context) {
  Call call("cuCtxSynchronize_v2", context == 0 ? CONTEXT : DEVICE);
  if (call.refused()) return call.result;
  return context == 0 || context == gpu().context ? synchronise(call) : misuse(INVALID_CONTEXT, "no such context");
}

EXPORT CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
  Call call("cuMemGetInfo_v2", CONTEXT);
  if (call.refused()) return call.result;
  *free = vram_free();
  *total = vram_total();
  return SUCCESS;
}
