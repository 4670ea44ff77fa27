// Two mistakes on purpose, by which a sanitizer shows that it works here: `planted write` stores one element behind an
// allocation (memcheck), `planted race` reads what another thread stores, with no barrier between (racecheck).
#include <cstdio>
#include <cstring>

__global__ void write_outside(int* x, int n) { x[threadIdx.x + 1] = n; }

__global__ void race(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

int main(int argc, char** argv) {
  int* x = nullptr;
  if (argc != 2 || cudaMalloc(&x, 64 * sizeof(int)) != cudaSuccess) return 2;
  if (std::strcmp(argv[1], "write") == 0) {
    write_outside<<<1, 64>>>(x, 64);
  } else {
    race<<<1, 64>>>(x);
  }
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
}
