// Softmax attention over constant offsets on a raster of key positions, and its gradients, on a CPU.
//
// In long sequences, or of another type, keys and values of one head are copied into a block of consecutive positions
// just ahead of the queries, since rows of a packed projection lie kilobytes apart; each query reads its few rows. Its
// keys follow from its position and the head's offsets alone; no table of pairs exists. `offsets.py` describes the
// arguments and calls these functions; nothing here depends on Python or torch.

#include <memory>

#include "attend_backward.h"

namespace {

// ---- one function per width that pays: W vectors of 8 floats for heads of up to 8 W numbers, padded with zeros. Heads
// of another width, and float64, take the form whose loops have no constant length.

template <class T, int W>
void forward(const Problem& p, const View* views, void* logsumexp) {
  run_parts<Forward<T, W>>(p, views[0], views[1], views[2], views[3], static_cast<T*>(logsumexp));
}

template <class T, int W>
void backward(const Problem& p, const View* views, void* logsumexp) {
  const int64_t items = p.rows * p.heads;
  const int64_t slots = items * p.num_queries * (p.prefix + p.num_offsets * p.block);
  // not initialised: the second pass reads the slots that the first one has written
  const std::unique_ptr<T[]> both(new T[2 * slots]);
  const std::unique_ptr<T[]> from_prefix(new T[2 * items * p.prefix * (p.prefix + p.num_positions)]);
  const Pairs<T> pairs{both.get(), both.get() + slots, from_prefix.get()};
  const View &q = views[0], &k = views[1], &v = views[2], &out = views[3], &grad = views[4];
  const T* shifts = static_cast<const T*>(logsumexp);
  run_parts<ByQuery<T, W>>(p, q, k, v, out, grad, views[5], shifts, pairs);
  run_parts<ByKey<T, W>>(p, q, grad, views[6], views[7], shifts, pairs);
}

template <int W>
void run_floats(const Problem& p, const View* views, void* logsumexp, bool is_backward) {
  if (is_backward) backward<float, W>(p, views, logsumexp);
  else forward<float, W>(p, views, logsumexp);
}

int run(const Problem& p, const View* views, void* logsumexp, bool is_backward) try {
  if (p.type == 2) {
    if (is_backward) backward<double, 0>(p, views, logsumexp);
    else forward<double, 0>(p, views, logsumexp);
  } else if (p.dim <= 16) {
    run_floats<2>(p, views, logsumexp, is_backward);
  } else if (p.dim <= 32) {
    run_floats<4>(p, views, logsumexp, is_backward);
  } else if (p.dim > 48 && p.dim <= 64) {
    run_floats<8>(p, views, logsumexp, is_backward);
  } else if (p.dim > 80 && p.dim <= 96) {
    run_floats<12>(p, views, logsumexp, is_backward);
  } else if (p.dim > 112 && p.dim <= 128) {
    run_floats<16>(p, views, logsumexp, is_backward);
  } else {
    run_floats<0>(p, views, logsumexp, is_backward);
  }
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

}  // namespace

// views: q, k, v, out. Returns 0, or 1 where memory ran out.
extern "C" int offset_attention_forward(const Problem* p, const View* views, void* logsumexp) {
  return run(*p, views, logsumexp, false);
}

// views: q, k, v, out, gradient of out, gradients of q, k and v.
extern "C" int offset_attention_backward(const Problem* p, const View* views, void* logsumexp) {
  return run(*p, views, logsumexp, true);
}
