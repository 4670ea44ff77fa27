// Class means of upsampled embeddings and their moving average into the bank, on the CPU. Agrees with Eq. (11) as
// equations.py states it (`bank_update`).
//
// Upsampling is linear, so the mean over a set s of pixels needs no upsampled embedding. With a(x, m) the weight of
// pixel x on node m (see upsampling.h):
//
//     mean_s = sum_{x in s} sum_m a(x, m) e_m / sum_{x in s} sum_m a(x, m)
//            = sum_m W[s, m] e_m / sum_m W[s, m],        W[s, m] = sum_{x in s} a(x, m).
//
// W is an exact integer matrix, found from the label map alone, and mostly zero: the pixels around a node are of one
// or two classes. Every embedding is thus read once, from the coarse grid, and added to one or two rows of sums.
//
//     e   embedding  [B, D, h, w]   read once; rows of D channels, transposed on the way if channels lie apart
//     W   Weights    [NODES, S]     of one run of neighbouring nodes
//     -   Sums       [<= S, D]      one per block of runs: float32 over a few runs, carried on in float64
//
// The division into blocks depends on the shape alone and blocks are added up in their order, so the result is bitwise
// the same for any number of threads.
#include "bank_update.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace dida {
namespace {

constexpr int64_t NODES = 128;  // of one run: 512 bytes in a row where channels lie apart, and W stays near L1
constexpr int64_t BLOCKS = 64;  // at most so many tasks: enough for any CPU, few enough to add up in no time
constexpr int64_t CARRY_RUNS = 16;  // float32 adds up at most so many runs, float64 the rest
constexpr int32_t NO_SET = -1;

float to_float(float x) { return x; }

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

float to_float(BFloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }

uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Written for the vectoriser, because the x86-64 baseline has no fp16. A multiplication moves the exponent up, which
// also makes normal numbers of subnormal ones; what was infinite or NaN gets the highest exponent again.
float to_float(Half x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const uint32_t infinite = magnitude >= 0x1fu << 23 ? 0xffu << 23 : 0u;
  return from_bits(to_bits(from_bits(magnitude) * 0x1p112f) | infinite | sign);
}

// The embeddings of neighbouring nodes as float32 rows.
struct Rows {
  const float* data;
  int64_t stride;
};

template <typename T>
Rows rows_of(const T* first, const Embedding& embed, int64_t nodes, std::vector<float>& buffer) {
  const int64_t D = embed.D, stride_D = embed.stride_D, stride_w = embed.stride_w;
  if constexpr (std::is_same_v<T, float>) {
    if (stride_D == 1) return {first, stride_w};
  }
  // Rows a power of two apart would share a few cache sets, and 64 of them would not fit there.
  const int64_t stride = D + 16;
  buffer.resize(NODES * stride);
  float* rows = buffer.data();
  if (stride_D == 1) {
    for (int64_t node = 0; node < nodes; ++node) {
      for (int64_t d = 0; d < D; ++d) rows[node * stride + d] = to_float(first[node * stride_w + d]);
    }
  } else {
    constexpr int64_t STREAMS = 8;  // channels read side by side: a cache line of a row is written in one or two goes
    for (int64_t d0 = 0; d0 < D; d0 += STREAMS) {
      const int64_t streams = std::min(STREAMS, D - d0);
      for (int64_t node = 0; node < nodes; ++node) {
        const T* from = first + d0 * stride_D + node * stride_w;
        for (int64_t d = 0; d < streams; ++d) rows[node * stride + d0 + d] = to_float(from[d * stride_D]);
      }
    }
  }
  return {rows, stride};
}

Rows rows_of(const Embedding& embed, int64_t offset, int64_t nodes, std::vector<float>& buffer) {
  switch (embed.dtype) {
    case Float::fp16: return rows_of(static_cast<const Half*>(embed.data) + offset, embed, nodes, buffer);
    case Float::bf16: return rows_of(static_cast<const BFloat16*>(embed.data) + offset, embed, nodes, buffer);
    default: return rows_of(static_cast<const float*>(embed.data) + offset, embed, nodes, buffer);
  }
}

// The sets of `count` pixels of a row, from pixel x on.
template <typename T>
void read_sets(const T* row, const uint8_t* boundary, const LabelMap& map, int64_t classes, int64_t x, int64_t count,
               int32_t* sets) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = row[(x + i) * map.stride_W];
    const bool valid = label != IGNORE && 0 <= label && label < classes;
    const int64_t first = boundary[(x + i) * map.boundary_stride_W] != 0 ? classes : 0;
    sets[i] = valid ? static_cast<int32_t>(first + label) : NO_SET;
  }
}

void read_sets(const LabelMap& map, int64_t classes, int64_t b, int64_t y, int64_t x, int64_t count, int32_t* sets) {
  const int64_t row = b * map.stride_B + y * map.stride_H;
  const uint8_t* boundary = map.boundary + b * map.boundary_stride_B + y * map.boundary_stride_H;
  switch (map.dtype) {
    case Label::uint8:
      return read_sets(static_cast<const uint8_t*>(map.label) + row, boundary, map, classes, x, count, sets);
    case Label::int32:
      return read_sets(static_cast<const int32_t*>(map.label) + row, boundary, map, classes, x, count, sets);
    case Label::int64:
      return read_sets(static_cast<const int64_t*>(map.label) + row, boundary, map, classes, x, count, sets);
  }
}

// W for a run of neighbouring nodes in one row of the grid: of every node the sets that have a weight there.
class Weights {
 public:
  explicit Weights(int64_t sets)
      : sets_(sets), weight_nS_(COLUMNS * sets, 0.0f), set_nS_(COLUMNS * sets), count_n_(COLUMNS, 0) {}

  // Calls visit(set, weight) for every weight on the node that is not zero.
  template <typename Visit>
  void each(int64_t node, const Visit& visit) const {
    for (int64_t i = 0; i < count_n_[1 + node]; ++i) {
      const int32_t set = set_nS_[(1 + node) * sets_ + i];
      visit(set, weight_nS_[(1 + node) * sets_ + set]);
    }
  }

  // The weights of nodes j .. j + nodes - 1 in row i of image b.
  void compute(const LabelMap& map, int64_t classes, const Axis& vertical, const Axis& horizontal, int64_t b, int32_t i,
               int32_t j, int32_t nodes) {
    clear();
    const int32_t x_begin = horizontal.begin(j), x_end = horizontal.end(j + nodes - 1);
    if (x_begin >= x_end) return;  // an image smaller than the grid misses some nodes
    pixel_sets_.resize(x_end - x_begin);
    for (int32_t y = vertical.begin(i); y < vertical.end(i); ++y) {
      read_sets(map, classes, b, y, x_begin, x_end - x_begin, pixel_sets_.data());
      const int32_t row_weight = vertical.weight(y, i);
      for (int32_t x = x_begin; x < x_end; ++x) {
        const int32_t set = pixel_sets_[x - x_begin];
        if (set == NO_SET) continue;
        // A pixel lies between two nodes, of which one may be just outside of the run: a column is there for it.
        const int32_t at = horizontal.position(x), left = at / horizontal.unit(), beyond = at % horizontal.unit();
        add(1 + left - j, set, static_cast<float>(row_weight) * static_cast<float>(horizontal.unit() - beyond));
        if (beyond != 0) add(2 + left - j, set, static_cast<float>(row_weight) * static_cast<float>(beyond));
      }
    }
  }

 private:
  static constexpr int64_t COLUMNS = 1 + NODES + 1;

  void add(int64_t column, int32_t set, float weight) {
    float& cell = weight_nS_[column * sets_ + set];
    if (cell == 0.0f) set_nS_[column * sets_ + count_n_[column]++] = set;
    cell += weight;
  }

  void clear() {
    for (int64_t column = 0; column < COLUMNS; ++column) {
      for (int64_t i = 0; i < count_n_[column]; ++i) {
        weight_nS_[column * sets_ + set_nS_[column * sets_ + i]] = 0.0f;
      }
      count_n_[column] = 0;
    }
  }

  int64_t sets_;
  std::vector<float> weight_nS_;
  std::vector<int32_t> set_nS_, count_n_, pixel_sets_;
};

// sum_m W[s, m] e_m and sum_m W[s, m] over the nodes of one block, for the sets that occur there.
class Sums {
 public:
  Sums() = default;
  Sums(int64_t sets, int64_t D) : D_(D), row_of_set_(sets, -1) {}

  void add(int32_t set, float weight, const float* row) {
    if (row_of_set_[set] < 0) {
      row_of_set_[set] = static_cast<int64_t>(weight_.size());
      weight_.push_back(0.0);
      recent_.resize(recent_.size() + D_, 0.0f);
      sum_.resize(sum_.size() + D_, 0.0);
    }
    weight_[row_of_set_[set]] += weight;
    float* __restrict__ recent = &recent_[row_of_set_[set] * D_];
    for (int64_t d = 0; d < D_; ++d) recent[d] += weight * row[d];
  }

  // To be called before so many additions that float32 would lose what it adds.
  void carry() {
    for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += recent_[i];
    std::fill(recent_.begin(), recent_.end(), 0.0f);
  }

  double weight(int64_t set) const { return row_of_set_[set] < 0 ? 0.0 : weight_[row_of_set_[set]]; }
  const double* sum(int64_t set) const { return &sum_[row_of_set_[set] * D_]; }

 private:
  int64_t D_ = 0;
  std::vector<int64_t> row_of_set_;
  std::vector<float> recent_;
  std::vector<double> sum_, weight_;
};

// Adds the mean of a set to `average`, if the set has a pixel.
bool add_mean(const std::vector<Sums>& blocks, int64_t set, int64_t D, double* sum, double* average) {
  double weight = 0.0;
  std::fill_n(sum, D, 0.0);
  for (const Sums& block : blocks) {
    if (block.weight(set) == 0.0) continue;
    weight += block.weight(set);
    for (int64_t d = 0; d < D; ++d) sum[d] += block.sum(set)[d];
  }
  if (weight == 0.0) return false;
  for (int64_t d = 0; d < D; ++d) average[d] += sum[d] / weight;
  return true;
}

}  // namespace

void bank_update_cpu(const BankUpdate& update, const ParallelFor& parallel_for) {
  const Embedding& e = update.embed;
  const Bank& bank = update.bank;
  const int64_t C = update.classes, D = e.D;
  const Axis vertical(e.h, update.map.H), horizontal(e.w, update.map.W);

  const int64_t runs_per_row = (e.w + NODES - 1) / NODES, runs = e.B * e.h * runs_per_row;
  const int64_t block_count = std::min(BLOCKS, runs);
  std::vector<Sums> blocks(block_count);
  parallel_for(block_count, [&](int64_t block) {
    Sums sums(set_count(update), D);
    Weights weights(set_count(update));
    std::vector<float> buffer;
    const int64_t first = runs * block / block_count, last = runs * (block + 1) / block_count;
    for (int64_t run = first; run < last; ++run) {
      const int64_t row = run / runs_per_row, b = row / e.h, i = row % e.h, j = run % runs_per_row * NODES;
      const int64_t nodes = std::min(NODES, e.w - j);
      weights.compute(update.map, C, vertical, horizontal, b, static_cast<int32_t>(i), static_cast<int32_t>(j),
                      static_cast<int32_t>(nodes));
      const Rows rows = rows_of(e, b * e.stride_B + i * e.stride_h + j * e.stride_w, nodes, buffer);
      for (int64_t node = 0; node < nodes; ++node) {
        weights.each(node, [&](int32_t set, float weight) { sums.add(set, weight, rows.data + node * rows.stride); });
      }
      if ((run - first) % CARRY_RUNS == CARRY_RUNS - 1) sums.carry();
    }
    sums.carry();
    blocks[block] = std::move(sums);
  });

  std::vector<double> average_CD(C * D, 0.0);
  std::vector<char> present_C(C, false);
  parallel_for(C, [&](int64_t c) {
    std::vector<double> sum(D);
    double* average = &average_CD[c * D];
    const bool interior = add_mean(blocks, c, D, sum.data(), average);
    const bool boundary = add_mean(blocks, C + c, D, sum.data(), average);
    if (interior && boundary) {
      for (int64_t d = 0; d < D; ++d) average[d] /= 2.0;
    }
    present_C[c] = interior || boundary;
  });

  constexpr int64_t ROWS = 64;  // of the bank, per task
  parallel_for((bank.K + ROWS - 1) / ROWS, [&](int64_t task) {
    for (int64_t k = task * ROWS; k < std::min(bank.K, (task + 1) * ROWS); ++k) {
      const float* old = bank.old_KD + k * D;
      const int64_t c = bank.label_K[k];
      if (c < 0 || c >= C || !present_C[c]) {
        std::copy_n(old, D, bank.new_KD + k * D);
        continue;
      }
      const double* average = &average_CD[c * D];
      const double momentum = update.momentum;
      for (int64_t d = 0; d < D; ++d) {
        bank.new_KD[k * D + d] = static_cast<float>(momentum * old[d] + (1.0 - momentum) * average[d]);
      }
    }
  });
}

}  // namespace dida
