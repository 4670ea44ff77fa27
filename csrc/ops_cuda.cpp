// The CUDA implementations of torch.ops.dida. Only compiled where there is an nvcc and a torch with CUDA.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bank_update_cuda.h"
#include "torch_arguments.h"

namespace dida {
namespace {

at::Tensor bank_update(const at::Tensor& bank, const at::Tensor& label_K, const at::Tensor& embed_BDhw,
                       const at::Tensor& label_BHW, const at::Tensor& boundary_BHW, int64_t classes, double momentum) {
  // The kernels run on the device of their tensors, which need not be the current one.
  const c10::cuda::CUDAGuard guard(embed_BDhw.device());
  const at::Tensor old_KD = bank.contiguous(), slots_K = label_K.contiguous();
  at::Tensor new_KD = at::empty_like(old_KD);
  const BankUpdate update =
      bank_update_arguments(old_KD, slots_K, embed_BDhw, label_BHW, boundary_BHW, classes, momentum, new_KD);

  const int64_t blocks = bank_update_blocks(update), sets = set_count(update), D = update.embed.D;
  const auto floats = embed_BDhw.options().dtype(at::kFloat);
  const at::Tensor sum_GSD = at::empty({blocks, sets, D}, floats), average_CD = at::empty({classes, D}, floats);
  const at::Tensor weight_GS = at::empty({blocks, sets}, floats.dtype(at::kLong));
  const at::Tensor present_C = at::empty({classes}, floats.dtype(at::kInt));
  const BankUpdateScratch scratch = {blocks, sum_GSD.mutable_data_ptr<float>(),
                                     static_cast<uint64_t*>(weight_GS.mutable_data_ptr()),
                                     average_CD.mutable_data_ptr<float>(), present_C.mutable_data_ptr<int32_t>()};
  C10_CUDA_CHECK(bank_update_cuda(update, scratch, c10::cuda::getCurrentCUDAStream()));
  return new_KD;
}

}  // namespace
}  // namespace dida

TORCH_LIBRARY_IMPL(dida, CUDA, m) { m.impl("bank_update", &dida::bank_update); }
