// Exponentials, logarithms and powers of vectors, and what softmax does to rows of logits.
#pragma once

#include <cmath>
#include <limits>

#include "rows.h"

namespace {

// exp of numbers up to 0 (and a little above), to two units in the last place.
//
// exp(x) = 2^n e^r with n = x / log 2, rounded, and r = x - n log 2 from -log(2) / 2 to log(2) / 2, where the Taylor
// polynomial of degree 7 suffices. log 2 is subtracted in two parts, of which the first has so few bits that its
// product with n is exact. Below -87, for -inf too, 2^n would leave the exponents of normal numbers: these lanes
// compute something finite, and then become 0.
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
//
// With x = 2^n m and s = (m - 1) / (m + 1), log x = n log 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...); |s| < 0.172, so that the
// term of s^9 is the last that counts. log 2 is in the same two parts as above.
inline Vec<float> logarithm(Vec<float> x) {
  typedef int32_t Bits __attribute__((vector_size(32)));
  const Bits bits = (Bits)x, power = (bits - 0x3f3504f3) >> 23;  // x = 2^power * m, m from sqrt(1/2) to sqrt(2)
  const Vec<float> less = (Vec<float>)(bits - (power << 23)) - splat<float>(1.f);
  const Vec<float> s = less / (less + splat<float>(2.f)), square = s * s;  // log m = 2 artanh s
  Vec<float> series = splat<float>(2.f / 9);
  for (float c : {2.f / 7, 2.f / 5, 2.f / 3, 2.f}) series = series * square + splat<float>(c);
  const Vec<float> whole = __builtin_convertvector(power, Vec<float>);
  // x - x is 0, or NaN where x is not finite
  return (whole * splat<float>(0.693145751953125f) + s * series) + whole * splat<float>(1.42860682030941723e-6f) +
         (x - x);
}

inline Vec<double> logarithm(Vec<double> x) {
  for (int i = 0; i < Lanes<double>::count; i++) x[i] = std::log(x[i]);
  return x;
}

// x^power of numbers from 0 to 1, with the error that rounding gives to power times log x; something finite for 0.
INLINE Vec<float> raise(Vec<float> x, float power) { return exponential(logarithm(x) * splat<float>(power)); }

inline Vec<double> raise(Vec<double> x, double power) {
  for (int i = 0; i < Lanes<double>::count; i++) x[i] = std::pow(x[i], power);
  return x;
}

// Below: n numbers in memory for whole vectors, which are written as a whole, as reading one that was written in pieces
// stalls a processor. A row of logits s becomes softmax weights in three passes: `scale_logits` finds their maximum m,
// `exponentials` forms exp(s - m) and their sum Z, `shift_and_scale` divides by Z.

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

// Multiply by `scale`, put -inf behind, and return the largest. The -inf fill the last vector: they are no maximum, and
// their exponentials add nothing to the sum.
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

// Replace x by (x - less) * factor: weights, less that of a key outside the pattern, divided by Z.
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
