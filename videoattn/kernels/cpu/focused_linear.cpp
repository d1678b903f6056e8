// Focused linear attention with its depthwise convolution, and its gradients, on a CPU.
//
// A first pass over q and k forms the norms of every token, over all its heads. Then each head of each sequence is
// worked on by itself: its features are formed a few tokens at a time and go straight into the small products, and its
// output is written once. `focused.py` describes the arguments and calls these functions; nothing here depends on
// Python or torch.

#include <memory>

#include "focus_backward.h"

namespace {

struct Arguments {
  const View* views;      // q, k, v, and out or its gradient
  void *queries, *keys;   // norms, [sequences, tokens, 3]
  const View* gradients;  // of q, k and v
  // gradients of the parameters and of what is added to keys, [num_keys - prefix, site_heads * dim], which holds zeros
  void *scale, *shifts, *space, *time, *bias;
};

template <class T, int W>
void forward(const Problem& p, const View* views, const AllNorms<T>& norms) {
  const int64_t runs = p.sequences() * (p.runs(false) + p.runs(true));
  run_workers<FindNorms<T, W>>(p.threads, runs, [&](int64_t i) { return run_of(p, i); }, p, views, norms);
  run_workers<Forward<T, W>>(p.threads, p.rows * p.heads, [](int64_t i) { return i; }, p, views, norms);
}

template <class T, int W>
void backward(const Problem& p, const Arguments& a, const AllNorms<T>& norms) {
  const int64_t items = p.rows * p.heads, runs = p.runs(false) + p.runs(true), taps = num_taps(p);
  const int64_t width = Features<T, W>::padded_width(p);
  const std::unique_ptr<T[]> of_queries(new T[items * p.num_queries]), of_keys(new T[items * p.num_keys]);
  const std::unique_ptr<T[]> of_scale(new T[p.site_heads * runs * width]()), of_taps(new T[items * taps * width]());
  const Gradients<T> to{a.gradients, {of_queries.get(), of_keys.get()}, static_cast<T*>(a.shifts), of_scale.get(),
                        of_taps.get()};
  const auto same = [](int64_t i) { return i; };
  run_workers<Backward<T, W>>(p.threads, items, same, p, a.views, norms, to);
  run_workers<PullBack<T, W>>(p.threads, p.site_heads * runs, same, p, a.views, norms, to);

  // sums over runs and items, each of which had room of its own: in this order for any number of threads
  T* scale = static_cast<T*>(a.scale);
  for (int64_t head = 0; head < p.site_heads; head++)
    for (int64_t c = 0; c < p.dim; c++) {
      T total = 0;
      for (int64_t i = 0; i < runs; i++) total -= of_scale[(head * runs + i) * width + c];
      scale[head * p.dim + c] = total;
    }
  if (!p.bias) return;
  for (int64_t i = 1; i < items; i++)
    for (int64_t c = 0; c < taps * width; c++) of_taps[c] += of_taps[i * taps * width + c];
  const int64_t in_space = p.maps.taps_h * p.maps.taps_w;
  transpose(of_taps.get(), in_space, width, p.dim, static_cast<T*>(a.space));
  transpose(of_taps.get() + in_space * width, p.maps.taps_t, width, p.dim, static_cast<T*>(a.time));
  transpose(of_taps.get() + (taps - 1) * width, 1, width, p.dim, static_cast<T*>(a.bias));
}

template <class T, int W>
void run(const Problem& p, const Arguments& a, bool is_backward) {
  const AllNorms<T> norms{{static_cast<Norms<T>*>(a.queries), static_cast<Norms<T>*>(a.keys)}};
  if (is_backward) backward<T, W>(p, a, norms);
  else forward<T, W>(p, a.views, norms);
}

int run(const Problem& p, const Arguments& a, bool is_backward) try {
  if (p.type == 2) run<double, 0>(p, a, is_backward);
  else if (p.dim == 64) run<float, 8>(p, a, is_backward);
  else run<float, 0>(p, a, is_backward);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

}  // namespace

// Write the norms of all tokens, and out. Returns 0, or 1 where memory ran out.
extern "C" int focused_linear_forward(const Problem* p, const Arguments* a) { return run(*p, *a, false); }

// From the norms, and the gradient of out in its place, write those of q, k, v and the parameters.
extern "C" int focused_linear_backward(const Problem* p, const Arguments* a) { return run(*p, *a, true); }
