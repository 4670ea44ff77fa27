// The CUDA kernels of `bank_update`, as the binding calls them: neither side sees the other's headers.
#pragma once

#include <cuda_runtime_api.h>

#include "bank_update.h"

namespace dida {

// What the kernels hand to each other; the caller allocates it and need not clear it.
struct BankUpdateScratch {
  int64_t blocks;          // of nodes: a function of the shape alone, as is with it the order of all sums
  float* sum_GSD;          // [blocks, sets, D]
  uint64_t* weight_GS;     // [blocks, sets]
  float* average_CD;       // [classes, D]
  int32_t* present_C;      // [classes]
};

int64_t bank_update_blocks(const BankUpdate& update);

cudaError_t bank_update_cuda(const BankUpdate& update, const BankUpdateScratch& scratch, cudaStream_t stream);

}  // namespace dida
