// cuGetErrorName and cuGetErrorString: the vendor's names, explained in our own words.
#include "gpu.h"

namespace fake {

struct Told {
  const char *name, *text;
};
static const std::map<CUresult, Told>& errors() {
  static const std::map<CUresult, Told> all = {
      {0, {"CUDA_SUCCESS", "no error"}},
      {1, {"CUDA_ERROR_INVALID_VALUE", "an argument is not allowed"}},
      {2, {"CUDA_ERROR_OUT_OF_MEMORY", "not enough memory"}},
      {3, {"CUDA_ERROR_NOT_INITIALIZED", "cuInit was not called"}},
      {4, {"CUDA_ERROR_DEINITIALIZED", "the driver is shutting down"}},
      {46, {"CUDA_ERROR_DEVICE_UNAVAILABLE", "the device is taken or unavailable"}},
      {100, {"CUDA_ERROR_NO_DEVICE", "there is no device"}},
      {101, {"CUDA_ERROR_INVALID_DEVICE", "there is no device of this number"}},
      {200, {"CUDA_ERROR_INVALID_IMAGE", "the image of the kernels cannot be read"}},
      {201, {"CUDA_ERROR_INVALID_CONTEXT", "no context is current, or it is not valid"}},
      {209, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "the image has nothing for this device"}},
      {214, {"CUDA_ERROR_ECC_UNCORRECTABLE", "memory of the device is damaged"}},
      {218, {"CUDA_ERROR_INVALID_PTX", "the PTX cannot be compiled"}},
      {222, {"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is newer than the driver"}},
      {226, {"CUDA_ERROR_CONTAINED", "a fault of the hardware was contained, and the process with it"}},
      {304, {"CUDA_ERROR_OPERATING_SYSTEM", "the operating system refused"}},
      {400, {"CUDA_ERROR_INVALID_HANDLE", "no such object"}},
      {401, {"CUDA_ERROR_ILLEGAL_STATE", "not in this state"}},
      {500, {"CUDA_ERROR_NOT_FOUND", "no such name"}},
      {600, {"CUDA_ERROR_NOT_READY", "not finished yet"}},
      {700, {"CUDA_ERROR_ILLEGAL_ADDRESS", "a kernel touched memory that is not there"}},
      {701, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "the launch asks for too much"}},
      {702, {"CUDA_ERROR_LAUNCH_TIMEOUT", "a kernel ran too long"}},
      {708, {"CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "the primary context is in use"}},
      {709, {"CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context is gone"}},
      {710, {"CUDA_ERROR_ASSERT", "an assertion of a kernel failed"}},
      {712, {"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "this host memory is registered already"}},
      {713, {"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "this host memory is not registered"}},
      {714, {"CUDA_ERROR_HARDWARE_STACK_ERROR", "the device's stack is damaged"}},
      {715, {"CUDA_ERROR_ILLEGAL_INSTRUCTION", "a kernel ran an illegal instruction"}},
      {716, {"CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel touched an address that is not aligned"}},
      {719, {"CUDA_ERROR_LAUNCH_FAILED", "a kernel failed"}},
      {720, {"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "a cooperative launch does not fit at once"}},
      {721, {"CUDA_ERROR_TENSOR_MEMORY_LEAK", "a kernel ended and left tensor memory allocated"}},
      {800, {"CUDA_ERROR_NOT_PERMITTED", "not permitted"}},
      {801, {"CUDA_ERROR_NOT_SUPPORTED", "not supported"}},
      {802, {"CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready"}},
      {803, {"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "the parts of the driver do not match"}},
      {810, {"CUDA_ERROR_MPS_CLIENT_TERMINATED", "the server that shares the device has ended this client"}},
      {900, {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "not while a stream captures"}},
      {901, {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "the capture was broken by an earlier error"}},
      {902, {"CUDA_ERROR_STREAM_CAPTURE_MERGE", "two captures would become one"}},
      {903, {"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "this stream did not begin the capture"}},
      {904, {"CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "a stream that joined the capture was not joined back"}},
      {905, {"CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "a dependency on work outside of the capture"}},
      {906, {"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "the default stream would wait for a capture"}},
      {907, {"CUDA_ERROR_CAPTURED_EVENT", "the event was recorded in a capture"}},
      {908, {"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "another thread began this capture"}},
      {911, {"CUDA_ERROR_EXTERNAL_DEVICE", "another device failed that this one waited for"}},
      {999, {"CUDA_ERROR_UNKNOWN", "unknown"}},
  };
  return all;
}

const char* error_name(CUresult code) {
  auto found = errors().find(code);
  return found == errors().end() ? "an unnamed error" : found->second.name;
}

}  // namespace fake

EXPORT CUresult cuGetErrorName(CUresult error, const char** name) {
  auto found = fake::errors().find(error);
  *name = found == fake::errors().end() ? nullptr : found->second.name;
  return *name ? SUCCESS : INVALID_VALUE;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
  auto found = fake::errors().find(error);
  *text = found == fake::errors().end() ? nullptr : found->second.text;
  return *text ? SUCCESS : INVALID_VALUE;
}
