// cublasLtMatmul and its heuristic: reads the descriptors, holds the product to the vendor's rules, and queues it on the stream.
// An algorithm remembers what was promised when it was asked for: types, epilogue, alignments, workspace.
#include <cstring>

#include "cublaslt.h"
#include "gemm.h"
#include "internal.h"

namespace fake {

constexpr uint64_t MAGIC = 0xfa7e6e33;
constexpr uint64_t WORKSPACE = 4 << 20;  // what an algorithm takes where it may

struct Problem {
  Product product = {};
  int epilogue = 0, pointer_mode = 0;
  int64_t span[4] = {};  // bytes from the first element of a, b, c, d to past the last
  uint64_t kind = 0;     // what an algorithm is for
};

static bool read_type(int64_t type, Type& to) {
  if (type == R_32F) to = Type::f32;
  else if (type == R_16F) to = Type::f16;
  else if (type == R_16BF) to = Type::bf16;
  else return false;
  return true;
}

// Null, or why not.
static const char* read_layout(const Described& layout, bool transposed, int64_t rows, int64_t columns, Matrix& to, int64_t& span) {
  int64_t stored_rows = layout[LAYOUT_ROWS], stored_columns = layout[LAYOUT_COLUMNS], ld = layout[LAYOUT_LD];
  if ((transposed ? stored_columns : stored_rows) != rows || (transposed ? stored_rows : stored_columns) != columns)
    return "the shapes of the matrices do not match";
  bool by_column = layout[LAYOUT_ORDER] == ORDER_COLUMN;
  if (ld < (by_column ? stored_rows : stored_columns)) return "a leading dimension smaller than the matrix";
  to.by_row = by_column ? 1 : ld;
  to.by_column = by_column ? ld : 1;
  int64_t last = (stored_rows - 1) * to.by_row + (stored_columns - 1) * to.by_column;
  if (transposed) std::swap(to.by_row, to.by_column);
  to.by_batch = layout[LAYOUT_STRIDE];
  span = (last + 1 + (layout[LAYOUT_BATCH] - 1) * to.by_batch) * int64_t(bytes_of(to.type));
  return nullptr;
}

static Status read_types(const Described& desc, const Described* const layouts[4], Problem& problem) {
  Product& p = problem.product;
  Matrix* matrices[4] = {&p.a, &p.b, &p.c, &p.d};
  for (int i = 0; i < 4; ++i)
    if (!read_type((*layouts[i])[LAYOUT_TYPE], matrices[i]->type) || (*layouts[i])[LAYOUT_ORDER] > ORDER_ROW) return UNSUPPORTED;
  if (p.a.type != p.b.type || p.c.type != p.d.type || (p.d.type != p.a.type && p.d.type != Type::f32)) return UNSUPPORTED;
  if (desc[DESC_SCALE] != R_32F || desc[DESC_TRANS_C] != 0 || desc[DESC_POINTER_MODE] > POINTER_DEVICE) return UNSUPPORTED;
  switch (desc[DESC_COMPUTE]) {
    case COMPUTE_32F:
    case COMPUTE_32F_PEDANTIC: p.round = Round::none; break;
    case COMPUTE_FAST_16F: p.round = Round::f16; break;
    case COMPUTE_FAST_16BF: p.round = Round::bf16; break;
    case COMPUTE_FAST_TF32: p.round = Round::tf32; break;
    default: return UNSUPPORTED;
  }
  if (p.round != Round::none && p.a.type != Type::f32) return UNSUPPORTED;
  problem.pointer_mode = int(desc[DESC_POINTER_MODE]);
  return OK;
}

static Status read_epilogue(const Described& desc, Problem& problem) {
  Product& p = problem.product;
  problem.epilogue = int(desc[DESC_EPILOGUE]);
  int act = problem.epilogue & ~EPILOGUE_BIAS;
  p.has_bias = problem.epilogue & EPILOGUE_BIAS;
  if (act == EPILOGUE_RELU) p.act = Act::relu;
  else if (act == EPILOGUE_GELU) p.act = Act::gelu;
  else if (problem.epilogue != EPILOGUE_DEFAULT && problem.epilogue != EPILOGUE_BIAS) return UNSUPPORTED;
  p.bias = uint64_t(desc[DESC_BIAS]);
  p.bias_by_batch = desc[DESC_BIAS_BATCH_STRIDE];
  p.bias_type = p.d.type;
  if (desc[DESC_BIAS_TYPE] >= 0 && !read_type(desc[DESC_BIAS_TYPE], p.bias_type)) return UNSUPPORTED;
  return OK;
}

static Status read(const char* call, uint64_t handle, uint64_t desc_handle, const uint64_t layout_handles[4], Problem& problem) {
  if (!find(handle, Object::library)) return wrong(NOT_READY_YET, call, "no such handle");
  const Described* desc = find(desc_handle, Object::desc);
  const Described* layouts[4];
  for (int i = 0; i < 4; ++i)
    if (!(layouts[i] = find(layout_handles[i], Object::layout))) return wrong(BAD_VALUE, call, "no such matrix layout");
  if (!desc) return wrong(BAD_VALUE, call, "no such description of a product");
  if (Status status = read_types(*desc, layouts, problem)) return status;
  if (Status status = read_epilogue(*desc, problem)) return status;
  Product& p = problem.product;
  bool trans_a = (*desc)[DESC_TRANS_A] != 0, trans_b = (*desc)[DESC_TRANS_B] != 0;
  p.m = (*layouts[3])[LAYOUT_ROWS];
  p.n = (*layouts[3])[LAYOUT_COLUMNS];
  p.k = (*layouts[0])[trans_a ? LAYOUT_ROWS : LAYOUT_COLUMNS];
  p.batch = (*layouts[3])[LAYOUT_BATCH];
  if (p.m < 1 || p.n < 1 || p.k < 1 || p.batch < 1) return wrong(BAD_VALUE, call, "an empty matrix");
  for (auto* layout : layouts)
    if ((*layout)[LAYOUT_BATCH] != p.batch) return wrong(BAD_VALUE, call, "batches of different sizes");
  const char* why = read_layout(*layouts[0], trans_a, p.m, p.k, p.a, problem.span[0]);
  if (!why) why = read_layout(*layouts[1], trans_b, p.k, p.n, p.b, problem.span[1]);
  if (!why) why = read_layout(*layouts[2], false, p.m, p.n, p.c, problem.span[2]);
  if (!why) why = read_layout(*layouts[3], false, p.m, p.n, p.d, problem.span[3]);
  if (why) return wrong(BAD_VALUE, call, why);
  problem.kind = uint64_t(p.a.type) | uint64_t(p.d.type) << 2 | uint64_t(p.round) << 4 | uint64_t(trans_a) << 6 |
                 uint64_t(trans_b) << 7 | uint64_t(problem.epilogue) << 8;
  return OK;
}

struct Queued {
  Product product;
  const float *alpha, *beta;  // on the device, else null
  uint64_t workspace, workspace_bytes;
  double longer_ms;  // than it takes, for events
  int64_t poisoned;  // bytes from the result on that become poison in its place; 0: it is computed
};

static void run(void* data) {
  auto* queued = static_cast<Queued*>(data);
  if (queued->alpha) queued->product.alpha = *queued->alpha;
  if (queued->beta) queued->product.beta = *queued->beta;
  // An algorithm may leave anything there: two products at once must not share it.
  if (queued->workspace_bytes) memset(reinterpret_cast<void*>(queued->workspace), 0xff, queued->workspace_bytes);
  if (queued->poisoned) memset(reinterpret_cast<void*>(queued->product.d.at), 0xff, size_t(queued->poisoned));
  else multiply(queued->product);
  if (queued->longer_ms > 0) fake_gpu_take_longer(queued->longer_ms);
}

static const char* check_algo(const Problem& problem, const Algo& algo, uint64_t workspace, size_t workspace_bytes) {
  const Product& p = problem.product;
  if (algo.magic != MAGIC) return "an algorithm that no heuristic gave";
  if (algo.kind != problem.kind) return "an algorithm for other types, transposes or epilogue";
  if (algo.workspace > workspace_bytes || (algo.workspace > 0 && workspace == 0)) return "a workspace smaller than the algorithm's";
  const uint64_t at[4] = {p.a.at, p.b.at, p.beta != 0 ? p.c.at : 0, p.d.at};
  for (int i = 0; i < 4; ++i)
    if (algo.alignment[i] > 0 && at[i] % algo.alignment[i]) return "a matrix less aligned than the heuristic was told";
  return nullptr;
}

static const char* check_overlap(const Problem& problem) {
  const Product& p = problem.product;
  auto overlap = [](uint64_t one, int64_t bytes, uint64_t other, int64_t more) {
    return one < other + uint64_t(more) && other < one + uint64_t(bytes);
  };
  if (overlap(p.d.at, problem.span[3], p.a.at, problem.span[0]) || overlap(p.d.at, problem.span[3], p.b.at, problem.span[1]))
    return "the result lies over what is multiplied";
  bool in_place = p.c.at == p.d.at && p.c.by_row == p.d.by_row && p.c.by_column == p.d.by_column && p.c.by_batch == p.d.by_batch;
  if (p.beta != 0 && !in_place && overlap(p.d.at, problem.span[3], p.c.at, problem.span[2]))
    return "c and d overlap and are not the same";
  return nullptr;
}

}  // namespace fake

using namespace fake;

EXPORT Status cublasLtMatmulAlgoGetHeuristic(uint64_t handle, uint64_t desc, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                                             uint64_t preference, int asked, Heuristic* results, int* got) {
  const char* call = "cublasLtMatmulAlgoGetHeuristic";
  if (CUresult code = fake_gpu_ready(call)) return code == OUT_OF_MEMORY ? ALLOC_FAILED : NOT_READY_YET;
  if (!got || !results || asked < 1) return wrong(BAD_VALUE, call, "nowhere to put an algorithm");
  *got = 0;
  const Described* wanted = find(preference, Object::preference);
  if (!wanted) return wrong(BAD_VALUE, call, "no such preference");
  Problem problem;
  const uint64_t layouts[4] = {a, b, c, d};
  if (Status status = read(call, handle, desc, layouts, problem)) return status;
  Heuristic result = {};
  result.workspace = std::min(uint64_t((*wanted)[PREF_WORKSPACE]), WORKSPACE);
  result.algo = {MAGIC, problem.kind, result.workspace, {}, 0, uint32_t(problem.product.n)};
  for (int i = 0; i < 4; ++i) result.algo.alignment[i] = uint64_t((*wanted)[PREF_ALIGN_A + i]);
  result.waves = 1.0f;
  for (*got = 0; *got < std::min(asked, std::max(1, int(fake_gpu_get("algorithms")))); ++*got) {
    result.algo.number = uint32_t(*got);
    results[*got] = result;
  }
  return OK;
}

EXPORT Status cublasLtMatmul(uint64_t handle, uint64_t desc, const void* alpha, uint64_t a, uint64_t a_layout, uint64_t b,
                             uint64_t b_layout, const void* beta, uint64_t c, uint64_t c_layout, uint64_t d, uint64_t d_layout,
                             const Algo* algo, uint64_t workspace, size_t workspace_bytes, CUstream stream) {
  const char* call = "cublasLtMatmul";
  if (CUresult code = fake_gpu_ready(call)) return code == OUT_OF_MEMORY ? ALLOC_FAILED : EXECUTION_FAILED;
  Problem problem;
  const uint64_t layouts[4] = {a_layout, b_layout, c_layout, d_layout};
  if (Status status = read(call, handle, desc, layouts, problem)) return status;
  Product& p = problem.product;
  if (!alpha || !beta || !a || !b || !d) return wrong(BAD_VALUE, call, "a matrix or a factor is null");
  bool on_device = problem.pointer_mode == POINTER_DEVICE;
  p.a.at = a;
  p.b.at = b;
  p.c.at = c;
  p.d.at = d;
  // A factor on the device is not known yet: as if c were read.
  p.alpha = on_device ? 1 : *static_cast<const float*>(alpha);
  p.beta = on_device ? 1 : *static_cast<const float*>(beta);
  if (p.beta != 0 && !c) return wrong(BAD_VALUE, call, "beta is not 0 and c is null");
  if (p.has_bias && !p.bias) return wrong(BAD_VALUE, call, "an epilogue with a bias, and none is set");
  if (const char* why = algo ? check_algo(problem, *algo, workspace, workspace_bytes) : nullptr) return wrong(BAD_VALUE, call, why);
  if (algo && algo->columns != uint32_t(p.n) && fake_gpu_get("picky_algorithms")) return UNSUPPORTED;
  if (const char* why = check_overlap(problem)) return wrong(BAD_VALUE, call, why);
  auto span = [&](int i) { return uint64_t(problem.span[i]); };
  std::vector<FakeTouch> touches = {{a, span(0), 0}, {b, span(1), 0}, {d, span(3), 1}};
  if (p.beta != 0) touches.push_back({c, span(2), 0});
  if (p.has_bias) touches.push_back({p.bias, uint64_t(p.m + (p.batch - 1) * p.bias_by_batch) * bytes_of(p.bias_type), 0});
  uint64_t taken = algo ? algo->workspace : std::min(uint64_t(workspace_bytes), WORKSPACE);
  if (taken > 0) touches.push_back({workspace, taken, 1});
  bool by_first = !algo || algo->number == 0;
  if (!by_first) fake_gpu_count("matmuls_by_others", 1);
  long long computed = fake_gpu_get("columns_computed");
  auto* queued = new Queued{p, nullptr, nullptr, workspace, taken, by_first ? double(fake_gpu_get("first_algorithm_ms")) : 0,
                            computed > 0 && p.n > computed ? problem.span[3] : 0};
  if (on_device) {
    queued->alpha = static_cast<const float*>(alpha);
    queued->beta = static_cast<const float*>(beta);
    for (const void* factor : {alpha, beta}) touches.push_back({uint64_t(factor), 4, 0});
  }
  CUresult code = fake_gpu_enqueue(stream, call, "matmuls", touches.data(), int(touches.size()), run,
                                   [](void* data) { delete static_cast<Queued*>(data); }, queued);
  return code == SUCCESS ? OK : code == INVALID_VALUE || code == INVALID_HANDLE ? BAD_VALUE : EXECUTION_FAILED;
}
