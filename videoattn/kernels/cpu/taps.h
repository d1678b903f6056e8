// The taps of a strided convolution and the tokens that they meet, and rows of channels of whatever type a tensor has.
//
// Along an axis, output o is the sum over taps k of filter[k] x[o * stride + k - pad], zeros beyond the border, and the
// gradient by input i that over the taps with o = (i + pad - k) / stride a whole number in range of filter[k] g[o]. In
// both cases taps are evenly spaced, and what they meet are neighbours.
#pragma once

#include "tokens.h"

namespace {

struct Axis {
  int64_t in, out, kernel, stride;
  int64_t pad() const { return kernel / 2; }
};

struct Problem {
  int64_t rows, heads, dim, prefix;
  Axis axes[3];  // t, h, w
  int32_t type, threads;
  int64_t taps() const { return axes[0].kernel * axes[1].kernel * axes[2].kernel; }
};

struct Taps {  // first, first + step, ... below `end`; tap k meets position at + k * direction
  int64_t first, end, step, at, direction;
  int64_t position(int64_t k) const { return at + (k - first) / step * direction; }
};

// The taps that output o of an axis has, and the inputs they meet.
inline Taps taps_of_output(const Axis& a, int64_t o) {
  const int64_t origin = o * a.stride - a.pad(), first = std::max<int64_t>(0, -origin);
  return {first, std::min(a.kernel, a.in - origin), 1, origin + first, 1};
}

// The taps that meet input i of an axis, and the outputs they belong to.
inline Taps taps_of_input(const Axis& a, int64_t i) {
  const int64_t from = i + a.pad(), last = (a.out - 1) * a.stride;
  int64_t first = from % a.stride;  // the first k for which the division has no remainder
  if (from - first > last) first = from - last;  // the first that belongs to an output, the last one
  return {first, std::min(a.kernel, from + 1), a.stride, (from - first) / a.stride, -1};
}

// ---- vectors, or single numbers at the end of a row, of whatever type a tensor has

template <class V>
struct Values;
template <>
struct Values<float> {
  static float load(const float* x) { return *x; }
  static float load(const uint16_t* x) { return from_bfloat16(*x); }
  static void store(float* to, float x) { *to = x; }
  static void store(uint16_t* to, float x) { *to = to_bfloat16(x); }
};
template <>
struct Values<double> {
  static double load(const double* x) { return *x; }
  static void store(double* to, double x) { *to = x; }
};
template <>
struct Values<Vec<float>> {
  typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(32)));
  static Vec<float> load(const float* x) { return *reinterpret_cast<const Vec<float>*>(x); }
  static Vec<float> load(const uint16_t* x) {
    return (Vec<float>)(__builtin_convertvector(*reinterpret_cast<const Halves*>(x), Bits) << 16);
  }
  static void store(float* to, Vec<float> x) { *reinterpret_cast<Vec<float>*>(to) = x; }
  static void store(uint16_t* to, Vec<float> x) {
    for (int i = 0; i < Lanes<float>::count; i++) to[i] = to_bfloat16(x[i]);
  }
};
template <>
struct Values<Vec<double>> {
  static Vec<double> load(const double* x) { return *reinterpret_cast<const Vec<double>*>(x); }
  static void store(double* to, Vec<double> x) { *reinterpret_cast<Vec<double>*>(to) = x; }
};

// Call `work.template strip<V, S>(channel)` for S of V at a time until all channels are done: S vectors, then vectors
// one by one, then single numbers, as tensors are not padded.
template <class T, int S, class Work>
INLINE void by_strips(int64_t dim, const Work& work) {
  constexpr int lanes = Lanes<T>::count;
  int64_t c = 0;
  for (; c + S * lanes <= dim; c += S * lanes) work.template strip<Vec<T>, S>(c);
  for (; c + lanes <= dim; c += lanes) work.template strip<Vec<T>, 1>(c);
  for (; c < dim; c++) work.template strip<T, 1>(c);
}

}  // namespace
