// Bilinear upsampling along one axis (align_corners=False) in whole numbers, shared by the CPU and the CUDA kernel.
//
// With g = gcd(nodes, pixels), n = nodes / g, p = pixels / g, pixel x lies at (x + 1/2) n / p - 1/2 between the nodes.
// In units of 1 / 2p that is the integer (2x + 1) n - p, clamped to the first and the last node, and the pixel's
// weight on node j falls linearly from 2p, at the node, to 0, at its neighbours. So for every scale, integer or not,
// weights are exact integers that sum to 2p per pixel, and sums of them do not depend on their order.
#pragma once

#include <cstdint>
#include <numeric>

#ifdef __CUDACC__
#define DIDA_HOST_DEVICE __host__ __device__
#else
#define DIDA_HOST_DEVICE
#endif

namespace dida {

struct Axis {
  int32_t nodes, pixels, n, p;

  Axis(int64_t nodes, int64_t pixels)
      : nodes(static_cast<int32_t>(nodes)),
        pixels(static_cast<int32_t>(pixels)),
        n(static_cast<int32_t>(nodes / std::gcd(nodes, pixels))),
        p(static_cast<int32_t>(pixels / std::gcd(nodes, pixels))) {}

  // The distance between two nodes, which is also the sum of a pixel's weights.
  DIDA_HOST_DEVICE int32_t unit() const { return 2 * p; }

  DIDA_HOST_DEVICE int32_t position(int32_t pixel) const {
    const int32_t at = (2 * pixel + 1) * n - p, last = (nodes - 1) * unit();
    return at < 0 ? 0 : at < last ? at : last;
  }

  // Of a pixel in begin(node) .. end(node) - 1; those are the pixels with a weight on the node.
  DIDA_HOST_DEVICE int32_t weight(int32_t pixel, int32_t node) const {
    const int32_t distance = position(pixel) - node * unit();
    return unit() - (distance < 0 ? -distance : distance);
  }

  DIDA_HOST_DEVICE int32_t begin(int32_t node) const {
    if (node == 0) return 0;
    const int32_t first = (node * unit() - p + n) / (2 * n);  // right of node - 1
    return first < pixels ? first : pixels;
  }

  DIDA_HOST_DEVICE int32_t end(int32_t node) const {
    if (node == nodes - 1) return pixels;
    const int32_t first = (node * unit() + 3 * p + n - 1) / (2 * n);  // at node + 1, or right of it
    return first < pixels ? first : pixels;
  }
};

// Whether positions and the weights of one pixel fit 32 bits, in which a GPU divides and adds several times faster than
// in 64. An integer scale fits in images up to 2^28 pixels.
inline bool upsampling_fits(int64_t h, int64_t w, int64_t H, int64_t W) {
  constexpr int64_t LIMIT = 1 << 28;
  const int64_t p_y = H / std::gcd(h, H), p_x = W / std::gcd(w, W);
  return h < LIMIT && w < LIMIT && H < LIMIT && W < LIMIT && p_y * h < LIMIT && p_x * w < LIMIT && p_y * p_x < LIMIT;
}

}  // namespace dida
