// The descriptors of cublasLt and its numbers, in our own words. A handle is a number that is never given out twice.
#pragma once
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "abi.h"

namespace fake {

using Status = int;
enum : Status {
  OK = 0,
  NOT_READY_YET = 1,  // the vendor's NOT_INITIALIZED
  ALLOC_FAILED = 3,
  BAD_VALUE = 7,
  EXECUTION_FAILED = 13,
  UNSUPPORTED = 15,
};

enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_FAST_16F = 74, COMPUTE_FAST_16BF = 75, COMPUTE_FAST_TF32 = 77 };
enum { ORDER_COLUMN = 0, ORDER_ROW = 1 };
enum { POINTER_HOST = 0, POINTER_DEVICE = 1 };
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_RELU = 2, EPILOGUE_BIAS = 4, EPILOGUE_GELU = 32 };

enum { DESC_COMPUTE = 0, DESC_SCALE = 1, DESC_POINTER_MODE = 2, DESC_TRANS_A = 3, DESC_TRANS_B = 4, DESC_TRANS_C = 5,
       DESC_FILL = 6, DESC_EPILOGUE = 7, DESC_BIAS = 8, DESC_BIAS_BATCH_STRIDE = 10, DESC_SM_COUNT = 15, DESC_BIAS_TYPE = 26 };
enum { LAYOUT_TYPE = 0, LAYOUT_ORDER = 1, LAYOUT_ROWS = 2, LAYOUT_COLUMNS = 3, LAYOUT_LD = 4, LAYOUT_BATCH = 5,
       LAYOUT_STRIDE = 6, LAYOUT_PLANE = 7 };
enum { PREF_SEARCH = 0, PREF_WORKSPACE = 1, PREF_REDUCTION = 3, PREF_ALIGN_A = 5, PREF_ALIGN_B = 6, PREF_ALIGN_C = 7,
       PREF_ALIGN_D = 8, PREF_WAVES = 9, PREF_IMPL = 12 };

enum class Object { library, desc, layout, preference };

// Attributes by number, each with the size that it must be set in.
struct Described {
  Object object;
  std::map<int, int64_t> values;
  std::map<int, size_t> sizes;
  int64_t operator[](int attribute) const { return values.at(attribute); }
};

struct Algo {
  uint64_t magic, kind, workspace, alignment[4];
  uint32_t number, columns;  // which of those that were offered, and for how many columns of the result
};
static_assert(sizeof(Algo) == 64, "cublasLtMatmulAlgo_t");
struct Heuristic {
  Algo algo;
  size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96, "cublasLtMatmulHeuristicResult_t");

// Misuse of a call, told in the driver's report.
Status wrong(Status status, const char* call, const char* why);
// The object behind a handle, which lives until it is ended; null where there is none of this sort.
const Described* find(uint64_t handle, Object object);

}  // namespace fake
