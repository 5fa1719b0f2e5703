// libcublasLt: handles and descriptors, their making, setting and end. What a product is comes in matmul.cpp.
#include "cublaslt.h"

#include <cstring>
#include <unordered_map>

#include "internal.h"

namespace fake {

static std::mutex guard;
static std::unordered_map<uint64_t, Described>& objects() {
  static auto* all = new std::unordered_map<uint64_t, Described>;  // never destroyed: threads may call while the process ends
  return *all;
}
static uint64_t next_handle = 0x17000;

Status wrong(Status status, const char* call, const char* why) {
  fake_gpu_misuse((std::string(call) + ": " + why).c_str());
  return status;
}

const Described* find(uint64_t handle, Object object) {
  std::lock_guard<std::mutex> hold(guard);
  auto found = objects().find(handle);
  return found != objects().end() && found->second.object == object ? &found->second : nullptr;
}

static const char* counter(Object object) { return object == Object::library ? "cublaslt_handles" : "cublaslt_descriptors"; }

static Status make(uint64_t* handle, Described made) {
  if (!handle) return wrong(BAD_VALUE, "cublasLt", "nowhere to tell the handle");
  fake_gpu_count(counter(made.object), 1);
  std::lock_guard<std::mutex> hold(guard);
  *handle = next_handle += 16;
  objects()[*handle] = std::move(made);
  return OK;
}

static Status end(uint64_t handle, Object object, const char* call) {
  if (!find(handle, object)) return wrong(BAD_VALUE, call, "no such object");
  fake_gpu_count(counter(object), -1);
  std::lock_guard<std::mutex> hold(guard);
  objects().erase(handle);
  return OK;
}

static Status set(uint64_t handle, Object object, int attribute, const void* from, size_t bytes, const char* call) {
  if (!find(handle, object)) return wrong(BAD_VALUE, call, "no such object");
  std::lock_guard<std::mutex> hold(guard);
  Described& described = objects()[handle];
  auto size = described.sizes.find(attribute);
  if (size == described.sizes.end()) return wrong(BAD_VALUE, call, "an attribute that is not modelled");
  if (!from || bytes != size->second) return wrong(BAD_VALUE, call, "not of the size that the attribute has");
  int64_t value = 0;
  if (bytes == 4) {
    int32_t narrow;
    memcpy(&narrow, from, 4);
    value = narrow;
  } else {
    memcpy(&value, from, bytes);
  }
  described.values[attribute] = value;
  return OK;
}

static Described with(Object object, std::map<int, int64_t> values, std::map<int, size_t> sizes) {
  for (auto& [attribute, size] : sizes) values.emplace(attribute, 0);
  return {object, std::move(values), std::move(sizes)};
}

}  // namespace fake

using namespace fake;

EXPORT size_t cublasLtGetVersion() { return 130000; }
EXPORT size_t cublasLtGetCudartVersion() { return 13000; }

EXPORT Status cublasLtGetProperty(int which, int* value) {
  if (which < 0 || which > 2 || !value) return BAD_VALUE;
  *value = which == 0 ? 13 : 0;
  return OK;
}

EXPORT Status cublasLtCreate(uint64_t* handle) {
  CUresult code = fake_gpu_ready("cublasLtCreate");
  if (code) return code == OUT_OF_MEMORY ? ALLOC_FAILED : NOT_READY_YET;
  return make(handle, with(Object::library, {}, {}));
}
EXPORT Status cublasLtDestroy(uint64_t handle) { return end(handle, Object::library, "cublasLtDestroy"); }

EXPORT Status cublasLtMatmulDescCreate(uint64_t* handle, int compute, int scale) {
  return make(handle, with(Object::desc,
                           {{DESC_COMPUTE, compute}, {DESC_SCALE, scale}, {DESC_EPILOGUE, EPILOGUE_DEFAULT}, {DESC_FILL, 2},
                            {DESC_BIAS_TYPE, -1}},
                           {{DESC_COMPUTE, 4}, {DESC_SCALE, 4}, {DESC_POINTER_MODE, 4}, {DESC_TRANS_A, 4}, {DESC_TRANS_B, 4},
                            {DESC_TRANS_C, 4}, {DESC_FILL, 4}, {DESC_EPILOGUE, 4}, {DESC_BIAS, 8}, {DESC_BIAS_BATCH_STRIDE, 8},
                            {DESC_SM_COUNT, 4}, {DESC_BIAS_TYPE, 4}}));
}
EXPORT Status cublasLtMatmulDescDestroy(uint64_t handle) { return end(handle, Object::desc, "cublasLtMatmulDescDestroy"); }
EXPORT Status cublasLtMatmulDescSetAttribute(uint64_t handle, int attribute, const void* from, size_t bytes) {
  return set(handle, Object::desc, attribute, from, bytes, "cublasLtMatmulDescSetAttribute");
}

EXPORT Status cublasLtMatrixLayoutCreate(uint64_t* handle, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  return make(handle, with(Object::layout,
                           {{LAYOUT_TYPE, type}, {LAYOUT_ROWS, int64_t(rows)}, {LAYOUT_COLUMNS, int64_t(columns)},
                            {LAYOUT_LD, ld}, {LAYOUT_BATCH, 1}},
                           {{LAYOUT_TYPE, 4}, {LAYOUT_ORDER, 4}, {LAYOUT_ROWS, 8}, {LAYOUT_COLUMNS, 8}, {LAYOUT_LD, 8},
                            {LAYOUT_BATCH, 4}, {LAYOUT_STRIDE, 8}, {LAYOUT_PLANE, 8}}));
}
EXPORT Status cublasLtMatrixLayoutDestroy(uint64_t handle) { return end(handle, Object::layout, "cublasLtMatrixLayoutDestroy"); }
EXPORT Status cublasLtMatrixLayoutSetAttribute(uint64_t handle, int attribute, const void* from, size_t bytes) {
  return set(handle, Object::layout, attribute, from, bytes, "cublasLtMatrixLayoutSetAttribute");
}

EXPORT Status cublasLtMatmulPreferenceCreate(uint64_t* handle) {
  return make(handle, with(Object::preference,
                           {{PREF_ALIGN_A, 256}, {PREF_ALIGN_B, 256}, {PREF_ALIGN_C, 256}, {PREF_ALIGN_D, 256}},
                           {{PREF_SEARCH, 4}, {PREF_WORKSPACE, 8}, {PREF_REDUCTION, 4}, {PREF_ALIGN_A, 4}, {PREF_ALIGN_B, 4},
                            {PREF_ALIGN_C, 4}, {PREF_ALIGN_D, 4}, {PREF_WAVES, 4}, {PREF_IMPL, 8}}));
}
EXPORT Status cublasLtMatmulPreferenceDestroy(uint64_t handle) {
  return end(handle, Object::preference, "cublasLtMatmulPreferenceDestroy");
}
EXPORT Status cublasLtMatmulPreferenceSetAttribute(uint64_t handle, int attribute, const void* from, size_t bytes) {
  return set(handle, Object::preference, attribute, from, bytes, "cublasLtMatmulPreferenceSetAttribute");
}
