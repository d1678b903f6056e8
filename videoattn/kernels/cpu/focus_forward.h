// Norms of tokens, and the output of one head of one sequence: with S = sum over keys of phi(k_j) v_j (width x width)
// and z = sum over keys of phi(k_j),
//
//   o_i = phi(q_i) S / (phi(q_i).z + tokens * 1e-6) + convolution(v)_i.
//
// S of a head of 64 floats is 16 KB; q, k and v are each read once for the products, q and k once more for the
// norms.
#pragma once

#include "focus.h"
#include "products.h"

namespace {

constexpr int64_t AHEAD = 8;  // tokens to fetch before they are needed

struct Run {  // up to RUN tokens of a sequence
  int64_t sequence;
  bool of_keys;
  int64_t from, to;
};

// The runs of a sequence are those of its queries and then those of its keys.
inline Run run_of(const Problem& p, int64_t i) {
  const int64_t queries = p.runs(false), both = queries + p.runs(true);
  const bool of_keys = i % both >= queries;
  const int64_t from = (i % both - (of_keys ? queries : 0)) * RUN;
  return {i / both, of_keys, from, std::min(from + RUN, p.tokens(of_keys))};
}

// Norms of the tokens of a run. They go over all heads, whose x are collected first.
template <class T, int W>
struct FindNorms {
  const Problem& p;
  const View* const views;  // q, k
  const AllNorms<T>& norms;
  Features<T, W> features;
  Block<T> token;  // x of all heads

  FindNorms(const Problem& p, const View* views, const AllNorms<T>& norms)
      : p(p), views(views), norms(norms), features(p), token(features.width) {
    token.resize(p.site_heads);
  }

  void work(const Run& run) {
    for (int64_t i = run.from; i < run.to; i++) {
      for (int64_t head = 0; head < p.site_heads; head++) {
        const Tokens rows = tokens_of(p, views[run.of_keys], run.sequence * p.site_heads + head);
        if (i + 1 < run.to) prefetch(p, rows[i + 1]);
        features.base(rows[i], run.of_keys, i, head, token[head]);
      }
      norms.of[run.of_keys][run.sequence * p.tokens(run.of_keys) + i] = find();
    }
  }

  Norms<T> find() {
    const Vec<T>* x = reinterpret_cast<const Vec<T>*>(token[0]);
    const int64_t n = p.site_heads * features.width / Lanes<T>::count;
    Vec<T> tops = x[0], squares = {}, powered = {};
    for (int64_t i = 1; i < n; i++) tops = tops < x[i] ? x[i] : tops;
    T largest = tops[0];
    for (int i = 1; i < Lanes<T>::count; i++) largest = largest < tops[i] ? tops[i] : largest;
    const Vec<T> reciprocal = splat<T>(1 / largest);
    const Power power(p);
    for (int64_t i = 0; i < n; i++) {
      const Vec<T> small = x[i] * reciprocal, raised = small * power.lower<T>(small);
      squares += small * small;
      powered += raised * raised;
    }
    return {1 / largest, std::sqrt(sum<T>(squares)), 1 / std::sqrt(sum<T>(powered))};
  }
};

// ---- one head of one sequence

template <class T>
struct Kernels {  // of the convolution, [taps, width], as they are and reversed; zero beyond the head's dimension
  Block<T> space, time, reversed_space, reversed_time, bias;

  Kernels(const Problem& p, int64_t width)
      : space(width), time(width), reversed_space(width), reversed_time(width), bias(width) {
    bias.resize(1);
    if (!p.bias) return;
    std::memcpy(bias[0], p.bias, p.dim * sizeof(T));
    arrange(p.dim, p.maps.taps_h * p.maps.taps_w, p.space, space, reversed_space);
    arrange(p.dim, p.maps.taps_t, p.time, time, reversed_time);
  }

  static void arrange(int64_t dim, int64_t taps, const void* from, Block<T>& to, Block<T>& reversed) {
    to.resize(taps), reversed.resize(taps);
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t c = 0; c < dim; c++)
        to[tap][c] = reversed[taps - 1 - tap][c] = static_cast<const T*>(from)[c * taps + tap];
  }
};

template <class T, int W>
struct Head {  // what both directions share
  const Problem& p;
  const View* const views;  // q, k, v
  const AllNorms<T>& norms;
  Features<T, W> features;
  const int64_t width, patches;
  Maps<T> maps;
  Kernels<T> kernels;
  Block<T> values, mapped;  // of all keys; phi of a few tokens
  Block<T> sums, key_sum;   // of phi(k) by v, and of phi(k)
  Block<T> in_space, convolved;
  int64_t item = 0, sequence = 0, head = 0;

  Head(const Problem& p, const View* views, const AllNorms<T>& norms)
      : p(p), views(views), norms(norms), features(p), width(features.width),
        patches(p.maps.frames * p.maps.height * p.maps.width), maps(p.maps, width), kernels(p, width), values(width),
        mapped(width), sums(width), key_sum(width), in_space(width), convolved(width) {
    values.resize(p.num_keys);
    mapped.resize(RUN);
    sums.resize(width);
    key_sum.resize(1);
    if (p.maps.taps_h) in_space.resize(patches);
    if (p.maps.taps_t) convolved.resize(patches);
  }

  void begin(int64_t index) {
    item = index, sequence = index / p.site_heads, head = index % p.site_heads;
    load_all(views[2], p.num_keys, values);
  }

  void load_all(const View& view, int64_t n, Block<T>& to) {
    const Tokens rows = tokens_of(p, view, item);
    for (int64_t i = 0; i < n; i++) {
      if (i + AHEAD < n) prefetch(p, rows[i + AHEAD]);
      load<T, W>(p, rows[i], to[i]);
    }
  }

  // phi of the tokens from `from` on, up to RUN of them; returns how many.
  int64_t map(bool is_key, int64_t from) {
    const Tokens rows = tokens_of(p, views[is_key], item);
    const int64_t all = p.tokens(is_key), n = std::min(RUN, all - from);
    const Norms<T>* own = norms.of[is_key] + sequence * all + from;
    for (int64_t i = 0; i < n; i++) {
      if (from + i + AHEAD < all) prefetch(p, rows[from + i + AHEAD]);
      features.map(rows[from + i], is_key, from + i, head, own[i], mapped[i]);
    }
    return n;
  }

  // S and z, by runs whose features stay in the cache; S grows by the product of their transpose with the values.
  void sum_keys() {
    std::fill(key_sum[0], key_sum[0] + width, T(0));
    for (int64_t from = 0; from < p.num_keys; from += RUN) {
      const int64_t n = map(true, from);
      multiply(mapped[0], 1, width, values[from], n, sums[0], width, width, from > 0);
      add_rows(mapped[0], n, width, key_sum[0]);
    }
  }

  // The maps convolved in space, and then along time; where there is no such kernel, as they are.
  const T* convolve_space(const T* from, const Block<T>& kernel) {
    if (!p.maps.taps_h) return from;
    maps.convolve_space(from, kernel[0], in_space[0]);
    return in_space[0];
  }

  const T* convolve_time(const T* from, const Block<T>& kernel) {
    if (!p.maps.taps_t) return from;
    maps.convolve_time(from, kernel[0], convolved[0]);
    return convolved[0];
  }

  // The denominator.
  T total(const T* phi) const { return dot<T, W>(phi, key_sum[0], width) + T(p.num_keys * EPSILON); }
};

template <class T, int W>
struct Forward : Head<T, W> {
  using Base = Head<T, W>;
  using Base::p, Base::width, Base::mapped;
  const View& out_view;
  Block<T> mixed;

  Forward(const Problem& p, const View* views, const AllNorms<T>& norms)
      : Base(p, views, norms), out_view(views[3]), mixed(width) {
    mixed.resize(RUN);
  }

  void work(int64_t item) {
    this->begin(item);
    this->sum_keys();
    const T* local = nullptr;
    if (p.bias) local = this->convolve_time(this->convolve_space(this->values[p.prefix], this->kernels.space),
                                            this->kernels.time);
    const Tokens out = tokens_of(p, out_view, item);
    for (int64_t from = 0; from < p.num_queries; from += RUN) {
      const int64_t n = this->map(false, from);
      multiply(mapped[0], width, 1, this->sums[0], width, mixed[0], n, width, false);
      for (int64_t i = 0; i < n; i++) {
        const int64_t patch = from + i - p.prefix;
        finish(i, local && patch >= 0 ? local + patch * width : nullptr);
        store<T, W>(p, out[from + i], mixed[i]);
      }
    }
  }

  // Divide, and add what the convolution gives to a patch; prefix tokens have none.
  void finish(int64_t i, const T* local) {
    const Vec<T> share = splat<T>(1 / this->total(mapped[i]));
    Vec<T>* to = reinterpret_cast<Vec<T>*>(mixed[i]);
    const Vec<T>* added = reinterpret_cast<const Vec<T>*>(local);
    const Vec<T>* bias = reinterpret_cast<const Vec<T>*>(this->kernels.bias[0]);
    const int64_t vectors = W ? W : width / Lanes<T>::count;
    for (int64_t j = 0; j < vectors; j++) to[j] = local ? to[j] * share + (added[j] + bias[j]) : to[j] * share;
  }
};

}  // namespace
