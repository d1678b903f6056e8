// Attention forward, and what both directions do: copy keys and values, and find those of a query.
//
// With s_ij = q_i.k_j / sqrt(d) and S_i the keys that query i attends to, the output is
//
//   o_i = sum over S_i of w_ij v_j,   w_ij = exp(s_ij - L_i),   L_i = log of the sum over S_i of exp(s_ij)
//
// and with logits 0 instead of excluded keys, n being the number of all keys and |S_i| that of the attended ones,
//
//   o_i = sum over all keys of b_i v_j + sum over S_i of (w_ij - b_i) v_j,   b_i = exp(-L_i),
//   L_i = log (n - |S_i| + sum over S_i of exp(s_ij)).
//
// The sum of all v_j is the same for all queries and formed once for a part, so that this too costs little more than the
// attended pairs. L_i, `logsumexp`, is what backward needs to form weights anew.
#pragma once

#include "elementwise.h"
#include "pattern.h"

namespace {

constexpr int64_t AHEAD = 3;   // how many rows before their use memory is asked for them
constexpr int64_t FEW = 1024;  // positions up to which rows are read where they lie, if they can be

// Walks along the positions of a part in ascending order. Keys and values around the position at hand are read where
// they lie if the computation can read them so and they are few; else each is copied once, converted and padded to
// whole vectors, into consecutive rows. A row of a packed projection is a page of its own, and all offsets of all
// queries would fetch it from there again; copies are made in the order of positions, which is also that of the
// queries.
template <class T, int W>
struct Attend {
  const Problem& p;
  const View &q_view, &k_view, &v_view;
  const int64_t width;
  bool copies = true;
  const bool in_place;  // whether rows of the tensors have the computing type and whole vectors
  Tokens q{}, k{}, v{};  // of the part at hand
  Block<T> keys, values;
  Tokens key_rows_at{}, value_rows_at{};  // the blocks', or the tensors' own
  int64_t first = 0, next = 0, last = 0;  // positions: of the first of these rows, copied up to here, to be copied
  std::vector<const T*> key_rows, value_rows;  // those of the query at hand
  std::vector<int64_t> slots;  // the prefix token, or after these the offset, that each comes from; where offsets are
  Staying staying;             // `single`, these in order
  const bool single;
  std::vector<int64_t> key_deltas, value_deltas;  // of the head's offsets, as bytes between rows
  int64_t count = 0;
  Block<T> numbers, rows;

  Attend(const Problem& p, const View& q, const View& k, const View& v)
      : p(p), q_view(q), k_view(k), v_view(v), width(padded_width(p.dim)),
        in_place(p.type != 1 && p.dim == width), keys(width), values(width),
        single(p.num_axes == 1 && p.block == 1), numbers((most_keys() + 15) / 8 * 8), rows(width) {
    key_rows.resize(most_keys() + 4);
    value_rows.resize(most_keys() + 4);
    slots.resize(most_keys() + 4);
    numbers.resize(2);
    rows.resize(4);
  }

  static int64_t padded_width(int64_t dim) {
    constexpr int lanes = Lanes<T>::count;
    return W ? W * lanes : (dim + lanes - 1) / lanes * lanes;
  }

  // The most that any query has; those of the prefix attend to all.
  int64_t most_keys() const {
    const int64_t patches = p.num_offsets * p.block;
    return p.prefix + (p.prefix ? std::max(patches, p.num_positions) : patches);
  }

  void begin(const Part& part) {
    q = tokens_of(p, q_view, part.item);
    k = tokens_of(p, k_view, part.item);
    v = tokens_of(p, v_view, part.item);
    const bool all = p.prefix > 0 && part.from == 0;  // this part has the prefix queries
    // the part's queries see the positions from the lowest offset before its first to the highest one after its last
    next = all ? 0 : std::max<int64_t>(0, part.from + part.lowest);
    last = all ? p.num_positions : std::min(p.num_positions, part.to + part.highest);
    copies = !in_place || p.keys || p.block > 1 || last - next > FEW;
    first = copies ? next : 0;
    if (copies) {
      keys.resize(p.prefix + last - first);
      values.resize(p.prefix + last - first);
      for (int64_t i = 0; i < p.prefix; i++) {
        load<T, W>(p, k[i], keys[i]);
        load<T, W>(p, v[i], values[i]);
      }
    }
    key_rows_at = copies ? keys.rows() : k, value_rows_at = copies ? values.rows() : v;
    // on one axis a key's row is a constant number of bytes from the query's position, whatever that is
    staying = {};
    key_deltas.clear(), value_deltas.clear();
    for (int64_t j = 0; j < p.counts[part.head]; j++) {
      const int64_t delta = offsets_of(p, part.head)[3 * j + 2];
      key_deltas.push_back(delta * key_rows_at.step);
      value_deltas.push_back(delta * value_rows_at.step);
    }
  }

  // Copy keys and values on up to `position` if need be; those a little further on are fetched meanwhile.
  void reach(int64_t position) {
    for (const int64_t end = std::min(position + 1, last); next < end; next++) {
      if (next + AHEAD < last) {
        const int64_t later = key_token(p, next + AHEAD);
        prefetch(p, k[later]);
        prefetch(p, v[later]);
      }
      if (!copies) continue;
      const int64_t token = key_token(p, next), to = p.prefix + next - first;
      load<T, W>(p, k[token], keys[to]);
      load<T, W>(p, v[token], values[to]);
    }
  }

  // List the keys and values of the queries at `position`, the prefix first, then by offset. `slots` says for each
  // where backward keeps its weight; a raster of one axis needs none, as its offsets in use are consecutive.
  void find_keys(const Part& part, int64_t position) {
    count = 0;
    for (int64_t i = 0; i < p.prefix; i++) attend_to(i, i);
    const int32_t* offset = offsets_of(p, part.head);
    const int64_t here = p.prefix + position - first, num_offsets = p.counts[part.head];
    if (single) {
      staying.find(offset, num_offsets, -position, p.num_positions - 1 - position);
      for (int64_t j = staying.first; j < staying.last; j++, count++) {
        key_rows[count] = reinterpret_cast<const T*>(key_rows_at[here] + key_deltas[j]);
        value_rows[count] = reinterpret_cast<const T*>(value_rows_at[here] + value_deltas[j]);
      }
    } else if (p.block > 1) {
      for (int64_t j = 0; j < num_offsets; j++, offset += 3) {
        const Range keys = reached(p, position, offset, 1);
        for (int64_t i = keys.from; i < keys.to; i++)
          attend_to(p.prefix + i - first, p.prefix + j * p.block + i - keys.from);
      }
    } else {
      for (int64_t j = 0; j < num_offsets; j++, offset += 3)
        if (inside(p, position, offset, 1)) attend_to(here + offset[2], p.prefix + j);
    }
    pad();
  }

  void find_all_keys() {
    count = 0;
    for (int64_t i = 0; i < p.prefix + p.num_positions; i++) attend_to(i, i);
    pad();
  }

  void attend_to(int64_t row, int64_t slot) {
    key_rows[count] = reinterpret_cast<const T*>(key_rows_at[row]);
    value_rows[count] = reinterpret_cast<const T*>(value_rows_at[row]);
    slots[count++] = slot;
  }

  // Products are taken four at a time: repeat the last row, whose further products nobody reads.
  void pad() {
    for (int64_t j = count; j % 4; j++) {
      key_rows[j] = key_rows[count - 1];
      value_rows[j] = value_rows[count - 1];
    }
  }

  void products(const T* with, const std::vector<const T*>& rows, T* out) const {
    dots<W>(with, rows.data(), count, width, out);
  }

  // The row as it lies in memory, or a copy in `spare` where it has another type or width.
  INLINE const T* read(const char* row, T* spare) const {
    if (in_place) return reinterpret_cast<const T*>(row);
    load<T, W>(p, row, spare);
    return spare;
  }

  // The row to write results to, in memory or `spare`; `put` it there afterwards.
  INLINE T* place(char* row, T* spare) const { return in_place ? reinterpret_cast<T*>(row) : spare; }
  INLINE void put(char* row, const T* spare) const {
    if (!in_place) store<T, W>(p, row, spare);
  }

  // Logits of the query at hand; returns the largest.
  INLINE T logits(const T* query, T* out) const {
    products(query, key_rows, out);
    return scale_logits(out, count, T(p.scale));
  }
};

template <class T, int W>
struct Forward : Attend<T, W> {
  using Base = Attend<T, W>;
  using Base::p, Base::count, Base::width;
  const View& out_view;
  T* const logsumexp;     // [rows * heads, prefix + queries]
  Tokens out{};
  T* shifts = nullptr;    // the item's row of it, which holds maxima until all logarithms are added
  std::vector<T> totals;  // of the part's queries, for whole vectors
  int64_t done = 0;

  Forward(const Problem& p, const View& q, const View& k, const View& v, const View& out, T* logsumexp)
      : Base(p, q, k, v), out_view(out), logsumexp(logsumexp) {}

  void work(const Part& part) {
    this->begin(part);
    out = tokens_of(p, out_view, part.item);
    shifts = logsumexp + part.item * (p.prefix + p.num_queries);
    if (p.zero_logit) add_all_values();
    const int64_t first_one = first_query(p, part.from), last_one = first_query(p, part.to);
    totals.resize((last_one - first_one + p.prefix + 7) / 8 * 8);
    done = 0;
    for (int64_t position = part.from; position < part.to; position++) {
      // on unequal grids a position has any number of queries, all with the same keys
      const int64_t begin = first_query(p, position), end = first_query(p, position + 1);
      if (begin == end) continue;
      if (end + AHEAD <= p.num_queries) {
        const int64_t later = query_token(p, end + AHEAD - 1);
        prefetch(p, this->q[later]);
        prefetch_to_write(p, out[later]);
      }
      this->reach(position + part.highest);
      this->find_keys(part, position);
      const int64_t others = p.zero_logit ? p.prefix + p.num_positions - count : 0;
      for (int64_t i = begin; i < end; i++) query(query_token(p, i), others);
    }
    if (part.from == 0 && p.prefix > 0) {
      this->reach(p.num_positions);
      this->find_all_keys();
      for (int64_t i = 0; i < p.prefix; i++) query(i, 0);
    }
    // L = m + log Z, the logarithms of all queries of the part at once, by vectors; the prefix's stand behind the
    // others
    logarithms(totals.data(), done);
    for (int64_t i = 0; i < done; i++) {
      const int64_t query = first_one + i;
      shifts[query < last_one ? query_token(p, query) : query - last_one] += totals[i];
    }
  }

  void add_all_values() {
    T *total = this->rows[2], *one = this->rows[3];
    std::fill(total, total + width, T(0));
    for (int64_t i = 0; i < p.prefix + p.num_positions; i++) {
      load<T, W>(p, this->v[i], one);
      for (int64_t c = 0; c < width; c++) total[c] += one[c];
    }
  }

  // One query. `others` keys besides the listed ones have logit 0. With m the largest logit, which keeps exponentials
  // from overflowing, Z = sum of exp(s_ij - m) + others exp(-m), and the listed weights are (exp(s_ij - m) - exp(-m)) /
  // Z, added to exp(-m) / Z times the sum of all values.
  void query(int64_t token, int64_t others) {
    T *mixed = this->place(out[token], this->rows[1]), *weights = this->numbers[0];
    const T most = this->logits(this->read(this->q[token], this->rows[0]), weights);
    const T top = others > 0 ? std::max(most, T(0)) : most;
    T total = exponentials(weights, count, top);
    const T background = others > 0 ? std::exp(-top) : T(0);
    total += background * T(others);
    const T share = T(1) / total;
    shift_and_scale(weights, count, background, share);
    T* start = nullptr;
    if (others > 0) {
      start = this->rows[3];
      for (int64_t c = 0; c < width; c++) start[c] = background * share * this->rows[2][c];
    }
    weighted_sum<T, W>(weights, this->value_rows.data(), count, width, start, mixed);
    this->put(out[token], mixed);
    shifts[token] = top;
    totals[done++] = total;
  }
};

}  // namespace
