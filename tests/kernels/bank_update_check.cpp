// Calls the kernels of `bank_update` without torch, to run under the compiler's sanitizers: every buffer is as long as
// it has to be and not an element longer. That the values agree with the equation is shown through torch, in
// test_bank_update.py; here a class is to get the mean of embeddings that are all the same, and the CUDA kernels, where
// they run on the CPU, are to agree with the CPU's own.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "bank_update.h"

#ifdef DIDA_CUDA_ON_CPU
#include "bank_update_cuda.h"
#endif

namespace {

struct Shape {
  int64_t B, D, h, w, H, W, classes, K;
  bool channels_last;
};

const Shape SHAPES[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, false},     {2, 5, 3, 4, 12, 16, 3, 7, false},   {2, 5, 3, 4, 12, 16, 3, 7, true},
    {1, 33, 1, 9, 4, 36, 2, 3, true},    {1, 33, 9, 1, 9, 2, 2, 1, false},    {1, 3, 2, 131, 2, 131, 4, 4, false},
    {1, 130, 1, 35, 3, 61, 23, 9, true}, {1, 40, 2, 33, 3, 34, 23, 9, false}, {1, 2, 1, 2, 1031, 1031, 1, 1, false},
};

#ifdef DIDA_CUDA_ON_CPU
constexpr size_t FIRST_ON_CUDA = 6;  // slow; the others before differ little for blocks of 32 nodes
#endif

#define REQUIRE(condition)                                                                       \
  do {                                                                                           \
    if (!(condition)) {                                                                          \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);               \
      std::exit(1);                                                                              \
    }                                                                                            \
  } while (false)

void on_two_threads(int64_t count, const std::function<void(int64_t)>& task) {
  const auto half = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  };
  std::thread other(half, 0, count / 2);
  half(count / 2, count);
  other.join();
}

// What a bank of -1 becomes for these pixels and embeddings; slot k is of class k mod (classes + 1), the last of which
// does not exist.
std::vector<float> updated(const Shape& s, const std::vector<float>& embed, const std::vector<int32_t>& label,
                           const std::vector<uint8_t>& boundary, bool cuda) {
  const std::vector<float> old(s.K * s.D, -1.0f);
  std::vector<float> result(s.K * s.D, std::numeric_limits<float>::quiet_NaN());
  std::vector<int64_t> label_K(s.K);
  for (int64_t k = 0; k < s.K; ++k) label_K[k] = k % (s.classes + 1);
  const int64_t area = s.h * s.w;
  const dida::BankUpdate update = {
      {embed.data(), dida::Float::fp32, s.B, s.D, s.h, s.w, s.D * area, s.channels_last ? 1 : area,
       s.channels_last ? s.w * s.D : s.w, s.channels_last ? s.D : 1},
      {label.data(), dida::Label::int32, boundary.data(), s.H, s.W, s.H * s.W, s.W, 1, s.H * s.W, s.W, 1},
      {old.data(), label_K.data(), result.data(), s.K},
      s.classes,
      0.0,
  };
  if (!cuda) {
    dida::bank_update_cpu(update, on_two_threads);
    return result;
  }
#ifdef DIDA_CUDA_ON_CPU
  const int64_t blocks = dida::bank_update_blocks(update), sets = dida::set_count(update);
  std::vector<float> sum(blocks * sets * s.D, std::numeric_limits<float>::quiet_NaN()), average(s.classes * s.D);
  std::vector<uint64_t> weight(blocks * sets, ~0ull);
  std::vector<int32_t> present(s.classes);
  const dida::BankUpdateScratch scratch = {blocks, sum.data(), weight.data(), average.data(), present.data()};
  REQUIRE(dida::bank_update_cuda(update, scratch, nullptr) == cudaSuccess);
#endif
  return result;
}

void check(const Shape& s, bool cuda) {
  std::mt19937 random(0);
  std::vector<int32_t> label(s.B * s.H * s.W);
  std::vector<uint8_t> boundary(label.size());
  std::vector<char> present(s.classes + 1, false);
  for (int32_t& x : label) {
    const int32_t c = static_cast<int32_t>(random() % (s.classes + 1));
    x = c == s.classes ? 255 : c;
    if (c < s.classes) present[c] = true;
  }
  for (uint8_t& x : boundary) x = random() % 3 == 0;
  std::vector<float> embed(s.B * s.D * s.h * s.w, 2.0f);

  const std::vector<int32_t> ignored(label.size(), 255);
  for (const float x : updated(s, embed, ignored, boundary, cuda)) REQUIRE(x == -1.0f);

  if (!cuda) {
    const std::vector<float> constant = updated(s, embed, label, boundary, false);
    for (int64_t i = 0; i < s.K * s.D; ++i) {
      const float expected = present[i / s.D % (s.classes + 1)] ? 2.0f : -1.0f;
      REQUIRE(std::fabs(constant[i] - expected) < 1e-6f);
    }
    return;
  }
  for (float& x : embed) x = std::normal_distribution<float>()(random);
  const std::vector<float> expected = updated(s, embed, label, boundary, false);
  const std::vector<float> result = updated(s, embed, label, boundary, true);
  for (int64_t i = 0; i < s.K * s.D; ++i) REQUIRE(std::fabs(result[i] - expected[i]) < 1e-6f);
}

}  // namespace

int main() {
#ifdef DIDA_CUDA_ON_CPU
  for (size_t i = FIRST_ON_CUDA; i < std::size(SHAPES); ++i) check(SHAPES[i], true);
#else
  for (const Shape& shape : SHAPES) check(shape, false);
#endif
}
