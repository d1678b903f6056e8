// Attention forward, and what both directions do: copy keys and values, and find those of a query.
#pragma once

#include "pattern.h"

namespace {

constexpr int64_t AHEAD = 6;  // how many rows before their use memory is asked for them

template <class T, int W>
struct Attend {
  const Problem& p;
  const View &q_view, &k_view, &v_view;
  const int64_t width;
  Tokens q{}, k{}, v{};  // of the part at hand
  Block<T> keys, values;
  int64_t first = 0, next = 0, last = 0;  // positions: of the blocks' first row, copied up to here, to be copied
  std::vector<const T*> key_rows, value_rows;  // those of the query at hand
  std::vector<int64_t> slots;                  // the prefix token, or after these the move, that each comes from
  int64_t count = 0;
  Block<T> numbers, rows;

  Attend(const Problem& p, const View& q, const View& k, const View& v)
      : p(p), q_view(q), k_view(k), v_view(v), width(padded_width(p.dim)), keys(width), values(width),
        numbers((most_keys() + 15) / 8 * 8), rows(width) {
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

  int64_t most_keys() const {  // of any query; those of the prefix attend to all
    return p.prefix + (p.prefix ? std::max(p.num_moves, p.num_positions) : p.num_moves);
  }

  void begin(const Part& part) {
    q = tokens_of(p, q_view, part.item);
    k = tokens_of(p, k_view, part.item);
    v = tokens_of(p, v_view, part.item);
    const bool all = p.prefix > 0 && part.from == 0;  // this part has the prefix queries
    first = next = all ? 0 : std::max<int64_t>(0, part.from + part.lowest);
    last = all ? p.num_positions : std::min(p.num_positions, part.to + part.highest);
    keys.resize(p.prefix + last - first);
    values.resize(p.prefix + last - first);
    for (int64_t i = 0; i < p.prefix; i++) {
      load<T, W>(p, k[i], keys[i]);
      load<T, W>(p, v[i], values[i]);
    }
  }

  // Copy keys and values on up to `position`; those a little further on are fetched meanwhile.
  void reach(int64_t position) {
    for (const int64_t end = std::min(position + 1, last); next < end; next++) {
      if (next + AHEAD < last) {
        const int64_t later = key_token(p, next + AHEAD);
        prefetch(p, k[later]);
        prefetch(p, v[later]);
      }
      const int64_t token = key_token(p, next), to = p.prefix + next - first;
      load<T, W>(p, k[token], keys[to]);
      load<T, W>(p, v[token], values[to]);
    }
  }

  void find_keys(const Part& part, int64_t position) {
    count = 0;
    for (int64_t i = 0; i < p.prefix; i++) attend_to(i, i);
    const int32_t* move = moves_of(p, part.head);
    const int64_t here = p.prefix + position - first, num_moves = p.counts[part.head];
    for (int64_t j = 0; j < num_moves; j++, move += 3)
      if (inside(p, position, move, 1)) attend_to(here + move[2], p.prefix + j);
    pad();
  }

  void find_all_keys() {
    count = 0;
    for (int64_t i = 0; i < p.prefix + p.num_positions; i++) attend_to(i, i);
    pad();
  }

  void attend_to(int64_t row, int64_t slot) {
    key_rows[count] = keys[row];
    value_rows[count] = values[row];
    slots[count++] = slot;
  }

  void pad() {  // products are taken four at a time
    for (int64_t j = count; j % 4; j++) {
      key_rows[j] = key_rows[count - 1];
      value_rows[j] = value_rows[count - 1];
    }
  }

  void products(const T* with, const std::vector<const T*>& rows, T* out) const {
    dots<W>(with, rows.data(), count, width, out);
  }

  void load_scaled_query(int64_t token, T* to) const {
    load<T, W>(p, q[token], to);
    for (int64_t i = 0; i < width; i++) to[i] *= T(p.scale);
  }
};

template <class T, int W>
struct Forward : Attend<T, W> {
  using Base = Attend<T, W>;
  using Base::p, Base::count, Base::width;
  const View& out_view;
  T* const logsumexp;  // [rows * heads, prefix + queries]
  Tokens out{};
  T* shifts = nullptr;

  Forward(const Problem& p, const View& q, const View& k, const View& v, const View& out, T* logsumexp)
      : Base(p, q, k, v), out_view(out), logsumexp(logsumexp) {}

  void work(const Part& part) {
    this->begin(part);
    out = tokens_of(p, out_view, part.item);
    shifts = logsumexp + part.item * (p.prefix + p.num_queries);
    if (p.zero_logit) add_all_values();
    for (int64_t position = part.from; position < part.to; position++) {
      const int64_t begin = first_query(p, position), end = first_query(p, position + 1);
      if (begin == end) continue;
      if (end + AHEAD <= p.num_queries) prefetch(p, this->q[query_token(p, end + AHEAD - 1)]);
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
  }

  void add_all_values() {
    T *total = this->rows[2], *one = this->rows[3];
    std::fill(total, total + width, T(0));
    for (int64_t i = 0; i < p.prefix + p.num_positions; i++) {
      load<T, W>(p, this->v[i], one);
      for (int64_t c = 0; c < width; c++) total[c] += one[c];
    }
  }

  // `others` keys besides the listed ones have logit 0.
  void query(int64_t token, int64_t others) {
    T *scaled = this->rows[0], *mixed = this->rows[1], *weights = this->numbers[0];
    this->load_scaled_query(token, scaled);
    this->products(scaled, this->key_rows, weights);
    const T top = std::max(maximum(weights, count), others > 0 ? T(0) : -std::numeric_limits<T>::infinity());
    T total = exponentials(weights, count, top);
    std::fill(mixed, mixed + width, T(0));
    if (others > 0) {
      const T background = std::exp(-top);
      total += background * T(others);
      for (int64_t j = 0; j < count; j++) weights[j] -= background;
      for (int64_t c = 0; c < width; c++) mixed[c] = background * this->rows[2][c];
    }
    add_weighted<T, W>(weights, this->value_rows.data(), count, mixed, width);
    const T share = T(1) / total;
    for (int64_t c = 0; c < width; c++) mixed[c] *= share;
    store<T, W>(p, out[token], mixed);
    shifts[token] = top + std::log(total);
  }
};

}  // namespace
