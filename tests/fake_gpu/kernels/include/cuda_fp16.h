// `__half` for a C++ compiler: IEEE 754 binary16, rounded to nearest even, as CUDA's header of this name does.
#pragma once

#include "../device.h"

struct alignas(2) __half {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};

inline float __half2float(__half value) {
    const uint32_t sign = (value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    // 2^-24 is the smallest: exact for every other value too
    if (magnitude < 0x400u) return std::copysign(static_cast<float>(magnitude) * 0x1p-24f, __uint_as_float(sign | 0x3f800000u));
    return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));
}

inline __half __float2half_rn(float value) {
    const uint32_t bits = __float_as_uint(value);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {0x7fff};
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65,520 and more
    if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, rounded by the addition
        const float rounded = std::fabs(value) + 0.5f;
        return {static_cast<uint16_t>(sign | (__float_as_uint(rounded) - 0x3f000000u))};
    }
    const uint32_t even = magnitude >> 13 & 1;
    return {static_cast<uint16_t>(sign | ((magnitude + 0xfffu + even - (112u << 23)) >> 13))};
}

inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__float2half_rn(__half2float(a.x) - __half2float(b.x)), __float2half_rn(__half2float(a.y) - __half2float(b.y))}; }
