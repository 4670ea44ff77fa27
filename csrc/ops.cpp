// The operators of torch.ops.dida: their schemas, the CPU implementations, and the Python module that carries them.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <pybind11/pybind11.h>

#include <cstdio>
#include <string>

#include "bank_update.h"
#include "torch_arguments.h"

namespace dida {
namespace {

// Messages are put together as strings. PyTorch's macros print their parts to a std::ostream, and where a compiler has
// linked a libstdc++ of its own beside torch's (seen with GCC 13), a number on its way there ended in a crash.
std::string text(const char* x) { return x; }
std::string text(int64_t x) { return std::to_string(x); }
std::string text(double x) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%g", x);
  return digits;
}
std::string text(at::ScalarType x) { return c10::toString(x); }
std::string text(at::Device x) { return x.str(); }
std::string text(at::IntArrayRef sizes) {
  std::string list;
  for (const int64_t size : sizes) list += (list.empty() ? "" : ", ") + std::to_string(size);
  return "[" + list + "]";
}

template <class... Parts>
std::string said(const Parts&... parts) {
  return (text(parts) + ...);
}

Label label_dtype(const at::Tensor& label) {
  switch (label.scalar_type()) {
    case at::kByte: return Label::uint8;
    case at::kInt: return Label::int32;
    case at::kLong: return Label::int64;
    default: TORCH_CHECK_TYPE(false, said("label: expected uint8, int32 or int64, got ", label.scalar_type()));
  }
}

Float float_dtype(const at::Tensor& embed) {
  switch (embed.scalar_type()) {
    case at::kFloat: return Float::fp32;
    case at::kHalf: return Float::fp16;
    case at::kBFloat16: return Float::bf16;
    default:
      TORCH_CHECK_TYPE(false, said("embedding: expected float32, float16 or bfloat16, got ", embed.scalar_type()));
  }
}

at::Tensor bank_update(const at::Tensor& bank, const at::Tensor& label_K, const at::Tensor& embed_BDhw,
                       const at::Tensor& label_BHW, const at::Tensor& boundary_BHW, int64_t classes, double momentum) {
  const at::Tensor old_KD = bank.contiguous(), slots_K = label_K.contiguous();
  at::Tensor new_KD = at::empty_like(old_KD);
  bank_update_cpu(
      bank_update_arguments(old_KD, slots_K, embed_BDhw, label_BHW, boundary_BHW, classes, momentum, new_KD),
      [](int64_t count, const std::function<void(int64_t)>& task) {
        at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) task(i);
        });
      });
  return new_KD;
}

}  // namespace

BankUpdate bank_update_arguments(const at::Tensor& bank_KD, const at::Tensor& label_K, const at::Tensor& embed_BDhw,
                                 const at::Tensor& label_BHW, const at::Tensor& boundary_BHW, int64_t classes,
                                 double momentum, const at::Tensor& result_KD) {
  TORCH_CHECK_VALUE(embed_BDhw.dim() == 4 && embed_BDhw.numel() > 0,
                    said("embedding: expected a non-empty [B, D, h, w], got ", embed_BDhw.sizes()));
  const int64_t B = embed_BDhw.size(0), D = embed_BDhw.size(1), h = embed_BDhw.size(2), w = embed_BDhw.size(3);
  TORCH_CHECK_TYPE(bank_KD.scalar_type() == at::kFloat, said("bank: expected float32, got ", bank_KD.scalar_type()));
  TORCH_CHECK_VALUE(bank_KD.dim() == 2 && bank_KD.size(0) > 0 && bank_KD.size(1) == D,
                    said("bank: expected [K >= 1, D = ", D, "] as the embedding, got ", bank_KD.sizes()));
  TORCH_CHECK_TYPE(label_K.scalar_type() == at::kLong, said("label_K: expected int64, got ", label_K.scalar_type()));
  TORCH_CHECK_VALUE(label_K.dim() == 1 && label_K.size(0) == bank_KD.size(0),
                    said("label_K: expected [", bank_KD.size(0), "], got ", label_K.sizes()));
  TORCH_CHECK_VALUE(label_BHW.dim() == 3 && label_BHW.size(0) == B && label_BHW.numel() > 0,
                    said("label: expected a non-empty [B = ", B, ", H, W], got ", label_BHW.sizes()));
  TORCH_CHECK_TYPE(boundary_BHW.scalar_type() == at::kBool,
                   said("boundary: expected bool, got ", boundary_BHW.scalar_type()));
  TORCH_CHECK_VALUE(boundary_BHW.sizes() == label_BHW.sizes(), said("boundary: expected ", label_BHW.sizes(),
                                                                    " as the label, got ", boundary_BHW.sizes()));
  for (const at::Tensor& x : {bank_KD, label_K, label_BHW, boundary_BHW}) {
    TORCH_CHECK_VALUE(x.device() == embed_BDhw.device(), said("bank_update: expected all tensors on ",
                                                              embed_BDhw.device(), ", got one on ", x.device()));
  }
  TORCH_CHECK_VALUE(1 <= classes && classes < (1 << 28), said("classes: expected at least 1, got ", classes));
  TORCH_CHECK_VALUE(0.0 <= momentum && momentum <= 1.0,
                    said("momentum: expected a number in [0, 1], got ", momentum));
  const int64_t H = label_BHW.size(1), W = label_BHW.size(2);
  TORCH_CHECK_VALUE(upsampling_fits(h, w, H, W),
                    said("bank_update: upsampling ", h, "x", w, " to ", H, "x", W,
                         " needs more than 32 bits to count in; use sizes with a common divisor"));
  return {
      {embed_BDhw.const_data_ptr(), float_dtype(embed_BDhw), B, D, h, w, embed_BDhw.stride(0), embed_BDhw.stride(1),
       embed_BDhw.stride(2), embed_BDhw.stride(3)},
      {label_BHW.const_data_ptr(), label_dtype(label_BHW), static_cast<const uint8_t*>(boundary_BHW.const_data_ptr()),
       H, W, label_BHW.stride(0), label_BHW.stride(1), label_BHW.stride(2), boundary_BHW.stride(0),
       boundary_BHW.stride(1), boundary_BHW.stride(2)},
      {bank_KD.const_data_ptr<float>(), label_K.const_data_ptr<int64_t>(), result_KD.mutable_data_ptr<float>(),
       bank_KD.size(0)},
      classes,
      momentum,
  };
}

}  // namespace dida

// A fragment, because Python registers other operators of the same namespace.
TORCH_LIBRARY_FRAGMENT(dida, m) {
  m.def(
      "bank_update(Tensor bank_KD, Tensor label_K, Tensor embed_BDhw, Tensor label_BHW, Tensor boundary_BHW, *, "
      "int classes, float momentum) -> Tensor");
}

TORCH_LIBRARY_IMPL(dida, CPU, m) { m.impl("bank_update", &dida::bank_update); }

PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = DIDA_TORCH;            // the version that was compiled against
    info["compiler"] = "g++ " __VERSION__;
    info["cuda"] = DIDA_CUDA;              // "" without the CUDA kernels
    info["cuda_archs"] = DIDA_CUDA_ARCHS;
    return info;
  });
}
