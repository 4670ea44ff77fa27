// From tensors to the plain arguments of the kernels, with the checks that a caller of torch.ops.dida must not bypass.
#pragma once

#include <ATen/core/Tensor.h>

#include "bank_update.h"

namespace dida {

// Raises for whatever the kernels cannot take. `bank`, `label_K` and `result` have to be contiguous.
BankUpdate bank_update_arguments(const at::Tensor& bank_KD, const at::Tensor& label_K, const at::Tensor& embed_BDhw,
                                 const at::Tensor& label_BHW, const at::Tensor& boundary_BHW, int64_t classes,
                                 double momentum, const at::Tensor& result_KD);

}  // namespace dida
