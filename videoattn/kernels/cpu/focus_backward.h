// Gradients of focused linear attention. With S = sum over keys of phi(k_j) v_j, z that of phi(k_j), t_i = phi(q_i).z +
// e and e = 1e-6 times the number of keys, the output is o_i = phi(q_i) S / t_i. For its gradient g_i, f_i = S g_i /
// t_i and r_i = phi(q_i).f_i / t_i,
//
//   by phi(q_i): f_i - r_i z,   by S: sum over i of phi(q_i) g_i / t_i,   by z: - sum over i of r_i phi(q_i),
//   by phi(k_j): (by S) v_j + (by z),   by v_j: phi(k_j) (by S).
//
// `Backward` goes through a head: first over its queries, then over its keys. `PullBack` takes gradients by phi back to
// q and k, which needs phi times its gradient over all heads of a token. For a query that is r_i e: formed so, since
// the two terms of phi(q_i).(f_i - r_i z) cancel but for that.
#pragma once

#include "focus_forward.h"

namespace {

template <class T>
struct Gradients {
  const View* views;  // where those by q, k and v go, of type T; first, those by phi
  T* along[2];        // phi times its gradient, of queries and keys: [sequences, site_heads, tokens]
  T* shifts;          // by what is added to keys, [num_keys - prefix, site_heads * dim]; holds zeros before
  T* of_scale;        // [site_heads, runs of queries and keys, width], to be added up
  T* of_taps;         // [items, taps in space + taps along time + 1 for the bias, width], to be added up
};

// A token of one head of one sequence, in a tensor of T.
template <class T>
inline T* row_of(const Problem& p, const View& view, int64_t item, int64_t token) {
  return reinterpret_cast<T*>(view.data) + item / p.heads * view.row + item % p.heads * view.head + token * view.token;
}

template <class T, int W>
INLINE void copy_numbers(const Problem& p, const T* from, T* to) {
  const int64_t n = W ? W * Lanes<T>::count : p.dim;
  for (int64_t c = 0; c < n; c++) to[c] = from[c];
}

inline int64_t num_taps(const Problem& p) {
  return p.bias ? p.maps.taps_h * p.maps.taps_w + p.maps.taps_t + 1 : 0;
}

// From the gradient of the output, for one head of one sequence: those by v, by phi(q) and phi(k), and by the
// convolution.
template <class T, int W>
struct Backward : Head<T, W> {
  using Base = Head<T, W>;
  using Base::p, Base::width, Base::mapped, Base::values, Base::sums, Base::key_sum;
  const View& upstream_view;
  const Gradients<T>& gradients;
  Block<T> upstream, by_values;                   // of all queries; of all keys
  Block<T> transposed, by_sums, by_key_sum, by_mapped, scaled;

  Backward(const Problem& p, const View* views, const AllNorms<T>& norms, const Gradients<T>& gradients)
      : Base(p, views, norms), upstream_view(views[3]), gradients(gradients), upstream(width), by_values(width),
        transposed(width), by_sums(width), by_key_sum(width), by_mapped(width), scaled(width) {
    upstream.resize(p.num_queries);
    by_values.resize(p.num_keys);
    for (Block<T>* block : {&transposed, &by_sums}) block->resize(width);
    for (Block<T>* block : {&by_mapped, &scaled}) block->resize(RUN);
    by_key_sum.resize(1);
  }

  void work(int64_t item) {
    this->begin(item);
    this->load_all(upstream_view, p.num_queries, upstream);
    this->sum_keys();
    transpose(sums[0], width, width, width, transposed[0]);
    std::fill(by_key_sum[0], by_key_sum[0] + width, T(0));
    for (int64_t from = 0; from < p.num_queries; from += RUN) queries(from);
    // from here on the transpose of the gradient by S
    transpose(by_sums[0], width, width, width, transposed[0]);
    for (int64_t from = 0; from < p.num_keys; from += RUN) keys(from);
    if (p.bias) convolution();
    put(gradients.views[2], 0, p.num_keys, by_values);
  }

  void queries(int64_t from) {
    const int64_t n = this->map(false, from), vectors = W ? W : width / Lanes<T>::count;
    T shares[RUN];
    for (int64_t i = 0; i < n; i++) {
      shares[i] = 1 / this->total(mapped[i]);
      const Vec<T> share = splat<T>(shares[i]);
      const Vec<T>* row = reinterpret_cast<const Vec<T>*>(upstream[from + i]);
      Vec<T>* to = reinterpret_cast<Vec<T>*>(scaled[i]);
      for (int64_t j = 0; j < vectors; j++) to[j] = row[j] * share;
    }
    // f, from g / t in `scaled`
    multiply(scaled[0], width, 1, transposed[0], p.dim, by_mapped[0], n, width, false);
    const Vec<T>* key_sums = reinterpret_cast<const Vec<T>*>(key_sum[0]);
    Vec<T>* by_key_sums = reinterpret_cast<Vec<T>*>(by_key_sum[0]);
    T* along = gradients.along[0] + this->item * p.num_queries + from;
    for (int64_t i = 0; i < n; i++) {
      // r; then f becomes the gradient by phi, and that by z grows
      const T product = dot<T, W>(mapped[i], by_mapped[i], width) * shares[i];
      const Vec<T> by_total = splat<T>(-product);
      const Vec<T>* phi = reinterpret_cast<const Vec<T>*>(mapped[i]);
      Vec<T>* by_phi = reinterpret_cast<Vec<T>*>(by_mapped[i]);
      for (int64_t j = 0; j < vectors; j++) {
        by_phi[j] += by_total * key_sums[j];
        by_key_sums[j] += by_total * phi[j];
      }
      along[i] = product * T(p.num_keys * EPSILON);
    }
    // by S
    multiply(mapped[0], 1, width, scaled[0], n, by_sums[0], width, width, from > 0);
    put(gradients.views[0], from, n, by_mapped);
  }

  // Gradients by v and phi(k), the latter beginning with that by z.
  void keys(int64_t from) {
    const int64_t n = this->map(true, from);
    multiply(mapped[0], width, 1, by_sums[0], p.dim, by_values[from], n, width, false);
    for (int64_t i = 0; i < n; i++) std::memcpy(by_mapped[i], by_key_sum[0], width * sizeof(T));
    multiply(values[from], width, 1, transposed[0], p.dim, by_mapped[0], n, width, true);
    for (int64_t i = 0; i < n; i++)
      gradients.along[1][this->item * p.num_keys + from + i] = dot<T, W>(mapped[i], by_mapped[i], width);
    put(gradients.views[1], from, n, by_mapped);
  }

  // The adjoint of a convolution is the one with the kernel reversed. Convolutions in space and along time commute, and
  // so do their adjoints: `middle` is the upstream gradient of the kernel in space, and, convolved once more, that of
  // the values.
  void convolution() {
    const T *from = values[p.prefix], *out = upstream[p.prefix];
    T* of_space = gradients.of_taps + this->item * num_taps(p) * width;
    T* of_time = of_space + p.maps.taps_h * p.maps.taps_w * width;
    add_rows(out, this->patches, width, of_time + p.maps.taps_t * width);
    if (p.maps.taps_t)
      this->maps.add_time_gradient(this->convolve_space(from, this->kernels.space), out, of_time);
    const T* middle = this->convolve_time(out, this->kernels.reversed_time);
    if (p.maps.taps_h) this->maps.add_space_gradient(from, middle, of_space);
    const T* adjoint = this->convolve_space(middle, this->kernels.reversed_space);
    T* to = by_values[p.prefix];
    const int64_t n = this->patches * width;
    for (int64_t i = 0; i < n; i++) to[i] += adjoint[i];
  }

  void put(const View& view, int64_t from, int64_t n, const Block<T>& rows) const {
    T* to = row_of<T>(p, view, this->item, from);
    for (int64_t i = 0; i < n; i++, to += view.token) copy_numbers<T, W>(p, rows[i], to);
  }
};

// From the gradients by phi, those by q, k, what is added to k, and the scale. A part is some tokens of one head, of
// all sequences: what sequences share has one thread that adds it up.
template <class T, int W>
struct PullBack {
  const Problem& p;
  const View* const views;  // q, k
  const AllNorms<T>& norms;
  const Gradients<T>& gradients;
  Features<T, W> features;
  const int64_t width;
  Block<T> row;

  PullBack(const Problem& p, const View* views, const AllNorms<T>& norms, const Gradients<T>& gradients)
      : p(p), views(views), norms(norms), gradients(gradients), features(p), width(features.width), row(width) {
    row.resize(1);
  }

  void work(int64_t index) {
    const int64_t runs = p.runs(false) + p.runs(true), head = index / runs;
    const Run run = run_of(p, index % runs);
    T* of_scale = gradients.of_scale + index * width;
    for (int64_t sequence = 0; sequence < p.sequences(); sequence++) {
      const int64_t item = sequence * p.site_heads + head;
      const Tokens rows = tokens_of(p, views[run.of_keys], item);
      const View& to = gradients.views[run.of_keys];
      T* gradient = row_of<T>(p, to, item, run.from);
      for (int64_t i = run.from; i < run.to; i++, gradient += to.token) {
        if (i + AHEAD < run.to) prefetch(p, rows[i + AHEAD]);
        if (i + AHEAD < run.to) prefetch(p, reinterpret_cast<const char*>(gradient + AHEAD * to.token));
        token(sequence, head, run.of_keys, i, rows[i], gradient, of_scale);
      }
    }
  }

  void token(int64_t sequence, int64_t head, bool is_key, int64_t i, const char* at, T* gradient, T* of_scale) {
    const int64_t all = p.tokens(is_key);
    const T* shares = gradients.along[is_key] + sequence * p.site_heads * all + i;
    T along = 0;
    for (int64_t h = 0; h < p.site_heads; h++) along += shares[h * all];
    T* own = p.dim == width ? gradient : row[0];
    if (own != gradient) copy_numbers<T, W>(p, gradient, own);
    features.pull_back(at, is_key, i, head, norms.of[is_key][sequence * all + i], along, own, of_scale);
    if (own != gradient) copy_numbers<T, W>(p, own, gradient);
    if (!is_key || i < p.prefix) return;
    T* shift = gradients.shifts + ((i - p.prefix) * p.site_heads + head) * p.dim;
    const int64_t n = W ? W * Lanes<T>::count : p.dim;
    for (int64_t c = 0; c < n; c++) shift[c] += own[c];
  }
};

}  // namespace
