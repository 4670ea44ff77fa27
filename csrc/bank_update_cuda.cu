// Class means of upsampled embeddings and their moving average into the bank, on a GPU. Agrees with Eq. (11) as
// equations.py states it (`bank_update`).
//
// Upsampling is linear, so the mean over a set s of pixels needs no upsampled embedding. With a(x, m) the weight of
// pixel x on node m, an integer (see upsampling.h):
//
//     mean_s = sum_m W[s, m] e_m / sum_m W[s, m],        W[s, m] = sum_{x in s} a(x, m),        s = c or C + c.
//
// Three kernels, none of which waits for the host:
//
//     sum_nodes      grid (blocks, D / 128, 2C / 40). A block takes tiles of 32 neighbouring nodes. For each it adds up
//                    W in shared memory, by integer atomics: exact, hence the same in any order. Then a thread is a
//                    channel: it holds the 32 nodes in registers and adds their weighted sum to every set that has a
//                    weight in the tile, one or two of 2C as a rule. Writes sums and weights of the block.
//     average_sets   grid (C, D / 32). Adds up blocks in a fixed order and takes the mean of one or two means.
//     move_bank      e_k <- omega e_k + (1 - omega) e_avg, one row of the bank after the other.
//
//     e   embedding  [B, D, h, w]      read once, coalesced in both layouts: along channels where these are neighbours
//                                      in memory, else along nodes, through shared memory
//     W   Tile       [SETS, TILE]      never in global memory
//     -   sum_GSD    [blocks, 2C, D]   only rows of sets that occur are written and read
//
// Not materialised: the upsampled embedding (537 MB for two crops of 512 x 512 x 256; the coarse one has 34 MB) and any
// one-hot. There are no float atomics, and the number of blocks depends on the shape alone: runs agree in every bit.
#include "bank_update_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

namespace dida {
namespace {

constexpr int TILE = 32;       // nodes, one per lane
constexpr int THREADS = 128;   // and channels of a block; with SETS it makes 30 to 47 KB of shared memory
constexpr int WARPS = THREADS / 32;
constexpr int SETS = 40;       // both sets of 20 classes; more classes take further blocks, which read what they need
constexpr int AHEAD = 4;       // pixels whose label and boundary are read at once
constexpr int64_t MAX_BLOCKS = 256;
constexpr unsigned ALL_LANES = 0xffffffffu;

constexpr int AVERAGE_LANES = 32;  // channels
constexpr int AVERAGE_WARPS = 16;
constexpr int STRIDE = AVERAGE_WARPS / 2;  // warps that share the blocks of one set: a class has two

__device__ float to_float(float x) { return x; }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

struct Tiles {
  int per_row;
  int64_t count;
};

// W of one tile. A node can collect more than 32 bits, while atomics are fast on 32: the carry has a plane of its own.
struct Tile {
  alignas(16) unsigned weight_Sn[SETS][TILE];  // after `finish` the bits of a float
  unsigned carry_Sn[SETS][TILE];
  unsigned long long touched_of_warp[WARPS];   // bit s: set s has a weight in this tile
};

// The set of a pixel counted from `first_set`, or something outside of 0 .. SETS - 1.
__device__ int64_t set_of(int64_t label, uint8_t boundary, int64_t classes, int64_t first_set) {
  if (label == IGNORE || label < 0 || label >= classes) return -1;
  return label + (boundary ? classes : 0) - first_set;
}

__device__ void clear(Tile& tile) {
  for (int i = threadIdx.x; i < SETS * TILE; i += THREADS) {
    tile.weight_Sn[i / TILE][i % TILE] = 0;
    tile.carry_Sn[i / TILE][i % TILE] = 0;
  }
}

// Exact in whatever order: of all additions to a cell just those that wrap it around see a sum below their summand.
__device__ void add(Tile& tile, int set, int node, unsigned weight) {
  const unsigned before = atomicAdd(&tile.weight_Sn[set][node], weight);
  if (before + weight < weight) atomicAdd(&tile.carry_Sn[set][node], 1u);
}

// A thread takes every 128th pixel of those that touch the nodes j .. j + nodes - 1 of row i in image b. It reads some of
// them, without a branch between, before it looks at the first: each for itself would wait for memory.
template <typename L>
__device__ void collect(Tile& tile, const LabelMap& map, int64_t classes, int64_t first_set, const Axis& vertical,
                        const Axis& horizontal, int64_t b, int i, int j, int nodes) {
  const L* label = static_cast<const L*>(map.label) + b * map.stride_B;
  const uint8_t* boundary = map.boundary + b * map.boundary_stride_B;
  const int y_begin = vertical.begin(i), x_begin = horizontal.begin(j);
  const int rows = vertical.end(i) - y_begin, columns = horizontal.end(j + nodes - 1) - x_begin;
  const int pixels = rows * columns;
  for (int first = threadIdx.x; first < pixels; first += THREADS * AHEAD) {
    L label_n[AHEAD];
    uint8_t boundary_n[AHEAD];
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) {
      const int pixel = first + n * THREADS < pixels ? first + n * THREADS : pixels - 1;
      const int y = y_begin + pixel / columns, x = x_begin + pixel % columns;
      label_n[n] = label[y * map.stride_H + x * map.stride_W];
      boundary_n[n] = boundary[y * map.boundary_stride_H + x * map.boundary_stride_W];
    }
#pragma unroll
    for (int n = 0; n < AHEAD; ++n) {
      const int pixel = first + n * THREADS;
      const int64_t set = set_of(label_n[n], boundary_n[n], classes, first_set);
      if (pixel >= pixels || set < 0 || set >= SETS) continue;
      const unsigned row_weight = vertical.weight(y_begin + pixel / columns, i);
      const int at = horizontal.position(x_begin + pixel % columns);
      const int left = at / horizontal.unit(), beyond = at - left * horizontal.unit();
      const int node = left - j;  // the pixel lies between this node and the next, either of which may be another's
      if (node >= 0) add(tile, static_cast<int>(set), node, row_weight * (horizontal.unit() - beyond));
      if (beyond != 0 && node + 1 < nodes) add(tile, static_cast<int>(set), node + 1, row_weight * beyond);
    }
  }
}

// Replaces the integers by floats in units of pixels and adds them up per set. A warp takes every fourth set.
__device__ void finish(Tile& tile, unsigned long long (&weight_S)[SETS], float pixels_per_unit) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned long long touched = 0;
  for (int set = warp; set < SETS; set += WARPS) {
    unsigned long long weight =
        (static_cast<unsigned long long>(tile.carry_Sn[set][lane]) << 32) + tile.weight_Sn[set][lane];
    if (__ballot_sync(ALL_LANES, weight != 0) == 0) continue;
    touched |= 1ull << set;
    tile.weight_Sn[set][lane] = __float_as_uint(static_cast<float>(weight) * pixels_per_unit);
    for (int offset = 16; offset > 0; offset /= 2) weight += __shfl_xor_sync(ALL_LANES, weight, offset);
    if (lane == 0) weight_S[set] += weight;
  }
  if (lane == 0) tile.touched_of_warp[warp] = touched;
}

// The 32 nodes of the tile in this thread's channel; 0 beyond the grid.
template <typename T, bool CHANNELS_FIRST>
__device__ void load(float (&value_n)[TILE], const T* tile, int64_t channel, const Embedding& e, int nodes,
                     float* stage) {
  if constexpr (CHANNELS_FIRST) {
    // A warp's 32 lanes read 32 nodes of one channel after the other, and each then picks up the nodes of its own.
    const int lane = threadIdx.x % 32, row = TILE + 1;  // the odd row length keeps lanes on different banks
    float* rows = stage + threadIdx.x / 32 * 32 * row;
    const int64_t first = channel - lane;
#pragma unroll 16  // so many reads are under way at once
    for (int d = 0; d < 32; ++d) {
      const bool inside = first + d < e.D && lane < nodes;
      rows[d * row + lane] = inside ? to_float(tile[(first + d) * e.stride_D + lane * e.stride_w]) : 0.0f;
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < TILE; ++n) value_n[n] = rows[lane * row + n];
    __syncwarp();  // before the next tile is staged
  } else {
#pragma unroll
    for (int n = 0; n < TILE; ++n) {
      const bool inside = channel < e.D && n < nodes;
      value_n[n] = inside ? to_float(tile[channel * e.stride_D + n * e.stride_w]) : 0.0f;
    }
  }
}

__device__ float weighted_sum(const unsigned (&weight_n)[TILE], const float (&value_n)[TILE]) {
  float sum[4] = {};  // four chains: one would wait for every addition
#pragma unroll
  for (int n = 0; n < TILE; n += 4) {
    const uint4 bits = *reinterpret_cast<const uint4*>(&weight_n[n]);
    const float weight[4] = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                             __uint_as_float(bits.w)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (weight[i] != 0.0f) sum[i] = fmaf(weight[i], value_n[n + i], sum[i]);  // keeps a NaN to the sets it belongs to
    }
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <typename T, bool CHANNELS_FIRST>
__global__ void __launch_bounds__(THREADS, 4)
    sum_nodes(Embedding e, LabelMap map, int64_t classes, Axis vertical, Axis horizontal, Tiles tiles,
              float pixels_per_unit, float* sum_GSD, uint64_t* weight_GS) {
  __shared__ Tile tile;
  __shared__ float sum_SD[SETS][THREADS];
  __shared__ unsigned long long weight_S[SETS];
  __shared__ float stage[CHANNELS_FIRST ? THREADS * (TILE + 1) : 1];

  const int64_t sets = 2 * classes, first_set = static_cast<int64_t>(blockIdx.z) * SETS;
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * THREADS + threadIdx.x;
  unsigned long long seen = 0;  // sets with a row in sum_SD
  if (threadIdx.x < SETS) weight_S[threadIdx.x] = 0;

  const int64_t begin = tiles.count * blockIdx.x / gridDim.x, end = tiles.count * (blockIdx.x + 1) / gridDim.x;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = t / tiles.per_row, b = row / e.h;
    const int i = static_cast<int>(row % e.h), j = static_cast<int>(t % tiles.per_row) * TILE;
    const int nodes = static_cast<int>(e.w - j < TILE ? e.w - j : TILE);

    __syncthreads();  // the tile before this has been used
    clear(tile);
    __syncthreads();
    switch (map.dtype) {
      case Label::uint8: collect<uint8_t>(tile, map, classes, first_set, vertical, horizontal, b, i, j, nodes); break;
      case Label::int32: collect<int32_t>(tile, map, classes, first_set, vertical, horizontal, b, i, j, nodes); break;
      default: collect<int64_t>(tile, map, classes, first_set, vertical, horizontal, b, i, j, nodes);
    }
    __syncthreads();
    finish(tile, weight_S, pixels_per_unit);
    __syncthreads();

    unsigned long long touched = 0;
    for (int warp = 0; warp < WARPS; ++warp) touched |= tile.touched_of_warp[warp];
    if (touched == 0) continue;

    float value_n[TILE];
    const T* first = static_cast<const T*>(e.data) + b * e.stride_B + i * e.stride_h + j * e.stride_w;
    load<T, CHANNELS_FIRST>(value_n, first, channel, e, nodes, stage);
    for (unsigned long long rest = touched; rest != 0; rest &= rest - 1) {
      const int set = __ffsll(static_cast<long long>(rest)) - 1;
      const float sum = weighted_sum(tile.weight_Sn[set], value_n);
      sum_SD[set][threadIdx.x] = seen >> set & 1 ? sum_SD[set][threadIdx.x] + sum : sum;
    }
    seen |= touched;
  }

  __syncthreads();
  const int64_t first_row = blockIdx.x * sets + first_set;
  if (blockIdx.y == 0 && threadIdx.x < SETS && first_set + threadIdx.x < sets) {
    weight_GS[first_row + threadIdx.x] = weight_S[threadIdx.x];
  }
  if (channel >= e.D) return;
  for (unsigned long long rest = seen; rest != 0; rest &= rest - 1) {
    const int set = __ffsll(static_cast<long long>(rest)) - 1;
    sum_GSD[(first_row + set) * e.D + channel] = sum_SD[set][threadIdx.x];
  }
}

__global__ void __launch_bounds__(AVERAGE_LANES* AVERAGE_WARPS)
    average_sets(const float* sum_GSD, const uint64_t* weight_GS, int blocks, int64_t classes, int64_t D,
                 double units_per_pixel, float* average_CD, int32_t* present_C) {
  __shared__ uint64_t weight_G[2][MAX_BLOCKS];
  __shared__ double sum_WD[AVERAGE_WARPS][AVERAGE_LANES];
  __shared__ uint64_t weight_W[AVERAGE_WARPS];

  const int lane = threadIdx.x % AVERAGE_LANES, warp = threadIdx.x / AVERAGE_LANES;
  const int64_t c = blockIdx.x, channel = static_cast<int64_t>(blockIdx.y) * AVERAGE_LANES + lane;
  for (int i = threadIdx.x; i < 2 * blocks; i += AVERAGE_LANES * AVERAGE_WARPS) {
    weight_G[i / blocks][i % blocks] = weight_GS[(i % blocks) * 2 * classes + i / blocks * classes + c];
  }
  __syncthreads();

  const int of_boundary = warp / STRIDE;
  const float* sum_GD = sum_GSD + (of_boundary * classes + c) * D + channel;
  double sum = 0.0;
  uint64_t weight = 0;
#pragma unroll 8
  for (int block = warp % STRIDE; block < blocks; block += STRIDE) {
    const bool exists = weight_G[of_boundary][block] != 0 && channel < D;
    sum += exists ? sum_GD[block * 2 * classes * D] : 0.0f;  // where it does not exist, memory holds anything
    weight += weight_G[of_boundary][block];
  }
  sum_WD[warp][lane] = sum;
  if (lane == 0) weight_W[warp] = weight;
  __syncthreads();

  if (warp != 0) return;
  double average = 0.0;
  int means = 0;
  for (int set = 0; set < 2; ++set) {
    sum = 0.0;
    weight = 0;
    for (int i = set * STRIDE; i < (set + 1) * STRIDE; ++i) {
      sum += sum_WD[i][lane];
      weight += weight_W[i];
    }
    if (weight == 0) continue;
    average += sum * units_per_pixel / static_cast<double>(weight);
    ++means;
  }
  if (channel < D) average_CD[c * D + channel] = static_cast<float>(means == 2 ? average / 2.0 : average);
  if (blockIdx.y == 0 && lane == 0) present_C[c] = means != 0;
}

__global__ void __launch_bounds__(THREADS)
    move_bank(Bank bank, const float* average_CD, const int32_t* present_C, int64_t classes, int64_t D, float keep,
              float take) {
  for (int64_t k = blockIdx.x; k < bank.K; k += gridDim.x) {
    const int64_t c = bank.label_K[k];
    const bool present = 0 <= c && c < classes && present_C[c] != 0;
    for (int64_t d = threadIdx.x; d < D; d += THREADS) {
      const float old = bank.old_KD[k * D + d];
      bank.new_KD[k * D + d] = present ? fmaf(keep, old, take * average_CD[c * D + d]) : old;
    }
  }
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, cudaStream_t stream, Arguments... arguments) {
  kernel<<<grid, threads, 0, stream>>>(arguments...);
  return cudaGetLastError();
}

Tiles tiles_of(const Embedding& e) {
  const int64_t per_row = (e.w + TILE - 1) / TILE;
  return {static_cast<int>(per_row), e.B * e.h * per_row};
}

unsigned ceil_divide(int64_t a, int64_t b) { return static_cast<unsigned>((a + b - 1) / b); }

template <typename T>
cudaError_t launch_all(const BankUpdate& update, const BankUpdateScratch& scratch, cudaStream_t stream) {
  const Embedding& e = update.embed;
  const Axis vertical(e.h, update.map.H), horizontal(e.w, update.map.W);
  const double units_per_pixel = static_cast<double>(vertical.unit()) * horizontal.unit();

  const dim3 nodes_grid(scratch.blocks, ceil_divide(e.D, THREADS), ceil_divide(set_count(update), SETS));
  // Lanes go along whatever lies closer together in memory.
  cudaError_t error = launch(e.stride_D <= e.stride_w ? sum_nodes<T, false> : sum_nodes<T, true>, nodes_grid, THREADS,
                             stream, e, update.map, update.classes, vertical, horizontal, tiles_of(e),
                             static_cast<float>(1.0 / units_per_pixel), scratch.sum_GSD, scratch.weight_GS);
  if (error != cudaSuccess) return error;

  const dim3 average_grid(update.classes, ceil_divide(e.D, AVERAGE_LANES));
  error = launch(average_sets, average_grid, AVERAGE_LANES * AVERAGE_WARPS, stream, scratch.sum_GSD, scratch.weight_GS,
                 static_cast<int>(scratch.blocks), update.classes, e.D, units_per_pixel, scratch.average_CD,
                 scratch.present_C);
  if (error != cudaSuccess) return error;

  const dim3 bank_grid(std::min<int64_t>(update.bank.K, 1 << 16));
  return launch(move_bank, bank_grid, THREADS, stream, update.bank, scratch.average_CD, scratch.present_C,
                update.classes, e.D, static_cast<float>(update.momentum), static_cast<float>(1.0 - update.momentum));
}

}  // namespace

int64_t bank_update_blocks(const BankUpdate& update) { return std::min(tiles_of(update.embed).count, MAX_BLOCKS); }

cudaError_t bank_update_cuda(const BankUpdate& update, const BankUpdateScratch& scratch, cudaStream_t stream) {
  switch (update.embed.dtype) {
    case Float::fp16: return launch_all<__half>(update, scratch, stream);
    case Float::bf16: return launch_all<__nv_bfloat16>(update, scratch, stream);
    default: return launch_all<float>(update, scratch, stream);
  }
}

}  // namespace dida
