// Stands in for libcutover_kernels_cpu.so in `check`: a few kernels in the form in which the real ones are exported.
// What it exports must be kept in step with that form; the kernels themselves mean nothing.
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct Entry {
  const char* name;
  int params;
  const unsigned char *sizes, *is_pointer;
};

template <class T>
static T param(void** params, int i) {
  T value;
  memcpy(&value, params[i], sizeof value);
  return value;
}

// to[i] = scale * from[i] for every thread of the grid
EXPORT void cpu_scale(const unsigned grid[3], const unsigned block[3], unsigned, void** params) {
  auto* to = param<float*>(params, 0);
  auto* from = param<const float*>(params, 1);
  float by = param<float>(params, 2);
  for (unsigned i = 0; i < grid[0] * block[0]; ++i) to[i] = by * from[i];
}

// writes one float, `index` past the start
EXPORT void cpu_poke(const unsigned*, const unsigned*, unsigned, void** params) {
  auto* to = param<float*>(params, 0);
  to[param<long long>(params, 1)] = 1;
}

EXPORT void cpu_noop(const unsigned*, const unsigned*, unsigned, void**) {}

static const unsigned char scale_sizes[] = {8, 8, 4}, scale_pointers[] = {1, 1, 0};
static const unsigned char poke_sizes[] = {8, 8}, poke_pointers[] = {1, 0};
extern "C" {
extern __attribute__((visibility("default"))) const Entry cutover_kernels[];
extern __attribute__((visibility("default"))) const int cutover_kernel_count;
const Entry cutover_kernels[] = {{"scale", 3, scale_sizes, scale_pointers}, {"poke", 2, poke_sizes, poke_pointers},
                                 {"noop", 0, nullptr, nullptr}};
const int cutover_kernel_count = 3;
}
