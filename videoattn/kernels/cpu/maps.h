// Depthwise convolutions of maps [frames, height, width, channels] within frames and along time, zeros beyond the
// border, and their gradients. Kernels are [taps, channels], channels whole vectors: a vector holds the same place of
// several channels, so that nothing is summed across lanes. At time t, row y and column x,
//
//   space: to[t, y, x] = sum over a, b of kernel[a, b] from[t, y + a - taps_h / 2, x + b - taps_w / 2]
//   time:  to[t, y, x] = sum over a of kernel[a] from[t + a - taps_t / 2, y, x]
//
// and the gradient by kernel[a, b] is the sum over t, y, x of the output's gradient times what it multiplies there.
#pragma once

#include "rows.h"

namespace {

struct MapShape {
  int64_t frames, height, width;
  int64_t taps_t, taps_h, taps_w;  // odd, or taps_t = 0 without a kernel along time, taps_h = 0 without one in space
};

// Call f<N>() with N = n, from 1 to 8: a number of sums that is known to the compiler stays in registers.
template <class F>
INLINE void with_count(int64_t n, const F& f) {
  switch (n) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 6: return f(std::integral_constant<int, 6>{});
    case 7: return f(std::integral_constant<int, 7>{});
    default: return f(std::integral_constant<int, 8>{});
  }
}

template <class T>
class Maps {
 public:
  Maps(const MapShape& shape, int64_t channels)
      : s(shape), channels(channels), area(shape.height * shape.width), across(shape.width + shape.taps_w - 1),
        padded(channels) {
    if (s.taps_h) padded.resize(s.height * across);
  }

  void convolve_space(const T* from, const T* kernel, T* to) {
    for (int64_t t = 0; t < s.frames; t++) {
      pad(from + t * area * channels);
      for (int64_t y = 0; y < s.height; y++)
        for (int64_t x = 0, next; x < s.width; x = next) {
          // a row in as few runs of up to 8 neighbours as possible, as equal as possible: 14 is 7 and 7
          const int64_t blocks = (s.width - x + 7) / 8;
          next = x + (s.width - x + blocks - 1) / blocks;
          T* out = to + ((t * s.height + y) * s.width + x) * channels;
          with_count(next - x, [&](auto n) { convolve_run<n.value>(y, x, kernel, out); });
        }
    }
  }

  void convolve_time(const T* from, const T* kernel, T* to) const {
    for (int64_t t = 0; t < s.frames; t++) {
      const int64_t shift = t - s.taps_t / 2, first = std::max<int64_t>(0, -shift);
      const int64_t end = std::min(s.taps_t, s.frames - shift);
      for (int64_t i = 0; i < area; i++)
        for (int64_t c = 0; c < channels; c += COUNT) {
          Vec<T> total = {};
          for (int64_t tap = first; tap < end; tap++)
            total += at(kernel + tap * channels + c) * at(from + ((shift + tap) * area + i) * channels + c);
          at(to + (t * area + i) * channels + c) = total;
        }
    }
  }

  // Add to `sums` [taps_h * taps_w, channels] the kernel's gradient, from the input and the output's gradient.
  void add_space_gradient(const T* from, const T* gradient, T* sums) {
    for (int64_t t = 0; t < s.frames; t++) {
      pad(from + t * area * channels);
      const T* upstream = gradient + t * area * channels;
      for (int64_t tap_y = 0; tap_y < s.taps_h; tap_y++)
        for (int64_t tap = 0; tap < s.taps_w; tap += 8)
          with_count(std::min<int64_t>(8, s.taps_w - tap), [&](auto n) {
            correlate<n.value>(upstream, tap_y, tap, sums + (tap_y * s.taps_w + tap) * channels);
          });
    }
  }

  void add_time_gradient(const T* from, const T* gradient, T* sums) const {
    for (int64_t tap = 0; tap < s.taps_t; tap++) {
      const int64_t shift = tap - s.taps_t / 2;
      for (int64_t t = std::max<int64_t>(0, -shift); t < std::min(s.frames, s.frames - shift); t++)
        for (int64_t c = 0; c < channels; c += COUNT) {
          Vec<T> total = {};
          for (int64_t i = 0; i < area; i++)
            total += at(from + ((t + shift) * area + i) * channels + c) * at(gradient + (t * area + i) * channels + c);
          at(sums + tap * channels + c) += total;
        }
    }
  }

 private:
  static constexpr int COUNT = Lanes<T>::count;
  const MapShape s;
  const int64_t channels, area, across;
  Block<T> padded;  // a frame with zeros left and right of its rows, which are never written

  static Vec<T>& at(T* x) { return *reinterpret_cast<Vec<T>*>(x); }
  static const Vec<T>& at(const T* x) { return *reinterpret_cast<const Vec<T>*>(x); }

  void pad(const T* frame) {
    for (int64_t y = 0; y < s.height; y++)
      std::memcpy(padded[y * across + s.taps_w / 2], frame + y * s.width * channels, s.width * channels * sizeof(T));
  }

  // N neighbours in a row of the output: a weight is loaded once for all of them. Taps above and below the frame are
  // left out; beside it they meet the padding's zeros, so that the inner loop has no conditions.
  template <int N>
  void convolve_run(int64_t y, int64_t x, const T* kernel, T* to) {
    const int64_t shift = y - s.taps_h / 2;
    const int64_t first = std::max<int64_t>(0, -shift), end = std::min(s.taps_h, s.height - shift);
    for (int64_t c = 0; c < channels; c += COUNT) {
      Vec<T> sums[N] = {};
      for (int64_t tap_y = first; tap_y < end; tap_y++) {
        const T* row = padded[(shift + tap_y) * across + x] + c;
        const T* weights = kernel + tap_y * s.taps_w * channels + c;
        for (int64_t tap = 0; tap < s.taps_w; tap++, row += channels, weights += channels) {
          const Vec<T> weight = at(weights);
#pragma GCC unroll 8
          for (int i = 0; i < N; i++) sums[i] += weight * at(row + i * channels);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < N; i++) at(to + i * channels + c) = sums[i];
    }
  }

  // The gradient of N neighbouring taps of one row of the kernel: each upstream number is loaded once for all of them.
  template <int N>
  void correlate(const T* upstream, int64_t tap_y, int64_t tap, T* sums) {
    const int64_t shift = tap_y - s.taps_h / 2;
    const int64_t first = std::max<int64_t>(0, -shift), end = std::min(s.height, s.height - shift);
    for (int64_t c = 0; c < channels; c += COUNT) {
      Vec<T> totals[N] = {};
      for (int64_t y = first; y < end; y++) {
        const T* row = padded[(y + shift) * across + tap] + c;
        const T* gradient = upstream + y * s.width * channels + c;
        for (int64_t x = 0; x < s.width; x++, row += channels, gradient += channels) {
          const Vec<T> weight = at(gradient);
#pragma GCC unroll 8
          for (int i = 0; i < N; i++) totals[i] += weight * at(row + i * channels);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < N; i++) at(sums + i * channels + c) += totals[i];
    }
  }
};

}  // namespace
