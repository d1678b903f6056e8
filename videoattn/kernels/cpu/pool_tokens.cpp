// Depthwise convolution of tokens on a grid, with filters that all heads share, and its gradients, on a CPU.
//
// Tokens are read where a projection wrote them, heads and channels side by side, and nothing is copied or padded: each
// output, or gradient, is summed in registers over the taps that meet the grid, a few channels at a time. Prefix tokens
// are copied. `pool.py` describes the arguments and calls these functions; nothing here depends on Python or torch.

#include <memory>
#include <utility>
#include <vector>

#include "taps.h"

namespace {

// ---- outputs, and the gradient of inputs: sums over the taps of R tokens in a row that have the same

// X is the type of the tensors, T that of sums and filters. A strip is S vectors of channels of R tokens: their R S
// sums stay in registers while all taps are walked through, and a filter's vector is loaded once for R tokens.
template <class X, class T, int R>
struct SumOverTaps {
  const std::vector<int64_t>&offsets, &filter_offsets;  // of each tap
  const X* from;
  int64_t from_step;  // between what these tokens meet with a tap
  const T* filters;   // [taps, dim]
  X* to;
  int64_t to_step;

  template <class V, int S>
  INLINE void strip(int64_t c) const {
    constexpr int lanes = sizeof(V) / sizeof(T);
    V sums[R][S] = {};
    for (size_t n = 0; n < offsets.size(); n++) {
      const X* x = from + offsets[n] + c;
      const T* filter = filters + filter_offsets[n] + c;
#pragma GCC unroll 4
      for (int i = 0; i < S; i++) {
        const V weight = Values<V>::load(filter + i * lanes);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sums[r][i] += weight * Values<V>::load(x + r * from_step + i * lanes);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int i = 0; i < S; i++) Values<V>::store(to + r * to_step + c + i * lanes, sums[r][i]);
  }
};

// One frame of one head. `Backward` reads the outputs' gradient and writes the inputs', else it reads inputs.
template <class X, class T, bool Backward>
struct Pool {
  const Problem& p;
  const View &from_view, &to_view;
  const T* filters;
  std::vector<int64_t> offsets, filter_offsets;

  Pool(const Problem& p, const View& from, const View& to, const T* filters)
      : p(p), from_view(from), to_view(to), filters(filters) {}

  static int64_t frames(const Problem& p) { return Backward ? p.axes[0].in : p.axes[0].out; }

  static Taps taps(const Axis& a, int64_t i) { return Backward ? taps_of_input(a, i) : taps_of_output(a, i); }

  void work(int64_t part) {
    const int64_t item = part / frames(p), frame = part % frames(p);
    const Tokens from = tokens_of(p, from_view, item), to = tokens_of(p, to_view, item);
    if (frame == 0)
      for (int64_t i = 0; i < p.prefix; i++) std::memcpy(to[i], from[i], p.dim * sizeof(X));
    const Axis &h = p.axes[1], &w = p.axes[2];
    const int64_t height = Backward ? h.in : h.out, width = Backward ? w.in : w.out;
    // along a row, every `phases`-th token has the same taps but at the borders, and meets tokens `spacing` apart
    const int64_t phases = Backward ? w.stride : 1, spacing = Backward ? 1 : w.stride;
    const Taps of_t = taps(p.axes[0], frame);
    for (int64_t i = 0; i < height; i++) {
      const Taps of_h = taps(h, i);
      for (int64_t phase = 0; phase < std::min(phases, width); phase++)
        for (int64_t j = phase, next; j < width; j = next) {
          const Taps of_w = taps(w, j);
          int64_t count = 1;
          for (next = j + phases; next < width; next += phases, count++) {
            const Taps other = taps(w, next);
            if (other.first != of_w.first || other.end != of_w.end || other.at != of_w.at + count * spacing) break;
          }
          list_taps(of_t, of_h, of_w);
          X* row = reinterpret_cast<X*>(to[p.prefix + (frame * height + i) * width + j]);
          sum_run(reinterpret_cast<const X*>(from[p.prefix]), row, count, spacing * from_view.token,
                  phases * to_view.token);
        }
    }
  }

  // Where the taps meet the tokens, and where their filters are: products of the three axes' taps, time slowest.
  void list_taps(const Taps& t, const Taps& h, const Taps& w) {
    const int64_t height = Backward ? p.axes[1].out : p.axes[1].in, width = Backward ? p.axes[2].out : p.axes[2].in;
    offsets.clear();
    filter_offsets.clear();
    for (int64_t kt = t.first; kt < t.end; kt += t.step)
      for (int64_t kh = h.first; kh < h.end; kh += h.step)
        for (int64_t kw = w.first; kw < w.end; kw += w.step) {
          offsets.push_back(((t.position(kt) * height + h.position(kh)) * width + w.position(kw)) * from_view.token);
          filter_offsets.push_back(((kt * p.axes[1].kernel + kh) * p.axes[2].kernel + kw) * p.dim);
        }
  }

  // Four tokens and two vectors at a time, 8 sums; what is left one token and four vectors at a time.
  void sum_run(const X* from, X* to, int64_t count, int64_t from_step, int64_t to_step) const {
    int64_t n = 0;
    for (; n + 4 <= count; n += 4)
      by_strips<T, 2>(p.dim, SumOverTaps<X, T, 4>{offsets, filter_offsets, from + n * from_step, from_step, filters,
                                                  to + n * to_step, to_step});
    for (; n < count; n++)
      by_strips<T, 4>(p.dim, SumOverTaps<X, T, 1>{offsets, filter_offsets, from + n * from_step, from_step, filters,
                                                  to + n * to_step, to_step});
  }
};

// ---- the gradient of filters: for K taps that follow each other in a row, sums over outputs

// filter[k] += sum over outputs o of g[o] x[o * stride + k - pad], for K neighbouring k: g is loaded once for all K.
template <class X, class T, int K>
struct SumOverOutputs {
  const X *gradient, *x;  // of the first output, and what it meets with the first tap
  int64_t gradient_step, x_step, tap_step, count;
  T* to;  // [K, dim]
  int64_t dim;

  template <class V, int S>
  INLINE void strip(int64_t c) const {
    constexpr int lanes = sizeof(V) / sizeof(T);
    V sums[K][S];
#pragma GCC unroll 4
    for (int k = 0; k < K; k++)
#pragma GCC unroll 4
      for (int i = 0; i < S; i++) sums[k][i] = Values<V>::load(to + k * dim + c + i * lanes);
    const X *g = gradient + c, *at = x + c;
    for (int64_t n = 0; n < count; n++, g += gradient_step, at += x_step)
#pragma GCC unroll 4
      for (int i = 0; i < S; i++) {
        const V by_output = Values<V>::load(g + i * lanes);
#pragma GCC unroll 4
        for (int k = 0; k < K; k++) sums[k][i] += by_output * Values<V>::load(at + k * tap_step + i * lanes);
      }
#pragma GCC unroll 4
    for (int k = 0; k < K; k++)
#pragma GCC unroll 4
      for (int i = 0; i < S; i++) Values<V>::store(to + k * dim + c + i * lanes, sums[k][i]);
  }
};

// The gradient of filters from some frames of some heads, added to memory of their own. There are up to 64 such parts,
// whatever the number of threads, and they are added up in order, so that sums are the same for any of it.
template <class X, class T>
struct ByFilter {
  static constexpr int64_t MOST_PARTS = 64;
  const Problem& p;
  const View &gradient_view, &x_view;
  T* sums;  // [parts, taps, dim], of zeros

  ByFilter(const Problem& p, const View& gradient, const View& x, T* sums)
      : p(p), gradient_view(gradient), x_view(x), sums(sums) {}

  static int64_t frames(const Problem& p) { return p.rows * p.heads * p.axes[0].out; }

  static int64_t parts(const Problem& p) { return std::min(frames(p), MOST_PARTS); }

  void work(int64_t part) {
    const int64_t all = frames(p), count = parts(p);
    for (int64_t i = part * all / count; i < (part + 1) * all / count; i++)
      add_frame(i / p.axes[0].out, i % p.axes[0].out, sums + part * p.taps() * p.dim);
  }

  void add_frame(int64_t item, int64_t frame, T* filters) const {
    const Axis &t = p.axes[0], &h = p.axes[1], &w = p.axes[2];
    const Tokens gradient = tokens_of(p, gradient_view, item), x = tokens_of(p, x_view, item);
    const Taps of_t = taps_of_output(t, frame);
    for (int64_t i = 0; i < h.out; i++) {
      const Taps of_h = taps_of_output(h, i);
      const X* row_gradient = reinterpret_cast<const X*>(gradient[p.prefix + (frame * h.out + i) * w.out]);
      for (int64_t kt = of_t.first; kt < of_t.end; kt++)
        for (int64_t kh = of_h.first; kh < of_h.end; kh++) {
          const int64_t line = p.prefix + (of_t.position(kt) * h.in + of_h.position(kh)) * w.in;
          T* to = filters + (kt * h.kernel + kh) * w.kernel * p.dim;
          int64_t kw = 0;
          for (; kw + 3 <= w.kernel; kw += 3) add_row<3>(row_gradient, x, line, kw, to + kw * p.dim);
          for (; kw < w.kernel; kw++) add_row<1>(row_gradient, x, line, kw, to + kw * p.dim);
        }
    }
  }

  // Add taps kw, ..., kw + K - 1: first where all of them meet the row at `line` of inputs, then each alone at its
  // ends.
  template <int K>
  void add_row(const X* gradient, const Tokens& x, int64_t line, int64_t kw, T* to) const {
    const auto [low, high] = outputs_of(kw);
    const auto [last_low, last_high] = outputs_of(kw + K - 1);
    const int64_t from = std::max(low, last_low), end = std::max(from, std::min(high, last_high));
    add<K>(gradient, x, line, kw, from, end, to);
    if (K == 1) return;
    for (int k = 0; k < K; k++) {
      const auto [first, past] = outputs_of(kw + k);
      const int64_t before = std::min(past, from), after = std::max(first, end);
      add<1>(gradient, x, line, kw + k, first, before, to + k * p.dim);
      add<1>(gradient, x, line, kw + k, std::max(after, before), past, to + k * p.dim);
    }
  }

  template <int K>
  void add(const X* gradient, const Tokens& x, int64_t line, int64_t kw, int64_t from, int64_t end, T* to) const {
    if (end <= from) return;
    const Axis& w = p.axes[2];
    const X* met = reinterpret_cast<const X*>(x[line + from * w.stride + kw - w.pad()]);
    by_strips<T, 4>(p.dim, SumOverOutputs<X, T, K>{gradient + from * gradient_view.token, met, gradient_view.token,
                                                   w.stride * x_view.token, x_view.token, end - from, to, p.dim});
  }

  // The outputs of a row that tap kw belongs to: from the first of the pair until before the second. These are the o
  // with 0 <= o * stride + kw - pad < the number of inputs.
  std::pair<int64_t, int64_t> outputs_of(int64_t kw) const {
    const Axis& w = p.axes[2];
    const int64_t offset = kw - w.pad();  // of the input that output 0 meets
    const int64_t low = offset < 0 ? (-offset + w.stride - 1) / w.stride : 0;
    const int64_t end = offset < w.in ? std::min(w.out, (w.in - 1 - offset) / w.stride + 1) : 0;
    return {std::min(low, w.out), std::max(end, std::min(low, w.out))};
  }
};

template <class X, class T>
void by_filter(const Problem& p, const View* views, T* filters) {
  const int64_t size = p.taps() * p.dim, parts = ByFilter<X, T>::parts(p);
  const std::unique_ptr<T[]> sums(new T[parts * size]());
  run_workers<ByFilter<X, T>>(p.threads, parts, [](int64_t i) { return i; }, p, views[0], views[1], sums.get());
  for (int64_t i = 0; i < parts; i++)
    for (int64_t c = 0; c < size; c++) filters[c] += sums[i * size + c];
}

template <class X, class T, bool Backward>
void pool(const Problem& p, const View* views, const T* filters) {
  const int64_t frames = p.rows * p.heads * Pool<X, T, Backward>::frames(p);
  run_workers<Pool<X, T, Backward>>(p.threads, frames, [](int64_t i) { return i; }, p, views[0], views[1], filters);
}

enum Kind { FORWARD, BY_INPUT, BY_FILTER };

template <class X, class T>
void run(const Problem& p, const View* views, void* filters, Kind kind) {
  T* weights = static_cast<T*>(filters);
  if (kind == FORWARD) pool<X, T, false>(p, views, weights);
  else if (kind == BY_INPUT) pool<X, T, true>(p, views, weights);
  else by_filter<X, T>(p, views, weights);
}

int run(const Problem& p, const View* views, void* filters, Kind kind) try {
  if (p.type == 2) run<double, double>(p, views, filters, kind);
  else if (p.type == 1) run<uint16_t, float>(p, views, filters, kind);
  else run<float, float>(p, views, filters, kind);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

}  // namespace

// views: the tokens, and where their pooled ones go. Filters are [taps, dim] here and below. Returns 0, or 1 where
// memory ran out.
extern "C" int pool_tokens_forward(const Problem* p, const View* views, void* filters) {
  return run(*p, views, filters, FORWARD);
}

// views: the gradient of pooled tokens, and where that of the tokens goes.
extern "C" int pool_tokens_by_input(const Problem* p, const View* views, void* filters) {
  return run(*p, views, filters, BY_INPUT);
}

// views: the gradient of pooled tokens, and the tokens. Adds to `filters`.
extern "C" int pool_tokens_by_filter(const Problem* p, const View* views, void* filters) {
  return run(*p, views, filters, BY_FILTER);
}
