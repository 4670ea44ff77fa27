"""The sorted bank: places, class starts and unit rows are those of PyTorch's own functions."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import dida_kernels
from dida_kernels.equations import unit
from tests.cases import SCENES, call
from tests.kernels.agreement import device_of, refusal

pytest.importorskip("triton")
from triton.runtime.interpreter import InterpretedFunction

from dida_kernels.fused import banks
from dida_kernels.fused.banks import sort_bank

DEVICE = device_of("triton")
SIZES = {
    "one_slot": (1, 3, 2),
    "a_block": (32, 8, 3),
    "more_than_a_block": (77, 300, 5),
    "fewer_than_classes": (7, 4, 40),
}


def bank_of(slots: int, channels: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(slots)
    bank_KD = torch.randn(channels, slots, generator=made).T  # rows that are not contiguous
    return bank_KD.to(DEVICE), torch.randint(0, classes, (slots,), generator=made).to(DEVICE)


@pytest.mark.parametrize("counted", [0, banks.COUNTED], ids=["sorted", "counted"])
@pytest.mark.parametrize("size", SIZES)
def test_slots_stand_as_a_stable_sort_puts_them(size, counted, monkeypatch):
    monkeypatch.setattr(banks, "COUNTED", counted)
    *_, classes = SIZES[size]
    bank_KD, label_K = bank_of(*SIZES[size])
    bank = sort_bank(bank_KD, label_K, classes)
    sorted_K, order_K = label_K.sort(stable=True)
    assert torch.equal(bank.label_K, sorted_K)
    assert torch.equal(bank.order_K, order_K)
    starts_C1 = torch.searchsorted(sorted_K, torch.arange(classes + 1, device=DEVICE))
    assert torch.equal(bank.start_C1, starts_C1.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rows_are_normalised_in_float32_and_rounded_once(size, dtype):
    *_, classes = SIZES[size]
    bank_KD, label_K = bank_of(*SIZES[size])
    bank = sort_bank(bank_KD, label_K, classes)
    true_KD = unit(bank_KD[bank.order_K].double())
    half_an_ulp = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(bank.unit_rows(0, len(label_K), dtype).double(), true_KD, rtol=1.01 * half_an_ulp + 4e-7,
                               atol=1e-7)  # fmt: skip


def test_a_range_of_rows_is_a_part_of_all():
    bank_KD, label_K = bank_of(77, 300, 5)
    bank = sort_bank(bank_KD, label_K, 5)
    assert torch.equal(bank.unit_rows(30, 61, torch.float32), bank.unit_rows(0, 77, torch.float32)[30:61])


def test_a_row_without_a_direction_is_zero_and_what_is_no_number_stays():
    bank_KD, label_K = bank_of(7, 4, 2)
    bank_KD = bank_KD.clone()
    bank_KD[0], bank_KD[1], bank_KD[2, 1] = 0.0, 1e-13, float("nan")
    bank = sort_bank(bank_KD, label_K, 2)
    place = {int(slot): i for i, slot in enumerate(bank.order_K)}
    rows = bank.unit_rows(0, 7, torch.float32)
    assert not rows[place[0]].any()
    assert not rows[place[1]].any()
    assert rows[place[2]].isnan().all()


@pytest.mark.skipif(DEVICE != "cpu", reason="watched in the interpreter")
@pytest.mark.parametrize("scene", ["ordinary", "same_grid"])
@pytest.mark.parametrize("op", sorted(dida_kernels.OPS))
def test_every_kernel_is_launched_on_the_device_of_its_tensors(op, scene, monkeypatch):
    """Whatever the current device is: of a run's processes each has another."""
    guards = []

    @contextmanager
    def guard(tensor: torch.Tensor) -> Iterator[None]:
        guards.append(tensor.device)
        yield
        guards.pop()

    def guarded(kernel, *args, **options):
        assert guards, f"{kernel.fn.__name__} is launched on the current device"
        return run(kernel, *args, **options)

    run = InterpretedFunction.run
    monkeypatch.setattr(torch.cuda, "device_of", guard)
    monkeypatch.setattr(InterpretedFunction, "run", guarded)
    made = call(op, SCENES[scene])
    if (why := refusal(op, "triton", made)) is not None:
        pytest.skip(why)
    with dida_kernels.backend("triton"):
        getattr(dida_kernels, op)(*made.args, **made.options)
