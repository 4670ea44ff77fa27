"""Random numbers that are the same on every machine and under every NumPy.

NumPy keeps the raw stream of a bit generator and the hashing of a `SeedSequence` fixed, but not the methods
of `Generator` (NEP 19), and `normal` takes logarithms whose last bit depends on the CPU. So everything here
is made from raw 64-bit words with integer arithmetic and exactly rounded operations (+ - * /).
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

BYTES_PER_BELL = 4
BELL_DEVIATION = 147.8  # of a sum of four bytes, sqrt(4 * (256^2 - 1) / 12)


class Dice:
    """One picture's private stream of randomness, named by a few integers."""

    def __init__(self, *seed: int) -> None:
        self._words = np.random.PCG64(np.random.SeedSequence(seed))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high) from 32 random bits."""
        return low + (high - low) * ((int(self._words.random_raw()) >> 32) / 2**32)

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high)."""
        return low + (int(self._words.random_raw()) >> 32) * (high - low) // 2**32

    def chance(self, share: float) -> bool:
        """True in `share` of the throws."""
        return self.uniform(0, 1) < share

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[self.integer(0, len(options))]

    def bell(self, *shape: int) -> np.ndarray:
        """Float64 array, nearly normal with mean 0 and deviation 1: sums of four bytes, never beyond 3.5."""
        size = int(np.prod(shape))
        words = self._words.random_raw(-(-size * BYTES_PER_BELL // 8))
        # Little-endian on purpose: which byte comes first is part of the stream.
        octets = words.astype("<u8").view(np.uint8)[: size * BYTES_PER_BELL].astype(np.int16)
        first, *others = (octets[k::BYTES_PER_BELL] for k in range(BYTES_PER_BELL))
        total = sum(others, start=first)
        return ((total - 510) / BELL_DEVIATION).reshape(shape)
