// How libcublasLt.so.13 hands work to the driver that it is loaded beside: the vendor's library does so by ways of its own.
#pragma once
#include "abi.h"

struct FakeTouch {
  uint64_t at, bytes;
  int writes;
};

// Queues `run(data)` on a stream and counts it under `counter`. `drop(data)` once it can never run again. What it touches must be
// allocated, else INVALID_VALUE, counted as misuse of `what`; the driver's other answers are those of a launch.
extern "C" CUresult fake_gpu_enqueue(CUstream stream, const char* what, const char* counter, const FakeTouch* touches, int number,
                                     void (*run)(void*), void (*drop)(void*), void* data);
// Adds to a counter of the report.
extern "C" void fake_gpu_count(const char* counter, long long by);
// A setting, or a counter; not from within `run`.
extern "C" long long fake_gpu_get(const char* key);
// From within `run`: for events it takes so much longer.
extern "C" void fake_gpu_take_longer(double ms);
// Counts a misuse.
extern "C" void fake_gpu_misuse(const char* text);
// SUCCESS when the calling thread may use the device now; the failure on command that is meant for `name`, too.
extern "C" CUresult fake_gpu_ready(const char* name);
