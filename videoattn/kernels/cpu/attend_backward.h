// Gradients: weights and their gradients by query, then the gradients of keys and values by key. Each is a sum that
// one thread forms in a fixed order, so that results don't depend on their number.
//
// With g_i the gradient by the output o_i, and weights w_ij as in attend.h,
//
//   D_i = g_i.o_i,   ds_ij = w_ij (g_i.v_j - D_i)
//   dq_i = sum over j of ds_ij k_j / sqrt(d),   dk_j = sum over i of ds_ij q_i / sqrt(d),
//   dv_j = sum over i of w_ij g_i
//
// where pairs outside the pattern have no ds_ij, as their logit is 0 whatever q and k are. If they keep weight b_i,
// dv_j is the sum over all queries of b_i g_i, the same for all j, and that over the queries that see j of (w_ij - b_i)
// g_i.
#pragma once

#include "attend.h"

namespace {

template <class T>
struct Pairs {  // what the first pass leaves for the second, so that no logit is formed a third time
  T* weights;      // [rows * heads, queries, prefix + num_offsets * block], less the background's weight
  T* gradients;    // ds, times the scale, laid out the same; slots without a key are neither written nor read
  T* from_prefix;  // [rows * heads, 2, prefix, prefix + num_positions]: both, of the queries of the prefix
};

// The first pass: dq, and for each pair w - b and ds.
template <class T, int W>
struct ByQuery : Attend<T, W> {
  using Base = Attend<T, W>;
  using Base::p, Base::count, Base::width;
  const View &out_view, &grad_view, &grad_q_view;
  const T* const logsumexp;
  const Pairs<T>& pairs;
  Tokens out{}, grad{}, grad_q{};
  const T* shifts = nullptr;

  ByQuery(const Problem& p, const View& q, const View& k, const View& v, const View& out, const View& grad,
          const View& grad_q, const T* logsumexp, const Pairs<T>& pairs)
      : Base(p, q, k, v), out_view(out), grad_view(grad), grad_q_view(grad_q), logsumexp(logsumexp), pairs(pairs) {}

  void work(const Part& part) {
    this->begin(part);
    out = tokens_of(p, out_view, part.item);
    grad = tokens_of(p, grad_view, part.item);
    grad_q = tokens_of(p, grad_q_view, part.item);
    shifts = logsumexp + part.item * (p.prefix + p.num_queries);
    const int64_t all_keys = p.prefix + p.num_positions, num_slots = p.prefix + p.num_offsets * p.block;
    for (int64_t position = part.from; position < part.to; position++) {
      const int64_t begin = first_query(p, position), end = first_query(p, position + 1);
      if (begin == end) continue;
      if (end + AHEAD <= p.num_queries) {
        const int64_t later = query_token(p, end + AHEAD - 1);
        for (const Tokens* tokens : {&this->q, &out, &grad}) prefetch(p, (*tokens)[later]);
        prefetch_to_write(p, grad_q[later]);
      }
      this->reach(position + part.highest);
      this->find_keys(part, position);
      for (int64_t i = begin; i < end; i++) {
        const int64_t at = (part.item * p.num_queries + i) * num_slots;
        const bool has_others = p.zero_logit && count < all_keys;
        query(query_token(p, i), pairs.weights + at, pairs.gradients + at, has_others, this->single);
      }
    }
    if (part.from == 0 && p.prefix > 0) {
      this->reach(p.num_positions);
      this->find_all_keys();
      for (int64_t i = 0; i < p.prefix; i++) {
        T* weights = pairs.from_prefix + (2 * part.item * p.prefix + i) * all_keys;
        query(i, weights, weights + p.prefix * all_keys, false, false);
      }
    }
  }

  // `mean` is D: the gradient times the mixed values, which is the mean of its products with values by their weights.
  void query(int64_t token, T* weights_out, T* gradients_out, bool has_others, bool in_order) {
    T *weights = this->numbers[0], *gradients = this->numbers[1];
    const T* upstream = this->read(grad[token], this->rows[1]);
    const T mean = dot<T, W>(upstream, this->read(out[token], this->rows[2]), width);
    this->logits(this->read(this->q[token], this->rows[0]), weights);
    this->products(upstream, this->value_rows, gradients);
    exponentials(weights, count, shifts[token]);
    for (int64_t j = 0; j < count; j++) gradients[j] = weights[j] * (gradients[j] - mean) * T(p.scale);
    const T background = has_others ? std::exp(-shifts[token]) : T(0);
    for (int64_t j = 0; j < count; j++) {
      const int64_t slot = !in_order ? this->slots[j] : j < p.prefix ? j : j + this->staying.first;
      weights_out[slot] = weights[j] - background;
      gradients_out[slot] = gradients[j];
    }
    T* result = this->place(grad_q[token], this->rows[2]);
    weighted_sum<T, W>(gradients, this->key_rows.data(), count, width, nullptr, result);
    this->put(grad_q[token], result);
  }
};

// The second pass: dk and dv of each key, from the rows of q and g that see it. The inverse of an offset leads from a
// key to the positions of these queries, so that there is no list of them either. A pair's numbers stand at the query,
// in the slot of the offset (with blocks, of the key within the block too).
template <class T, int W>
struct ByKey {
  const Problem& p;
  const View &q_view, &grad_view, &grad_k_view, &grad_v_view;
  const T* const logsumexp;
  const Pairs<T>& pairs;
  const int64_t width;
  Tokens q{}, grad{}, grad_k{}, grad_v{};
  const bool in_place;
  bool copies = true;
  Block<T> queries, upstream;             // rows of q and of the gradient by the output, in the order of positions
  Tokens query_rows_at{}, upstream_rows_at{};
  int64_t first = 0, next = 0, last = 0;  // queries: to be seen first, copied up to here, to be copied
  int64_t origin = 0;                     // the first of the rows at hand
  Block<T> rows;
  std::vector<const T*> query_rows, upstream_rows;  // those that see the key at hand
  std::vector<T> weights, gradients;
  int64_t count = 0;

  ByKey(const Problem& p, const View& q, const View& grad, const View& grad_k, const View& grad_v, const T* logsumexp,
        const Pairs<T>& pairs)
      : p(p), q_view(q), grad_view(grad), grad_k_view(grad_k), grad_v_view(grad_v), logsumexp(logsumexp), pairs(pairs),
        width(Attend<T, W>::padded_width(p.dim)), in_place(p.type != 1 && p.dim == width), queries(width),
        upstream(width), rows(width) {
    rows.resize(3);
    const int64_t most = p.prefix + p.num_queries;  // that may see one key
    query_rows.resize(most), upstream_rows.resize(most), weights.resize(most), gradients.resize(most);
  }

  void work(const Part& part) {
    q = tokens_of(p, q_view, part.item);
    grad = tokens_of(p, grad_view, part.item);
    grad_k = tokens_of(p, grad_k_view, part.item);
    grad_v = tokens_of(p, grad_v_view, part.item);
    const bool all = (p.prefix > 0 && part.from == 0) || p.zero_logit;  // the prefix's keys are seen by all queries
    first = next = first_query(p, all ? 0 : std::max<int64_t>(0, part.from - part.highest));
    last = first_query(p, all ? p.num_positions : std::min(p.num_positions, part.to - part.lowest));
    copies = !in_place || p.queries || p.block > 1 || last - next > FEW;
    query_rows_at = q, upstream_rows_at = grad, origin = 0;
    if (copies) {
      queries.resize(p.prefix + last - first);
      upstream.resize(p.prefix + last - first);
      query_rows_at = queries.rows(), upstream_rows_at = upstream.rows(), origin = first;
      for (int64_t i = 0; i < p.prefix; i++) {
        load<T, W>(p, q[i], queries[i]);
        load<T, W>(p, grad[i], upstream[i]);
      }
    }
    T* base = rows[2];
    std::fill(base, base + width, T(0));
    if (p.zero_logit) add_background(part, base);
    const int32_t* offsets = offsets_of(p, part.head);
    const int64_t num_offsets = p.counts[part.head];
    const bool single = p.num_axes == 1 && p.block == 1;
    Staying staying;
    for (int64_t position = part.from; position < part.to; position++) {
      if (position + AHEAD < p.num_positions) {
        const int64_t later = key_token(p, position + AHEAD);
        prefetch_to_write(p, grad_k[later]);
        prefetch_to_write(p, grad_v[later]);
      }
      reach(first_query(p, std::min(p.num_positions, position - part.lowest + 1)));
      start(part, p.prefix + position);
      const int64_t within = p.block == 1 ? 0 : position % p.block;
      // queries at position - delta, which is from 0 to num_positions - 1
      if (single) staying.find(offsets, num_offsets, position - p.num_positions + 1, position);
      for (int64_t j = single ? staying.first : 0; j < (single ? staying.last : num_offsets); j++) {
        const int64_t there = position - offsets[3 * j + 2];
        const Range seen_by = single ? Range{there, there + 1} : reached(p, position, offsets + 3 * j, -1);
        const int64_t end = first_query(p, seen_by.to), slot = p.prefix + j * p.block + within;
        for (int64_t i = first_query(p, seen_by.from); i < end; i++) add(part, i, slot);
      }
      finish(key_token(p, position));
    }
    if (part.from == 0)
      for (int64_t key = 0; key < p.prefix; key++) {
        reach(last);
        start(part, key);
        for (int64_t i = first; i < last; i++) add(part, i, key);
        finish(key);
      }
  }

  // Copy queries and their gradients on up to the `end`-th in the order of positions.
  void reach(int64_t end) {
    for (end = std::min(end, last); next < end; next++) {
      if (next + AHEAD < last) {
        const int64_t later = query_token(p, next + AHEAD);
        prefetch(p, q[later]);
        prefetch(p, grad[later]);
      }
      if (!copies) continue;
      const int64_t token = query_token(p, next), to = p.prefix + next - first;
      load<T, W>(p, q[token], queries[to]);
      load<T, W>(p, grad[token], upstream[to]);
    }
  }

  // Sum b_i g_i over all queries that leave keys out: what every value gets from logits 0. For the queries' own keys it
  // is taken off again, in the weights of the first pass.
  void add_background(const Part& part, T* base) {
    const T* shifts = logsumexp + part.item * (p.prefix + p.num_queries);
    reach(last);
    for (int64_t position = 0; position < p.num_positions; position++) {
      if (sees_all(p, part.head, position)) continue;
      const int64_t end = first_query(p, position + 1);
      for (int64_t i = first_query(p, position); i < end; i++) {
        const T background = std::exp(-shifts[query_token(p, i)]);
        const T* row = reinterpret_cast<const T*>(upstream_rows_at[p.prefix + i - origin]);
        for (int64_t c = 0; c < width; c++) base[c] += background * row[c];
      }
    }
  }

  // Begin the list of queries that see the `key`-th token in the order of positions: with those of the prefix.
  void start(const Part& part, int64_t key) {
    count = 0;
    const int64_t all_keys = p.prefix + p.num_positions;
    for (int64_t i = 0; i < p.prefix; i++) {
      const T* at = pairs.from_prefix + (2 * part.item * p.prefix + i) * all_keys + key;
      put(i, at[0], at[p.prefix * all_keys]);
    }
  }

  void add(const Part& part, int64_t query, int64_t slot) {
    const int64_t at = (part.item * p.num_queries + query) * (p.prefix + p.num_offsets * p.block) + slot;
    put(p.prefix + query - origin, pairs.weights[at], pairs.gradients[at]);
  }

  void put(int64_t row, T weight, T gradient) {
    query_rows[count] = reinterpret_cast<const T*>(query_rows_at[row]);
    upstream_rows[count] = reinterpret_cast<const T*>(upstream_rows_at[row]);
    weights[count] = weight;
    gradients[count++] = gradient;
  }

  // dv = (background +) sum of weights by g, and dk = sum of ds by q, over the list.
  void finish(int64_t token) {
    T* by_key = in_place ? reinterpret_cast<T*>(grad_k[token]) : rows[0];
    T* by_value = in_place ? reinterpret_cast<T*>(grad_v[token]) : rows[1];
    const T* start = p.zero_logit ? rows[2] : nullptr;
    weighted_sum<T, W>(weights.data(), upstream_rows.data(), count, width, start, by_value);
    weighted_sum<T, W>(gradients.data(), query_rows.data(), count, width, nullptr, by_key);
    if (in_place) return;
    store<T, W>(p, grad_k[token], by_key);
    store<T, W>(p, grad_v[token], by_value);
  }
};

}  // namespace
