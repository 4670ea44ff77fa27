// The arguments of `bank_update` without torch: what the kernels know of tensors is a pointer, sizes and strides.
#pragma once

#include <cstdint>
#include <functional>

#include "upsampling.h"

namespace dida {

enum class Float { fp32, fp16, bf16 };
enum class Label { uint8, int32, int64 };

constexpr int64_t IGNORE = 255;  // the label of a pixel that belongs to no class

// Strides count elements.
struct Embedding {
  const void* data;
  Float dtype;
  int64_t B, D, h, w;
  int64_t stride_B, stride_D, stride_h, stride_w;
};

struct LabelMap {
  const void* label;
  Label dtype;
  const uint8_t* boundary;
  int64_t H, W;
  int64_t stride_B, stride_H, stride_W;
  int64_t boundary_stride_B, boundary_stride_H, boundary_stride_W;
};

struct Bank {
  const float* old_KD;
  const int64_t* label_K;
  float* new_KD;
  int64_t K;
};

struct BankUpdate {
  Embedding embed;
  LabelMap map;
  Bank bank;
  int64_t classes;
  double momentum;
};

// A class has two sets of pixels, its interior (set c) and its boundary (set classes + c).
inline int64_t set_count(const BankUpdate& update) { return 2 * update.classes; }

// Runs a task for every number in 0 .. count - 1, in any order and on any number of threads.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

void bank_update_cpu(const BankUpdate& update, const ParallelFor& parallel_for);

}  // namespace dida
