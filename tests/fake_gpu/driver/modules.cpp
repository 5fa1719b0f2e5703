// Modules and launches: cuModule…, cuFunc…, cuLaunch…. An image may be any bytes: what a kernel computes comes from
// libcutover_kernels_cpu.so beside this library, found by the kernel's name. Where there is none, names are accepted and
// launches compute nothing. A kernel that runs into a page that it may not touch is the context's fault 700, as on a GPU.
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>

#include <array>
#include <cstring>

#include "gpu.h"

namespace fake {

// === The kernels' library ===

struct Entry {
  const char* name;
  int params;
  const unsigned char *sizes, *is_pointer;
};

struct Library {
  void* handle = nullptr;
  std::string error;
};

static const Library& library() {
  static Library one = [] {
    Library found;
    Dl_info self;
    if (!dladdr(reinterpret_cast<const void*>(&error_name), &self)) return found;
    std::string path = self.dli_fname;
    path = path.substr(0, path.rfind('/') + 1) + "libcutover_kernels_cpu.so";
    found.handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (found.handle && (!dlsym(found.handle, "cutover_kernels") || !dlsym(found.handle, "cutover_kernel_count")))
      found.error = path + " has no table of kernels";
    return found;
  }();
  return one;
}

static CUresult find_kernel(const char* name, Kernel& kernel) {
  kernel.name = name;
  if (!library().handle) return SUCCESS;
  if (!library().error.empty()) return misuse(NOT_FOUND, "%s", library().error.c_str());
  auto* table = static_cast<const Entry*>(dlsym(library().handle, "cutover_kernels"));
  int number = *static_cast<const int*>(dlsym(library().handle, "cutover_kernel_count"));
  for (const Entry* entry = table; entry < table + number; ++entry) {
    if (strcmp(entry->name, name) != 0) continue;
    void* run = dlsym(library().handle, (std::string("cpu_") + name).c_str());
    if (!run) return misuse(NOT_FOUND, "the kernels' library names %s and has no cpu_%s", name, name);
    kernel.run = reinterpret_cast<decltype(kernel.run)>(run);
    kernel.sizes.assign(entry->sizes, entry->sizes + entry->params);
    kernel.is_pointer.assign(entry->is_pointer, entry->is_pointer + entry->params);
    kernel.described = true;
    return SUCCESS;
  }
  return NOT_FOUND;
}

// === A launch ===

struct Launch {
  unsigned grid[3], block[3], shared_bytes;
  std::vector<std::array<unsigned char, 256>> values;
};

static thread_local sigjmp_buf* landing = nullptr;
static thread_local uint64_t fault_address = 0;
static struct sigaction before_us[2];

static void on_signal(int signal, siginfo_t* info, void* context) {
  if (landing) {
    fault_address = uint64_t(info->si_addr);
    siglongjmp(*landing, 1);
  }
  // Somebody else's: as if we had never been here.
  struct sigaction& theirs = before_us[signal == SIGBUS];
  if (theirs.sa_flags & SA_SIGINFO) return theirs.sa_sigaction(signal, info, context);
  if (theirs.sa_handler != SIG_DFL && theirs.sa_handler != SIG_IGN) return theirs.sa_handler(signal);
  sigaction(signal, &theirs, nullptr);
}

static void catch_signals() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction ours = {};
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &ours, &before_us[0]);
    sigaction(SIGBUS, &ours, &before_us[1]);
  });
}

static bool run_kernel(const Kernel& kernel, Launch& launch) {
  std::vector<void*> addresses;
  for (auto& value : launch.values) addresses.push_back(value.data());
  catch_signals();
  sigjmp_buf here;
  if (sigsetjmp(here, 1) != 0) {
    landing = nullptr;
    return false;
  }
  landing = &here;
  kernel.run(launch.grid, launch.block, launch.shared_bytes, addresses.data());
  landing = nullptr;
  return true;
}

static CUresult check_shape(const Function& function, const Launch& launch) {
  static const unsigned grid_most[3] = {2147483647u, 65535, 65535}, block_most[3] = {1024, 1024, 64};
  const char* name = function.kernel.name.c_str();
  unsigned threads = 1;
  for (int i = 0; i < 3; ++i) {
    if (launch.grid[i] == 0 || launch.grid[i] > grid_most[i])
      return misuse(INVALID_VALUE, "%s: a grid of %u in dimension %d", name, launch.grid[i], i);
    if (launch.block[i] == 0 || launch.block[i] > block_most[i])
      return misuse(INVALID_VALUE, "%s: a block of %u in dimension %d", name, launch.block[i], i);
    threads *= launch.block[i];
  }
  if (threads > 1024) return misuse(INVALID_VALUE, "%s: %u threads in a block", name, threads);
  if (launch.shared_bytes > unsigned(function.max_dynamic_shared))
    return misuse(INVALID_VALUE, "%s: %u bytes of shared memory, %d are allowed to it", name, launch.shared_bytes,
                  function.max_dynamic_shared);
  return SUCCESS;
}

// Takes the parameters as they are now. False where a pointer leads nowhere: the kernel would fault.
static bool take_params(const Kernel& kernel, void** params, Launch& launch, Op& op) {
  bool good = true;
  for (size_t i = 0; i < kernel.sizes.size(); ++i) {
    launch.values.push_back({});
    memcpy(launch.values.back().data(), params[i], kernel.sizes[i]);
    if (!kernel.is_pointer[i]) continue;
    uint64_t at = 0;
    memcpy(&at, params[i], sizeof at);
    if (at == 0) continue;
    // It may point just past the end, where an empty view would begin.
    Region* region = find_region(at, 0);
    if (region && region->promised) {
      op.touches.push_back({at, region->base + region->bytes - at, true});
      continue;
    }
    misuse(0, "parameter %zu of %s is 0x%llx, where nothing is allocated%s", i, kernel.name.c_str(), (unsigned long long)at,
           gpu().arena.owns(at) ? " (any more)" : "");
    good = false;
  }
  return good;
}

// Counts down to the launch that is to fail, or to stall.
static bool its_turn(const char* key) {
  long long& left = gpu().settings[key];
  return left > 0 && --left == 0;
}

static CUresult launch(CUfunction handle, Launch launch, CUstream to, void** params, void** extra) {
  CUresult code = SUCCESS;
  auto found = gpu().functions.find(handle);
  if (found == gpu().functions.end()) return misuse(INVALID_HANDLE, "no such function: 0x%llx", (unsigned long long)handle);
  const Function& function = found->second;
  const Kernel kernel = function.kernel;
  auto stream = find_stream(to, &code);
  if (!stream) return code;
  if ((code = check_shape(function, launch))) return code;
  if (extra) return misuse(NOT_SUPPORTED, "parameters in `extra` are not modelled");
  if (!params && !kernel.sizes.empty()) return misuse(INVALID_VALUE, "%s without its parameters", kernel.name.c_str());
  Op op;
  op.what = "a kernel";
  bool good = take_params(kernel, params, launch, op) && !its_turn("fault_launch");
  op.stalls = its_turn("stall_launch");
  if (op.stalls) gpu().settings["stalling"] = 1;
  auto shared = std::make_shared<Launch>(std::move(launch));
  op.run = [kernel, shared, good] {
    if (!good) return ILLEGAL_ADDRESS;
    count("launches");
    if (!kernel.run || run_kernel(kernel, *shared)) return SUCCESS;
    misuse(0, "%s touched 0x%llx, which is not its memory", kernel.name.c_str(), (unsigned long long)fault_address);
    return ILLEGAL_ADDRESS;
  };
  return enqueue(stream, std::move(op));
}

static CUresult load(CUmodule* module, const void* image) {
  if (!module || !image) return misuse(INVALID_VALUE, "no image");
  *module = new_handle();
  gpu().modules[*module];
  return SUCCESS;
}

static Function* find_function(CUfunction handle, CUresult* code) {
  auto found = gpu().functions.find(handle);
  if (found != gpu().functions.end()) return &found->second;
  *code = misuse(INVALID_HANDLE, "no such function: 0x%llx", (unsigned long long)handle);
  return nullptr;
}

}  // namespace fake

using namespace fake;

EXPORT CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  Call call("cuModuleLoadData", CONTEXT);
  return call.refused() ? call.result : load(module, image);
}

EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, int*, void**) {
  Call call("cuModuleLoadDataEx", CONTEXT);
  return call.refused() ? call.result : load(module, image);
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
  Call call("cuModuleUnload", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().modules.find(module);
  if (found == gpu().modules.end()) return misuse(INVALID_HANDLE, "no such module: 0x%llx", (unsigned long long)module);
  for (uint64_t function : found->second.functions) gpu().functions.erase(function);
  gpu().modules.erase(found);
  return SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  Call call("cuModuleGetFunction", CONTEXT);
  if (call.refused()) return call.result;
  auto found = gpu().modules.find(module);
  if (found == gpu().modules.end()) return misuse(INVALID_HANDLE, "no such module: 0x%llx", (unsigned long long)module);
  if (!function || !name) return misuse(INVALID_VALUE, "no name");
  Function made;
  made.module = module;
  if (CUresult code = find_kernel(name, made.kernel)) return code;
  for (uint64_t known : found->second.functions)
    if (gpu().functions[known].kernel.name == name) {
      *function = known;
      return SUCCESS;
    }
  *function = new_handle();
  gpu().functions[*function] = made;
  found->second.functions.push_back(*function);
  return SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int* value, int attribute, CUfunction handle) {
  Call call("cuFuncGetAttribute", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  Function* function = find_function(handle, &code);
  if (!function) return code;
  switch (attribute) {
    case FUNCTION_MAX_THREADS: *value = 1024; return SUCCESS;
    case FUNCTION_REGISTERS: *value = 32; return SUCCESS;
    case FUNCTION_PTX_VERSION:
    case FUNCTION_BINARY_VERSION: *value = 90; return SUCCESS;
    case FUNCTION_MAX_DYNAMIC_SHARED: *value = function->max_dynamic_shared; return SUCCESS;
    case FUNCTION_CARVEOUT: *value = function->carveout; return SUCCESS;
    default: *value = 0; return attribute >= 0 && attribute < 16 ? SUCCESS : misuse(INVALID_VALUE, "attribute %d", attribute);
  }
}

EXPORT CUresult cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
  Call call("cuFuncSetAttribute", CONTEXT);
  CUresult code = call.result;
  if (call.refused()) return code;
  Function* function = find_function(handle, &code);
  if (!function) return code;
  if (attribute == FUNCTION_MAX_DYNAMIC_SHARED && value >= 0 && value <= setting("shared_optin")) {
    function->max_dynamic_shared = value;
  } else if (attribute == FUNCTION_CARVEOUT && value >= -1 && value <= 100) {
    function->carveout = value;
  } else {
    return misuse(INVALID_VALUE, "attribute %d cannot be set to %d", attribute, value);
  }
  return SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                               unsigned shared_bytes, CUstream stream, void** params, void** extra) {
  Call call("cuLaunchKernel", CONTEXT);
  if (call.refused()) return call.result;
  return launch(function, {{gx, gy, gz}, {bx, by, bz}, shared_bytes, {}}, stream, params, extra);
}

EXPORT CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                          unsigned bz, unsigned shared_bytes, CUstream stream, void** params) {
  Call call("cuLaunchCooperativeKernel", CONTEXT);
  if (call.refused()) return call.result;
  return launch(function, {{gx, gy, gz}, {bx, by, bz}, shared_bytes, {}}, stream, params, nullptr);
}

// Of the attributes only the shape of clusters is held to something.
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** params, void** extra) {
  Call call("cuLaunchKernelEx", CONTEXT);
  if (call.refused()) return call.result;
  if (!config || (config->count > 0 && !config->attributes)) return misuse(INVALID_VALUE, "no configuration");
  Launch shape = {};
  memcpy(shape.grid, config->grid, sizeof shape.grid);
  memcpy(shape.block, config->block, sizeof shape.block);
  shape.shared_bytes = config->shared_bytes;
  for (unsigned i = 0; i < config->count; ++i) {
    if (config->attributes[i].id != LAUNCH_ATTRIBUTE_CLUSTER) continue;
    for (int d = 0; d < 3; ++d)
      if (unsigned cluster = config->attributes[i].value.cluster[d]; cluster == 0 || shape.grid[d] % cluster)
        return misuse(INVALID_VALUE, "a grid of %u in clusters of %u", shape.grid[d], cluster);
  }
  return launch(function, shape, config->stream, params, extra);
}
