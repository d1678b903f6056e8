// Rows of numbers and arithmetic on them, in vectors that any compiler turns into what the processor has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#define INLINE __attribute__((always_inline)) inline

namespace {

// Vectors of 32 bytes, whatever the machine has: compilers split or join them.
template <class T>
struct Lanes {
  static constexpr int count = 32 / sizeof(T);
  typedef T Vec __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vec = typename Lanes<T>::Vec;

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

inline float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

inline uint16_t to_bfloat16(float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

struct Tokens {  // rows that lie `step` bytes apart
  char* data;
  int64_t step;
  char* operator[](int64_t i) const { return data + i * step; }
};

template <class T>
class Block {  // rows of `width` numbers, aligned for vectors, zero beyond a tensor's own width
 public:
  explicit Block(int64_t width) : width_(width) {}
  ~Block() { ::operator delete(data_, std::align_val_t(64)); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void resize(int64_t rows) {
    if (rows <= rows_) return;
    ::operator delete(data_, std::align_val_t(64));
    data_ = static_cast<T*>(::operator new(rows * width_ * sizeof(T), std::align_val_t(64)));
    std::memset(static_cast<void*>(data_), 0, rows * width_ * sizeof(T));
    rows_ = rows;
  }
  T* operator[](int64_t row) { return data_ + row * width_; }
  const T* operator[](int64_t row) const { return data_ + row * width_; }
  Tokens rows() const { return {reinterpret_cast<char*>(data_), int64_t(width_ * sizeof(T))}; }

 private:
  T* data_ = nullptr;
  int64_t width_, rows_ = 0;
};

// W is the width in vectors where it is known to the compiler, else 0.

template <class T, int W>
inline Vec<T> product(const T* a, const T* b, int64_t width) {
  const Vec<T>*x = reinterpret_cast<const Vec<T>*>(a), *y = reinterpret_cast<const Vec<T>*>(b);
  const int64_t n = W ? W : width / Lanes<T>::count;
  Vec<T> even = x[0] * y[0], odd = {};
  for (int64_t i = 1; i < n; i++) (i % 2 ? odd : even) += x[i] * y[i];
  return even + odd;
}

template <class T>
INLINE T sum(Vec<T> x) {
  typedef T Half __attribute__((vector_size(16), aligned(sizeof(T)), may_alias));
  Half halves[2];
  std::memcpy(halves, &x, 32);
  const Half h = halves[0] + halves[1];
  if constexpr (std::is_same_v<T, float>) return (h[0] + h[2]) + (h[1] + h[3]);
  else return h[0] + h[1];
}

template <class T, int W>
inline T dot(const T* a, const T* b, int64_t width) {
  return sum<T>(product<T, W>(a, b, width));
}

#ifdef __clang__
#define PICK(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define PICK(x, y, ...) __builtin_shuffle(x, y, Picks{__VA_ARGS__})
#endif

typedef int32_t Picks __attribute__((vector_size(32)));

// Products of a row with four others, each as the sum of lanes i and i + 4.
template <int W>
INLINE Vec<float> dot4(const float* a, const float* const* b, int64_t width) {
  const Vec<float> s = product<float, W>(a, b[0], width), t = product<float, W>(a, b[1], width);
  const Vec<float> u = product<float, W>(a, b[2], width), v = product<float, W>(a, b[3], width);
  const Vec<float> st = PICK(s, t, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(s, t, 1, 3, 9, 11, 5, 7, 13, 15);
  const Vec<float> uv = PICK(u, v, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(u, v, 1, 3, 9, 11, 5, 7, 13, 15);
  return PICK(st, uv, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(st, uv, 1, 3, 9, 11, 5, 7, 13, 15);
}

// Products of a row with n others, of which the last repeats up to a multiple of four. Whole vectors are written.
template <int W>
INLINE void dots(const float* a, const float* const* b, int64_t n, int64_t width, float* out) {
  for (int64_t j = 0; j < n; j += 8) {
    const Vec<float> s = dot4<W>(a, b + j, width);
    const Vec<float> t = j + 4 < n ? dot4<W>(a, b + j + 4, width) : Vec<float>{};
    *reinterpret_cast<Vec<float>*>(out + j) =
        PICK(s, t, 0, 1, 2, 3, 8, 9, 10, 11) + PICK(s, t, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

template <int W>
INLINE void dots(const double* a, const double* const* b, int64_t n, int64_t width, double* out) {
  for (int64_t j = 0; j < n; j++) out[j] = dot<double, W>(a, b[j], width);
}

INLINE float largest(Vec<float> x) {
  const Vec<float> s = PICK(x, x, 4, 5, 6, 7, 0, 1, 2, 3), four = x < s ? s : x;
  const Vec<float> t = PICK(four, four, 2, 3, 0, 1, 6, 7, 4, 5), two = four < t ? t : four;
  const Vec<float> u = PICK(two, two, 1, 0, 3, 2, 5, 4, 7, 6);
  return (two < u ? u : two)[0];
}

INLINE double largest(Vec<double> x) { return std::max(std::max(x[0], x[1]), std::max(x[2], x[3])); }

#undef PICK

// A strip of `weighted_sum` that stays in registers.
template <class T, int S>
INLINE void sum_strip(const T* weights, const T* const* rows, int64_t n, const T* start, T* out, int64_t from) {
  Vec<T> sums[S];
#pragma GCC unroll 8
  for (int i = 0; i < S; i++) sums[i] = start ? reinterpret_cast<const Vec<T>*>(start)[from + i] : Vec<T>{};
  for (int64_t j = 0; j < n; j++) {
    const Vec<T> weight = splat<T>(weights[j]);
    const Vec<T>* row = reinterpret_cast<const Vec<T>*>(rows[j]) + from;
#pragma GCC unroll 8
    for (int i = 0; i < S; i++) sums[i] += weight * row[i];
  }
  Vec<T>* to = reinterpret_cast<Vec<T>*>(out) + from;
#pragma GCC unroll 8
  for (int i = 0; i < S; i++) to[i] = sums[i];
}

// out = start (0 where that is null) + the sum of weights[j] * rows[j].
template <class T, int W>
INLINE void weighted_sum(const T* weights, const T* const* rows, int64_t n, int64_t width, const T* start, T* out) {
  const int64_t vectors = W ? W : width / Lanes<T>::count;
  int64_t from = 0;
  for (; from + 8 <= vectors; from += 8) sum_strip<T, 8>(weights, rows, n, start, out, from);
  for (; from + 4 <= vectors; from += 4) sum_strip<T, 4>(weights, rows, n, start, out, from);
  for (; from < vectors; from++) sum_strip<T, 1>(weights, rows, n, start, out, from);
}

// exp of numbers up to 0 (and a little above), to two units in the last place.
inline Vec<float> exponential(Vec<float> x) {
  typedef int32_t Bits __attribute__((vector_size(32)));
  const Vec<float> magic = splat<float>(12582912.f), least = splat<float>(-87.f);
  const auto tiny = x < least;
  x = tiny ? least : x;
  const Vec<float> shifted = x * splat<float>(1.44269504088896341f) + magic;  // adding 1.5 * 2^23 rounds to an integer
  const Vec<float> whole = shifted - magic;
  const Vec<float> r = (x - whole * splat<float>(0.693145751953125f)) - whole * splat<float>(1.42860682030941723e-6f);
  Vec<float> e = splat<float>(1.f / 5040) * r + splat<float>(1.f / 720);
  for (float c : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) e = e * r + splat<float>(c);
  const Bits power = ((Bits)shifted << 23) + (127 << 23);  // the integer sits in the low bits of `shifted`
  return tiny ? Vec<float>{} : e * (Vec<float>)power;
}

inline Vec<double> exponential(Vec<double> x) {
  for (int i = 0; i < Lanes<double>::count; i++) x[i] = std::exp(x[i]);
  return x;
}

// log of positive numbers, to two units in the last place; finite for 0, NaN for what is not finite.
inline Vec<float> logarithm(Vec<float> x) {
  typedef int32_t Bits __attribute__((vector_size(32)));
  const Bits bits = (Bits)x, power = (bits - 0x3f3504f3) >> 23;  // x = 2^power * m, m from sqrt(1/2) to sqrt(2)
  const Vec<float> less = (Vec<float>)(bits - (power << 23)) - splat<float>(1.f);
  const Vec<float> s = less / (less + splat<float>(2.f)), square = s * s;  // log m = 2 artanh s
  Vec<float> series = splat<float>(2.f / 9);
  for (float c : {2.f / 7, 2.f / 5, 2.f / 3, 2.f}) series = series * square + splat<float>(c);
  const Vec<float> whole = __builtin_convertvector(power, Vec<float>);
  return (whole * splat<float>(0.693145751953125f) + s * series) + whole * splat<float>(1.42860682030941723e-6f) + (x - x);
}

inline Vec<double> logarithm(Vec<double> x) {
  for (int i = 0; i < Lanes<double>::count; i++) x[i] = std::log(x[i]);
  return x;
}

// x^power of numbers from 0 to 1, as far from it as the power times log x has rounding errors; of 0, whatever is finite.
INLINE Vec<float> raise(Vec<float> x, float power) { return exponential(logarithm(x) * splat<float>(power)); }

inline Vec<double> raise(Vec<double> x, double power) {
  for (int i = 0; i < Lanes<double>::count; i++) x[i] = std::pow(x[i], power);
  return x;
}

// Below: n numbers in memory for whole vectors, which are written as a whole, as reading one that was written in pieces
// stalls a processor.

template <class T>
struct Numbers;
template <>
struct Numbers<float> {
  typedef int32_t Lane __attribute__((vector_size(32)));
  static constexpr Lane lanes = {0, 1, 2, 3, 4, 5, 6, 7};
};
template <>
struct Numbers<double> {
  typedef int64_t Lane __attribute__((vector_size(32)));
  static constexpr Lane lanes = {0, 1, 2, 3};
};

// Multiply by `scale`, put -inf behind, and return the largest.
template <class T>
INLINE T scale_logits(T* x, int64_t n, T scale) {
  using Lane = typename Numbers<T>::Lane;
  constexpr int count = Lanes<T>::count;
  const Vec<T> none = splat<T>(-std::numeric_limits<T>::infinity());
  Vec<T> top = none;
  for (int64_t i = 0; i < n; i += count) {
    Vec<T>* at = reinterpret_cast<Vec<T>*>(x + i);
    const Lane left = Lane{} + static_cast<decltype(Lane{}[0] + 0)>(n - i);
    const Vec<T> scaled = Numbers<T>::lanes < left ? *at * splat<T>(scale) : none;
    *at = scaled;
    top = top < scaled ? scaled : top;
  }
  return largest(top);
}

// Replace x by (x - less) * factor.
template <class T>
INLINE void shift_and_scale(T* x, int64_t n, T less, T factor) {
  for (int64_t i = 0; i < n; i += Lanes<T>::count) {
    Vec<T>* at = reinterpret_cast<Vec<T>*>(x + i);
    *at = (*at - splat<T>(less)) * splat<T>(factor);
  }
}

// Replace by logarithms.
template <class T>
INLINE void logarithms(T* x, int64_t n) {
  for (int64_t i = 0; i < n; i += Lanes<T>::count) {
    Vec<T>* at = reinterpret_cast<Vec<T>*>(x + i);
    *at = logarithm(*at);
  }
}

// Replace by exp(x - shift), and return the sum.
template <class T>
INLINE T exponentials(T* x, int64_t n, T shift) {
  Vec<T> total = {};
  for (int64_t i = 0; i < n; i += Lanes<T>::count) {
    Vec<T>* at = reinterpret_cast<Vec<T>*>(x + i);
    *at = exponential(*at - splat<T>(shift));
    total += *at;
  }
  return sum<T>(total);
}

}  // namespace
