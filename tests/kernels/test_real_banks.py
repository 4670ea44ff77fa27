"""Banks of a real training run: embeddings as networks make them, not as random numbers are.

DIDA_BANKS names the folder; each file holds `features` [K, 256] and `labels` [K]. Without it these tests are skipped.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dida_kernels
from tests.cases import Call
from tests.kernels.agreement import assert_agrees, device_of

FOLDER = Path(os.environ.get("DIDA_BANKS", Path(__file__).parents[3] / "shared" / "data" / "banks"))
FILES = sorted(FOLDER.glob("*.npz"))
CLASSES = 19

needs_banks = pytest.mark.skipif(not FILES, reason="no banks of a real run (DIDA_BANKS)")


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files or [None], ids=lambda file: file.stem if file else "none")


def load(file: Path, slots: int | None = None) -> tuple[Tensor, Tensor]:
    with np.load(file) as stored:
        bank_KD, label_K = torch.from_numpy(stored["features"]).float(), torch.from_numpy(stored["labels"]).long()
    spread = torch.linspace(0, len(bank_KD) - 1, slots or len(bank_KD)).long()
    return bank_KD[spread], label_K[spread]


def near_real_rows(bank_KD: Tensor, hw: tuple[int, int], noise: float, rng: torch.Generator) -> Tensor:
    """[2, D, h, w]: rows of the bank with noise, rectified as the network's features are."""
    row_Bhw = torch.randint(len(bank_KD), (2, *hw), generator=rng)
    rows_BhwD = bank_KD[row_Bhw]
    noisy_BhwD = rows_BhwD + noise * rows_BhwD.std() * torch.randn(rows_BhwD.shape, generator=rng)
    return noisy_BhwD.relu().permute(0, 3, 1, 2).contiguous()


def loss_call(bank_KD: Tensor, label_K: Tensor, hw: tuple[int, int], stride: int) -> Call:
    rng = torch.Generator().manual_seed(len(bank_KD))
    HW = (hw[0] * stride, hw[1] * stride)
    z_BCHW = (3 * torch.randn(2, CLASSES, *HW, generator=rng)).softmax(1)
    weight_BHW = (torch.rand(2, *HW, generator=rng) > 0.3).float()
    student, teacher = (near_real_rows(bank_KD, hw, noise, rng) for noise in (1.0, 0.5))
    return Call((student, teacher, z_BCHW, weight_BHW, bank_KD, label_K), {"temperature": 0.1})


def agree(name: str, made: Call) -> None:
    made = Call(tuple(x.to(device_of(name)) for x in made.args), made.options)
    assert_agrees("instance_loss", name, made)
    _, teacher, z, _, bank, label_K = made.args
    options = made.options | {"classes": z.shape[1], "size": tuple(z.shape[2:])}
    assert_agrees("class_similarity", name, Call((teacher, bank, label_K), options))


@needs_banks
@each(FILES)
def test_chunked_agrees_on_a_real_bank(file):
    bank_KD, label_K = load(file)
    assert (bank_KD >= 0).all()
    assert label_K.max() < CLASSES
    agree("chunked", loss_call(bank_KD, label_K, hw=(8, 8), stride=4))


@needs_banks
@each(FILES[:1])
def test_triton_agrees_on_slots_of_a_real_bank(file):
    """In the interpreter a few slots and channels have to do; they still have real lengths and angles."""
    interpreted = device_of("triton") == "cpu"
    bank_KD, label_K = load(file, slots=16 if interpreted else None)
    made = loss_call(bank_KD[:, ::8] if interpreted else bank_KD, label_K, hw=(1, 2), stride=4)
    for op in ("instance_loss", "class_similarity"):
        if "triton" not in dida_kernels.OPS[op].backends:
            pytest.skip(f"{op}: {dida_kernels.OPS[op].why_not('triton')}")
    agree("triton", made)
