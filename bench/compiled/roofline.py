"""The calculated floor of a launch: what its bytes, exponentials, instructions and products take at the least.

Rates are what such a GPU reaches in practice on kernels that do nothing else, not the data sheet's: a memory copy, a
large matrix product, a loop of EX2 at the boost clock. A floor made of them can be approached, not beaten.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bench.compiled.launches import Launch
from bench.meter import Operation


class Device(NamedTuple):
    """One GPU; rates in units per second."""

    name: str
    sms: int
    clock: float
    bandwidth: float  # bytes
    tensor: float  # FLOPs of bfloat16 products
    fp32_lanes: int  # of an SM

    @property
    def exponentials(self) -> float:
        return self.sms * 16 * self.clock

    @property
    def instructions(self) -> float:
        """Of a warp; four schedulers issue one each a clock."""
        return self.sms * 4 * self.clock

    def products(self, dtype: torch.dtype | None) -> float:
        """FLOPs of a matrix product of this dtype. float32 is multiplied exactly, outside the tensor cores."""
        return 0.8 * 2 * self.sms * self.fp32_lanes * self.clock if dtype == torch.float32 else self.tensor


DEVICES = {  # by compute capability: what kernels are compiled and budgeted for
    80: Device("A100", 108, 1.41e9, 1555e9 * 0.88, 312e12 * 0.75, 64),
    86: Device("RTX 3090", 82, 1.695e9, 936e9 * 0.88, 71e12 * 0.80, 128),
    90: Device("H200", 132, 1.83e9, 4.3e12, 790e12 * 0.75, 128),
}
# Nominal, unlike the H200's: its data sheet's bandwidth times what memory copies usually reach of it, and its boost
# clock. The matrix units are the H200's.
H100 = Device("H100 SXM", 132, 1.98e9, 3.35e12 * 0.9, 790e12 * 0.75, 128)

# What is in the name that the driver gives a card of these rates; its sisters with other memory have other names.
BY_NAME = {
    "A100-SXM4-40GB": DEVICES[80],
    "RTX 3090": DEVICES[86],
    "H100 80GB HBM3": H100,
    "H200": DEVICES[90],
}


def rates_of(name: str) -> Device | None:
    """The rates of the GPU that torch.cuda.get_device_name() calls so; None where they are not known."""
    return next((device for part, device in BY_NAME.items() if part in name), None)


class Work(NamedTuple):
    exponentials: int
    flops: int


def _per_slot_and_pixel(streams: int) -> Callable[[dict[str, Any]], Work]:
    def work(x: dict[str, Any]) -> Work:
        return Work(streams * x["n_cell"] * x["S"] ** 2 * (x["i_stop"] - x["i_first"]), 0)

    return work


def _streamed_loss(x: dict[str, Any]) -> Work:
    slots = x["p_bias"].bytes // x["p_bias"].dtype.itemsize
    products = 5 if x["NEED_GRAD"] else 2
    return Work(2 * x["N"] * slots * (1 + x["NEED_GRAD"]), products * 2 * x["N"] * slots * x["D"])


# What a kernel does beyond moving its tensors. The others only move them.
WORK: dict[str, Callable[[dict[str, Any]], Work]] = {
    "_loss_fwd": _per_slot_and_pixel(2),
    "_loss_bwd": _per_slot_and_pixel(2),
    "_class_sums": _per_slot_and_pixel(1),
    "_rows_loss": _streamed_loss,
    "_bank_similarity_fwd": lambda x: Work(2 * x["N"] * x["K"], 4 * x["N"] * x["K"] * x["D"]),
    "_bank_similarity_bwd": lambda x: Work(0, 2 * x["N"] * x["K"] * x["D"]),
}


def work(launch: Launch) -> Work:
    return WORK[launch.name](launch.bound()) if launch.name in WORK else Work(0, 0)


def bounds(launch: Launch, device: Device, measured: dict[str, int] | None = None) -> dict[str, float]:
    """Seconds by resource. With what the budget measured of the code, also the issue slots of its hot loop."""
    done = work(launch)
    found = {"bytes": launch.bytes() / device.bandwidth}
    if done.exponentials:
        found["MUFU"] = done.exponentials / device.exponentials
    if done.flops:
        factors = launch.bound().get("p_rows") or launch.bound()["p_embed"]
        found["MMA"] = done.flops / device.products(factors.dtype)
    if measured and measured["ex2_in_hot_loop"] and done.exponentials:
        iterations = done.exponentials / (32 * measured["ex2_in_hot_loop"])
        found["issue"] = iterations * measured["hot_loop"] / device.instructions
    return found


def floor(launches: list[Launch], steps: list[Operation], device: Device) -> float:
    """Seconds of a whole call: its kernels and its PyTorch operations one after the other."""
    kernels = sum(max(bounds(launch, device).values()) for launch in launches)
    return kernels + sum(max(x.bytes / device.bandwidth, x.flops / device.products(x.dtype)) for x in steps)
