// Products of small matrices that stay in a processor's caches.
#pragma once

#include "rows.h"

namespace {

// R rows by V vectors of `multiply`, summed in registers: for each k, V vectors of b are loaded once for all R rows,
// and each number of a once for all V vectors. Loops over R and V are unrolled, so that `sums` are registers.
template <class T, int R, int V>
INLINE void multiply_tile(const T* a, int64_t row, int64_t step, const T* b, int64_t n, T* c, int64_t width,
                          bool adds) {
  Vec<T> sums[R][V] = {};
  for (int64_t k = 0; k < n; k++) {
    Vec<T> y[V];
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) y[j] = reinterpret_cast<const Vec<T>*>(b + k * width)[j];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const Vec<T> x = splat<T>(a[i * row + k * step]);
#pragma GCC unroll 8
      for (int j = 0; j < V; j++) sums[i][j] += x * y[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) {
    Vec<T>* to = reinterpret_cast<Vec<T>*>(c + i * width);
#pragma GCC unroll 8
    for (int j = 0; j < V; j++) to[j] = adds ? to[j] + sums[i][j] : sums[i][j];
  }
}

// V vectors of all rows of c, by tiles of 6 rows: with V = 2 these are 12 sums, 2 vectors of b and a number of a, 15 of
// the 16 registers of AVX2.
template <class T, int V>
INLINE void multiply_columns(const T* a, int64_t row, int64_t step, const T* b, int64_t n, T* c, int64_t rows,
                             int64_t width, bool adds) {
  int64_t i = 0;
  for (; i + 6 <= rows; i += 6) multiply_tile<T, 6, V>(a + i * row, row, step, b, n, c + i * width, width, adds);
  for (; i + 2 <= rows; i += 2) multiply_tile<T, 2, V>(a + i * row, row, step, b, n, c + i * width, width, adds);
  for (; i < rows; i++) multiply_tile<T, 1, V>(a + i * row, row, step, b, n, c + i * width, width, adds);
}

// c[i] = (+)= the sum over k below n of a[i * row + k * step] * b[k], for i below `rows`; rows of b and c hold `width`
// numbers, whole vectors. With row = width and step = 1 that is a b, with row = 1 and step = width the product of a's
// transpose with b. Each sum runs over k in ascending order.
template <class T>
inline void multiply(const T* a, int64_t row, int64_t step, const T* b, int64_t n, T* c, int64_t rows, int64_t width,
                     bool adds) {
  constexpr int count = Lanes<T>::count;
  int64_t j = 0;
  for (; j + 2 * count <= width; j += 2 * count)
    multiply_columns<T, 2>(a, row, step, b + j, n, c + j, rows, width, adds);
  if (j < width) multiply_columns<T, 1>(a, row, step, b + j, n, c + j, rows, width, adds);
}

// to[j * rows + i] = from[i * width + j], for i below `rows` and j below `columns`.
template <class T>
inline void transpose(const T* from, int64_t rows, int64_t width, int64_t columns, T* to) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) to[j * rows + i] = from[i * width + j];
}

// to += the sum of n rows that lie `width` apart, whole vectors.
template <class T>
inline void add_rows(const T* rows, int64_t n, int64_t width, T* to) {
  for (int64_t j = 0; j < width; j += Lanes<T>::count) {
    Vec<T> total = {};
    for (int64_t i = 0; i < n; i++) total += *reinterpret_cast<const Vec<T>*>(rows + i * width + j);
    *reinterpret_cast<Vec<T>*>(to + j) += total;
  }
}

}  // namespace
