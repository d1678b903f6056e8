// The problem: the arguments as ctypes lays them out, and the keys that each query attends to.
//
// Keys stand at positions 0, 1, ... of a raster. In head h, the query at position i attends to the key at j = i + delta
// for each of the head's offsets (axis, step, delta) whose step from i stays on the raster along that axis, and to the
// tokens of the prefix. With blocks, i, j and delta count blocks, and all keys of a block are attended to.
#pragma once

#include <vector>

#include "tokens.h"

namespace {

struct Problem {
  int64_t rows, heads;            // of q, k and v; a head's pattern is heads % pattern_heads
  int64_t pattern_heads;
  int64_t num_positions;          // keys without the prefix
  int64_t num_queries;            // queries without the prefix
  int64_t prefix, dim;
  int64_t num_offsets;            // columns of `offsets`
  int64_t num_axes;
  int64_t block;                  // consecutive positions that attend, and are attended to, together; 1 for several
                                  // axes
  int64_t lengths[3], strides[3];  // of the raster's axes
  const int32_t* offsets;         // [pattern_heads, num_offsets, 3]: axis, step along it, and the change of position
                                  // (of block) that this makes, the delta; a head's are in ascending order of deltas
  const int32_t* counts;          // [pattern_heads]: how many of them are in use
  const int32_t* starts;          // [num_positions + 1]: where each position's queries begin in `queries`, or null
  const int32_t* queries;         // [num_queries], or null where query i stands at position i
  const int32_t* keys;            // [num_positions]: the patch token at each position, or null where it is the same
  double scale;
  int32_t zero_logit;             // other keys keep logit 0 instead of being excluded
  int32_t type;                   // of the tensors: 0 float, 1 bfloat16, 2 double
  int32_t threads;
};

// ---- the pattern

// Heads are taken in parts where there are more threads than heads. A part has the queries, or in the second pass of
// backward the keys, at its positions; the first part of a head has those of the prefix too.
struct Part {  // some consecutive positions of one head of one row
  int64_t item, head, from, to;
  int64_t lowest, highest;  // the least and the greatest change of position that the head's offsets make
};

inline int64_t first_query(const Problem& p, int64_t position) { return p.starts ? p.starts[position] : position; }
inline int64_t query_token(const Problem& p, int64_t i) { return p.prefix + (p.queries ? p.queries[i] : i); }
inline int64_t key_token(const Problem& p, int64_t position) {
  return p.prefix + (p.keys ? p.keys[position] : position);
}

inline const int32_t* offsets_of(const Problem& p, int64_t head) { return p.offsets + head * p.num_offsets * 3; }

// True where position + sign * offset stays on the raster; other coordinates don't change. For single positions. A
// negative number becomes a huge unsigned one, so that one comparison checks both ends.
inline bool inside(const Problem& p, int64_t position, const int32_t* offset, int sign) {
  if (p.num_axes == 1) return uint64_t(position + sign * offset[2]) < uint64_t(p.num_positions);
  const int64_t axis = offset[0], coordinate = position / p.strides[axis] % p.lengths[axis];
  return uint64_t(coordinate + sign * offset[1]) < uint64_t(p.lengths[axis]);
}

struct Range {
  int64_t from, to;
};

// The positions that `offset` reaches from there (sign 1), or from which it reaches there (-1).
inline Range reached(const Problem& p, int64_t position, const int32_t* offset, int sign) {
  if (p.block == 1) {
    const int64_t there = position + sign * offset[2];
    return inside(p, position, offset, sign) ? Range{there, there + 1} : Range{0, 0};
  }
  const int64_t from = (position / p.block + sign * offset[2]) * p.block;
  return from >= 0 && from < p.num_positions ? Range{from, std::min(from + p.block, p.num_positions)} : Range{0, 0};
}

// A head's offsets that lead to a position on a raster of one axis: from `first` to before `last`. As offsets are
// sorted, they are consecutive, and from one position to the next few come or go at either end, so that a search begins
// where the last one ended. (The delta of offset n is number 3 * n + 2.)
struct Staying {
  int64_t first = 0, last = 0;
  // Find those with deltas from `lowest` to `highest`; quick where these are near those of the search before.
  INLINE void find(const int32_t* offsets, int64_t num_offsets, int64_t lowest, int64_t highest) {
    while (first > 0 && offsets[3 * first - 1] >= lowest) first--;
    while (first < num_offsets && offsets[3 * first + 2] < lowest) first++;
    while (last > 0 && offsets[3 * last - 1] > highest) last--;
    while (last < num_offsets && offsets[3 * last + 2] <= highest) last++;
  }
};

// True where a query attends to every key, so that none is left in the background.
inline bool sees_all(const Problem& p, int64_t head, int64_t position) {
  if (p.counts[head] * p.block < p.num_positions) return false;
  const int32_t* offsets = offsets_of(p, head);
  int64_t count = 0;
  for (int64_t j = 0; j < p.counts[head]; j++) {
    const Range keys = reached(p, position, offsets + 3 * j, 1);
    count += keys.to - keys.from;
  }
  return count == p.num_positions;
}

// Parts of each head: as many as give every thread one, but of no less than 64 positions.
inline int64_t num_parts(const Problem& p) {
  const int64_t items = std::max<int64_t>(p.rows * p.heads, 1), wanted = (p.threads + items - 1) / items;
  return std::max<int64_t>(1, std::min(wanted, p.num_positions / 64));
}

inline Part part_of(const Problem& p, int64_t index, int64_t parts) {
  Part part{index / parts, index / parts % p.heads % p.pattern_heads, 0, 0, 0, 0};
  const int64_t i = index % parts;
  part.from = p.num_positions * i / parts;
  part.to = p.num_positions * (i + 1) / parts;
  const int32_t* offsets = offsets_of(p, part.head);
  for (int64_t j = 0; j < p.counts[part.head]; j++) {
    const int64_t delta = offsets[3 * j + 2] * p.block;
    // between two blocks `delta` positions apart, single positions differ by up to block - 1 more or less
    part.lowest = std::min(part.lowest, delta - (p.block - 1));
    part.highest = std::max(part.highest, delta + (p.block - 1));
  }
  return part;
}

// Run `work(part)` for every part, by a worker per thread that holds its own memory. Throws where memory runs out.
template <class Worker, class... Args>
void run_parts(const Problem& p, Args&&... args) {
  const int64_t parts = num_parts(p), total = p.rows * p.heads * parts;
  run_workers<Worker>(p.threads, total, [&](int64_t i) { return part_of(p, i, parts); }, p, args...);
}

}  // namespace
