// Rows of tensors in memory, and workers that share a machine's threads.
#pragma once

#include <atomic>

#include "rows.h"

namespace {

struct View {  // [rows, heads, tokens, dim], the last dimension contiguous; strides in elements
  char* data;
  int64_t row, head, token;
};

// Below, a problem has `heads` of each row, `dim` numbers of each token, and their `type`: 0 float, 1 bfloat16,
// 2 double.

template <class P>
inline int64_t bytes_of(const P& p) {
  return p.type == 0 ? 4 : p.type == 1 ? 2 : 8;
}

// The tokens of one item, a head of a row: items are numbered row by row.
template <class P>
inline Tokens tokens_of(const P& p, const View& view, int64_t item) {
  const int64_t start = item / p.heads * view.row + item % p.heads * view.head;
  return {view.data + bytes_of(p) * start, bytes_of(p) * view.token};
}

// Rows of a head lie a whole token apart, kilobytes in a packed projection, which no processor foresees: ask for each
// of the row's cache lines of 64 bytes.
template <class P>
inline void prefetch(const P& p, const char* row) {
  for (int64_t i = 0; i < p.dim * bytes_of(p); i += 64) __builtin_prefetch(row + i);
}

template <class P>
inline void prefetch_to_write(const P& p, char* row) {
  for (int64_t i = 0; i < p.dim * bytes_of(p); i += 64) __builtin_prefetch(row + i, 1);
}

// Copy a token's `dim` numbers to a row of T; what lies behind them is left as it is. The size of the copy is a
// constant where the width is known and full, which compilers turn into a few vector moves.
template <class T, int W, class P>
INLINE void load(const P& p, const char* from, T* to) {
  if (p.type == 1) {
    const uint16_t* row = reinterpret_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < p.dim; i++) to[i] = from_bfloat16(row[i]);
  } else if (W && p.dim == W * Lanes<T>::count) {
    std::memcpy(to, from, W * 32);
  } else {
    std::memcpy(to, from, p.dim * sizeof(T));
  }
}

// The inverse: bfloat16 is rounded here, once for each number of a result.
template <class T, int W, class P>
INLINE void store(const P& p, char* to, const T* from) {
  if (p.type == 1) {
    uint16_t* row = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < p.dim; i++) row[i] = to_bfloat16(float(from[i]));
  } else if (W && p.dim == W * Lanes<T>::count) {
    std::memcpy(to, from, W * 32);
  } else {
    std::memcpy(to, from, p.dim * sizeof(T));
  }
}

// Run `work(part(i))` for every i below `total`, by a worker per thread that holds its own memory and is made from
// `args`. Threads take the next part when they are done with one, since parts differ in their work; no two parts write
// to the same sum, so that it doesn't matter which thread takes which. Throws where memory runs out.
template <class Worker, class PartOf, class... Args>
void run_workers(int most, int64_t total, const PartOf& part, Args&&... args) {
  const int threads = int(std::max<int64_t>(1, std::min<int64_t>(most, total)));
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  (void)threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  try {  // no exception may leave the region
    Worker worker(args...);
    for (int64_t i = next++; i < total; i = next++) worker.work(part(i));
  } catch (const std::bad_alloc&) {
    failed = true;
  }
  if (failed) throw std::bad_alloc();
}

}  // namespace
