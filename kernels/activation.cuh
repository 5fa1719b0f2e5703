// Activations of one value, by the numbers that kernels are told of them.
#pragma once

#include "common.cuh"

enum Kind { GELU, GELU_TANH, QUICK_GELU, RELU, SILU, TANH, SIGMOID, NONE };

// `x σ(y)`; where `exp` is infinite it is 0, as it should be.
__device__ inline float gated(float x, float y) { return __fdividef(x, 1.f + expf(-y)); }

template <int KIND>
__device__ inline float activated(float x) {
    switch (KIND) {
        case GELU:
            return 0.5f * x * (1.f + erff(x * 0.70710678f));
        case GELU_TANH:
            // (1 + tanh y) / 2 = σ(2y), which keeps its relative accuracy where tanh y is near -1
            return gated(x, 1.5957691f * (x + 0.044715f * x * x * x));
        case QUICK_GELU:
            return gated(x, 1.702f * x);
        case RELU:
            return x < 0.f ? 0.f : x;
        case SILU:
            return gated(x, x);
        case TANH:
            return tanhf(x);
        case SIGMOID:
            return gated(1.f, x);
        default:
            return x;
    }
}

// Calls `work.run<KIND>()`: kinds are told apart once, not for every value.
template <class Work>
__device__ void of_kind(const Work& work, int kind) {
    switch (kind) {
        case GELU: return work.template run<GELU>();
        case GELU_TANH: return work.template run<GELU_TANH>();
        case QUICK_GELU: return work.template run<QUICK_GELU>();
        case RELU: return work.template run<RELU>();
        case SILU: return work.template run<SILU>();
        case TANH: return work.template run<TANH>();
        case SIGMOID: return work.template run<SIGMOID>();
        default: return work.template run<NONE>();
    }
}
