// Rows of numbers and arithmetic on them, in vectors that any compiler turns into what the processor has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#define INLINE __attribute__((always_inline)) inline

namespace {

// Vectors of 32 bytes, whatever the machine has: compilers split or join them. They overlay rows of T in memory (hence
// may_alias), which may begin at any element, so that no load assumes more than T's own alignment.
template <class T>
struct Lanes {
  static constexpr int count = 32 / sizeof(T);
  typedef T Vec __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};

template <class T>
using Vec = typename Lanes<T>::Vec;

// x in every lane. Subtracting zeros changes no number, not even -0, so that compilers leave it out.
template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

// A bfloat16 is the upper half of a float.
inline float from_bfloat16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float x;
  std::memcpy(&x, &wide, sizeof x);
  return x;
}

// To the nearest, ties to even: just below half a unit is added, and the lowest kept bit, and the carry rounds. NaN is
// answered before, as the carry could make another number of it.
inline uint16_t to_bfloat16(float x) {
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

// Rows of `width` numbers, aligned for vectors. `width` is whole vectors: rows of a head are copied to their
// beginnings, and what lies beyond the head's dimension stays the zeros of `resize`, so that products and sums of whole
// vectors need no tails.
template <class T>
class Block {
 public:
  explicit Block(int64_t width) : width_(width) {}
  ~Block() { ::operator delete(data_, std::align_val_t(64)); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  // Have room for as many rows; they hold zeros, or what an earlier use left in them.
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

// W is the width in vectors where it is known to the compiler, else 0: with it, loops over a row are unrolled.

// a.b but for the last sum, over the lanes. Even and odd vectors have a sum each, so that a multiply-add need not wait
// for the one before it.

template <class T, int W>
inline Vec<T> product(const T* a, const T* b, int64_t width) {
  const Vec<T>*x = reinterpret_cast<const Vec<T>*>(a), *y = reinterpret_cast<const Vec<T>*>(b);
  const int64_t n = W ? W : width / Lanes<T>::count;
  Vec<T> even = x[0] * y[0], odd = {};
  for (int64_t i = 1; i < n; i++) (i % 2 ? odd : even) += x[i] * y[i];
  return even + odd;
}

// The sum of all lanes, always in the same order.
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

// Products of a row with four others, each as the sum of lanes i and i + 4. Four at a time, because each of the two
// levels of shuffles and additions then fills whole vectors, where one product would leave most lanes idle: `st` holds
// sums of two lanes of s and t, and the result sums of four lanes of s, t, u and v.
template <int W>
INLINE Vec<float> dot4(const float* a, const float* const* b, int64_t width) {
  const Vec<float> s = product<float, W>(a, b[0], width), t = product<float, W>(a, b[1], width);
  const Vec<float> u = product<float, W>(a, b[2], width), v = product<float, W>(a, b[3], width);
  const Vec<float> st = PICK(s, t, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(s, t, 1, 3, 9, 11, 5, 7, 13, 15);
  const Vec<float> uv = PICK(u, v, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(u, v, 1, 3, 9, 11, 5, 7, 13, 15);
  return PICK(st, uv, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(st, uv, 1, 3, 9, 11, 5, 7, 13, 15);
}

// Products of a row with n others, of which the last repeats up to a multiple of four. Whole vectors are written: the
// halves of two `dot4` added, or of one and zeros.
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

// The largest lane: maxima with the other half, then with the other pair, then with the neighbour.
INLINE float largest(Vec<float> x) {
  const Vec<float> s = PICK(x, x, 4, 5, 6, 7, 0, 1, 2, 3), four = x < s ? s : x;
  const Vec<float> t = PICK(four, four, 2, 3, 0, 1, 6, 7, 4, 5), two = four < t ? t : four;
  const Vec<float> u = PICK(two, two, 1, 0, 3, 2, 5, 4, 7, 6);
  return (two < u ? u : two)[0];
}

INLINE double largest(Vec<double> x) { return std::max(std::max(x[0], x[1]), std::max(x[2], x[3])); }

#undef PICK

// S vectors of `weighted_sum`, from the `from`-th on. Their sums stay in registers while all rows are walked through,
// so that each number of a row is loaded once and each number of `out` written once.
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

// out = start (0 where that is null) + the sum of weights[j] * rows[j], by strips of 8 vectors: 8 sums and a weight fit
// the 16 registers of AVX2.
template <class T, int W>
INLINE void weighted_sum(const T* weights, const T* const* rows, int64_t n, int64_t width, const T* start, T* out) {
  const int64_t vectors = W ? W : width / Lanes<T>::count;
  int64_t from = 0;
  for (; from + 8 <= vectors; from += 8) sum_strip<T, 8>(weights, rows, n, start, out, from);
  for (; from + 4 <= vectors; from += 4) sum_strip<T, 4>(weights, rows, n, start, out, from);
  for (; from < vectors; from++) sum_strip<T, 1>(weights, rows, n, start, out, from);
}

}  // namespace
