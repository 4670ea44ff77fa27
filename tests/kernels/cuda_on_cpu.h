// Runs CUDA kernels on a CPU, so that a machine without a GPU can test what they compute and let sanitizers watch them.
//
// Blocks run one after the other; the threads of a block are threads of the system. What only the hardware has stays
// untested: its memory model beyond barriers, its limits, its speed.
#pragma once

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#undef __global__
#undef __device__
#undef __shared__
#undef __launch_bounds__
#define __global__ static
#define __device__ static
#define __shared__ static
#define __launch_bounds__(...)

namespace cuda_on_cpu {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Warp {
  std::barrier<> barrier{32};
  unsigned long long exchanged[32];
};

struct Block {
  explicit Block(int threads) : barrier(threads), warps(threads / 32) {}
  std::barrier<> barrier;
  std::vector<Warp> warps;
};

inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;
inline Block* block = nullptr;

inline Warp& warp() { return block->warps[threadIdx.x / 32]; }
inline void __syncthreads() { block->barrier.arrive_and_wait(); }
inline void __syncwarp() { warp().barrier.arrive_and_wait(); }

inline unsigned __ballot_sync(unsigned, bool vote) {
  warp().exchanged[threadIdx.x % 32] = vote;
  __syncwarp();
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(warp().exchanged[lane]) << lane;
  __syncwarp();
  return votes;
}

inline unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, int offset) {
  warp().exchanged[threadIdx.x % 32] = value;
  __syncwarp();
  const unsigned long long other = warp().exchanged[threadIdx.x % 32 ^ offset];
  __syncwarp();
  return other;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) { return std::atomic_ref(*address).fetch_add(value); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <typename Kernel, typename... Arguments>
void run(Kernel kernel, dim3 grid, int threads, const Arguments&... arguments) {
  Block shared(threads);
  block = &shared;
  gridDim = {grid.x, grid.y, grid.z};
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  std::vector<std::thread> team;
  for (int thread = 0; thread < threads; ++thread) {
    team.emplace_back([&, thread] {
      threadIdx = {static_cast<unsigned>(thread), 0, 0};
      for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
          for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = {x, y, z};
            kernel(arguments...);
            __syncthreads();  // the next block takes over the shared memory
          }
        }
      }
    });
  }
  for (std::thread& thread : team) thread.join();
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;
