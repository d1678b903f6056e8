// The feature map of focused linear attention: x = (max(y, 0) + 1e-6) / scale and phi(x) = x^p / |x^p| * |x|, the norms
// over all heads of a token. y is a token's q, or its k plus the embedding of its position.
//
// phi(m x) = m phi(x), so that each token is divided by its largest channel m first: u = x / m is at most 1, no power
// of it overflows, and no norm is 0. Nothing but three numbers of each token is kept of all that, its `Norms`; u is
// formed anew from q and k wherever it is needed.
#pragma once

#include "elementwise.h"
#include "maps.h"
#include "tokens.h"

namespace {

constexpr double EPSILON = 1e-6;
constexpr int64_t RUN = 36;  // tokens at a time, a multiple of the rows of a product's tile; 9 KB of heads of 64 floats

struct Problem {
  int64_t rows, heads;            // of q, k and v, all groups of heads
  int64_t site_heads;            // that share a token's norms
  int64_t num_queries, num_keys;  // with the prefix
  int64_t prefix, dim;
  int64_t whole;                 // the power where it is a small whole number, else 0
  int64_t frames, places;        // of the keys' patches
  MapShape maps;                 // of the patches where there is a convolution
  double power;
  const void* scale;             // [site_heads * dim]
  const void* by_frame;          // what is added to the keys of a frame, [frames, site_heads * dim], or null
  const void* by_place;          // and of a place within frames, [places, site_heads * dim], or null
  const void* space;             // [dim, taps_h * taps_w]
  const void* time;              // [dim, taps_t]
  const void* bias;              // [dim], or null where nothing is convolved
  int32_t type, threads;

  int64_t sequences() const { return rows * (heads / site_heads); }
  int64_t tokens(bool of_keys) const { return of_keys ? num_keys : num_queries; }
  int64_t runs(bool of_keys) const { return (tokens(of_keys) + RUN - 1) / RUN; }
};

// Numbers of a token: 1 / m, |u|, and 1 / |u^p|.
template <class T>
struct Norms {
  T reciprocal, norm, inverse_powered;
};

template <class T>
struct AllNorms {
  Norms<T>* of[2];  // queries and keys, [sequences, tokens]
};

struct Power {  // small enough to stay in registers
  int64_t whole;
  double power;
  explicit Power(const Problem& p) : whole(p.whole), power(p.power) {}

  template <class T>
  INLINE Vec<T> lower(Vec<T> x) const {  // x^(p - 1)
    if (whole == 3) return x * x;
    if (!whole) return raise(x, T(power - 1));
    Vec<T> y = splat<T>(1);
    for (int64_t i = 1; i < whole; i++) y *= x;
    return y;
  }
};

template <class T, int W>
class Features {  // of one head at a time
 public:
  const Problem& p;
  const int64_t width;  // of a head in memory, whole vectors

  explicit Features(const Problem& p)
      : p(p), width(padded_width(p)), rows(width), inverse(width) {
    rows.resize(2);
    inverse.resize(p.site_heads);
    for (int64_t head = 0; head < p.site_heads; head++)
      for (int64_t c = 0; c < p.dim; c++)
        inverse[head][c] = 1 / static_cast<const T*>(p.scale)[head * p.dim + c];
  }

  static int64_t padded_width(const Problem& p) {
    constexpr int64_t count = Lanes<T>::count;
    return W ? W * count : (p.dim + count - 1) / count * count;
  }

  // x at a token's row of q or k, undivided; zero beyond the head's dimension.
  void base(const char* row, bool is_key, int64_t token, int64_t head, T* out) {
    const T *y = shifted(row, is_key, token, head), *scaling = inverse[head];
    const int64_t n = numbers();
    for (int64_t c = 0; c < n; c += COUNT) at(out + c) = base_of(at(y + c), at(scaling + c));
  }

  // phi at a token's row: u^p times m |u| / |u^p|.
  void map(const char* row, bool is_key, int64_t token, int64_t head, const Norms<T>& norms, T* out) {
    const T *y = shifted(row, is_key, token, head), *scaling = inverse[head];
    const Vec<T> reciprocal = splat<T>(norms.reciprocal);
    const Vec<T> factor = splat<T>(norms.norm * norms.inverse_powered / norms.reciprocal);
    const Power power(p);
    const int64_t n = numbers();
    for (int64_t c = 0; c < n; c += COUNT) {
      const Vec<T> x = base_of(at(y + c), at(scaling + c)) * reciprocal;
      at(out + c) = x * power.lower<T>(x) * factor;
    }
  }

  // Replace the gradient g by phi with that by y, and add the negative of that by the scale to `of_scale`.
  // `along` is the product a = phi.g over all heads. With n = |u| and c = 1 / |u^p|, the gradient by x is
  //
  //   p n c u^(p - 1) (g - (a / (m n)) c u^p) + (a / (m n)) u / n,
  //
  // the first part through u^p / |u^p|, the second through |x|. m needs no gradient, as phi(m x) = m phi(x). The
  // gradient by y is that by x over the scale, where y > 0, and that by the scale is -x over the scale times that by x.
  void pull_back(const char* row, bool is_key, int64_t token, int64_t head, const Norms<T>& norms, T along,
                 T* gradient, T* of_scale) {
    const T *y = shifted(row, is_key, token, head), *scaling = inverse[head];
    const Vec<T> reciprocal = splat<T>(norms.reciprocal), to_x = splat<T>(1 / norms.norm);
    const Vec<T> share = splat<T>(along * norms.reciprocal / norms.norm);
    const Vec<T> steepness = splat<T>(T(p.power) * norms.norm * norms.inverse_powered);
    const Vec<T> to_phi = splat<T>(norms.inverse_powered);
    const Power power(p);
    const int64_t n = numbers();
    for (int64_t c = 0; c < n; c += COUNT) {
      const Vec<T> x = base_of(at(y + c), at(scaling + c)), small = x * reciprocal;
      const Vec<T> lower = power.lower<T>(small);
      const Vec<T> steep = steepness * lower * (at(gradient + c) - share * small * lower * to_phi);
      const Vec<T> by_x = steep + share * small * to_x;
      const Vec<T> by_base = by_x * at(scaling + c);
      at(of_scale + c) += by_base * x;
      at(gradient + c) = at(y + c) > Vec<T>{} ? by_base : Vec<T>{};
    }
  }

  // A token's numbers: where they lie if they are whole vectors of T, else converted and padded in `room`.
  const T* read(const char* row, T* room) const {
    if (p.type != 1 && p.dim == width) return reinterpret_cast<const T*>(row);
    load<T, W>(p, row, room);
    return room;
  }

 private:
  static constexpr int64_t COUNT = Lanes<T>::count;
  Block<T> rows, inverse;

  // Padded channels have y = 0 and scaling = 0, so that x and phi are 0 there.
  int64_t numbers() const { return W ? W * COUNT : width; }  // where known to the compiler

  static Vec<T>& at(T* x) { return *reinterpret_cast<Vec<T>*>(x); }
  static const Vec<T>& at(const T* x) { return *reinterpret_cast<const Vec<T>*>(x); }

  // x. `y <= 0` is false for NaN, which stays NaN.
  static Vec<T> base_of(Vec<T> y, Vec<T> scaling) {
    return ((y <= Vec<T>{} ? Vec<T>{} : y) + splat<T>(EPSILON)) * scaling;
  }

  // A token's q, or its k and the embedding of its position.
  const T* shifted(const char* row, bool is_key, int64_t token, int64_t head) {
    const T* y = read(row, rows[0]);
    if (!is_key || token < p.prefix) return y;
    const int64_t patch = token - p.prefix;
    if (p.by_frame) y = add(y, p.by_frame, patch / p.places, head);
    if (p.by_place) y = add(y, p.by_place, patch % p.places, head);
    return y;
  }

  const T* add(const T* y, const void* table, int64_t i, int64_t head) {
    const T* shift = static_cast<const T*>(table) + (i * p.site_heads + head) * p.dim;
    T* to = rows[1];
    if (p.dim == width) {
      const int64_t n = numbers();
      for (int64_t c = 0; c < n; c += COUNT) at(to + c) = at(y + c) + at(shift + c);
    } else {
      for (int64_t c = 0; c < p.dim; c++) to[c] = y[c] + shift[c];
    }
    return to;
  }
};

}  // namespace
