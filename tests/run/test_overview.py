"""What stands at the top of a run: what it needs, and what may have been chosen badly."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dida import recipes
from dida.assemble import assemble, build_method
from dida.config import Config, changed
from dida.data.classes import CITYSCAPES_CLASSES
from dida.machine.distributed import World, part_of
from dida.models.segmentor import Segmentor
from dida.models.whole_batch import over_all_processes
from dida.precision import in_bfloat16
from dida.run.overview import Need, flops_a_second, overview, step_need
from tests.data.factories import make_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def student() -> Segmentor:
    return Segmentor("mit_b0", 5, 16).train()


def config(**options) -> Config:
    return changed(recipes.dida(Config()), crop=64, feature_weight=0.0, **options)


def need(config: Config, student: Segmentor, computing: nn.Module | None = None) -> Need:
    """Of a step of the config's own method."""
    passes = len(build_method(config, CITYSCAPES_CLASSES).target_passes)
    return step_need(config, student, computing or student, target_passes=passes)


def test_the_need_of_a_step_is_what_was_counted_for_the_papers_network():
    """bench/results/counted: the whole step without the instance level, allocation by allocation."""
    counted = json.loads((ROOT / "bench/results/counted/bank_memory.json").read_text())["rest"]["peak"]
    student = Segmentor("mit_b5").train()
    assert need(Config(), student).memory == pytest.approx(counted, rel=0.1)


def test_passes_and_networks_add_up(student):
    """Trained twice (a backward costs two forwards) and asked once as the teacher; source-only is trained once."""
    dida, source = need(config(), student), need(changed(config(), self_training=False), student)
    assert dida.flops / source.flops == pytest.approx(7 / 3)
    more = need(changed(config(), feature_weight=1.0), student)
    assert more.flops / source.flops == pytest.approx(8 / 3)
    weights = sum(p.numel() * 4 for p in student.parameters())
    assert more.memory - dida.memory == dida.memory - source.memory == weights
    twice = step_need(config(), student, student, target_passes=2)
    assert twice.flops / source.flops == pytest.approx(10 / 3)
    assert twice.memory == dida.memory  # a pass takes its gradient before the next begins


class Unasked(World):
    """Of two processes, on whatever device: asking the other one about shapes would fail on some."""

    size = 2

    def mine(self, whole: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return part_of(whole, 0, self.size, dim)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a count of shapes asked another process")


def test_the_need_of_one_of_several_processes_is_counted_by_itself():
    student = Segmentor("tf_efficientnet_lite0", 5, 16).train()
    alone = need(config(), student)
    over_all_processes(student, Unasked())
    assert need(config(), student).memory == pytest.approx(alone.memory, rel=0.01)
    assert need(config(), student).flops == alone.flops
    assert all(module.training for module in student.modules())


def test_what_is_kept_grows_with_the_batch(student):
    two, four, eight = (need(config(batch_size=n), student) for n in (2, 4, 8))
    assert eight.memory - four.memory == 2 * (four.memory - two.memory) > 0
    assert four.flops == 2 * two.flops


def test_half_of_the_bytes_are_kept_in_bfloat16(student):
    """Of the maps; weights, moments and the teacher stay as they are, and copies come on top of them."""
    batches = [config(batch_size=n) for n in (2, 4)]
    (two, four), (fp32_two, fp32_four) = (
        [need(each, student, computing).memory for each in batches] for computing in (in_bfloat16(student), student)
    )
    assert four - two == pytest.approx((fp32_four - fp32_two) / 2, rel=0.1)
    copies = 1.5 * sum(p.numel() * 4 for p in student.parameters())
    assert two - (four - two) == pytest.approx(fp32_two - (fp32_four - fp32_two) + copies, rel=0.05)


def test_counting_changes_nothing(student):
    before, drawn = {k: v.clone() for k, v in student.state_dict().items()}, torch.get_rng_state()
    need(config(), student)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is None for p in student.parameters())


def lines(tmp_path, *more: str, size: tuple[int, int] = (96, 64)) -> dict[str, list[str]]:
    """The overview of a run on own folders, by the word that a line begins with."""
    own = make_folder(tmp_path / "own", 3, size)
    args = ("--src", f"folder:{own}", "--tgt", f"folder:{own / 'images'}", "--backbone", "mit_b0", "--weights", "none",
            "--embed-dim", "16", "--crop", "64", "--device", "cpu")  # fmt: skip
    config = recipes.from_command_line([*args, *more])
    said: dict[str, list[str]] = {}
    for line in overview(config, assemble(config)):
        word, _, rest = line.partition(" ")
        said.setdefault(word, []).append(rest.strip())
    return said


def test_what_was_chosen_is_said(tmp_path):
    said = lines(tmp_path, "--steps", "80")
    assert said["device"][0].startswith("cpu (")
    assert said["source"] == said["target"] == ["3 pictures of 96x64, seen at 96x64"]
    assert said["classes"][0].startswith("19: road, sidewalk, ")
    assert said["network"][0].startswith("mit_b0, 3.")
    assert said["schedule"] == ["80 steps, warm-up 3; bank of 300 used from step 3"]
    assert "at least" not in said["needs"][0]  # of a short run it would say nothing
    assert said["numbers"] == ["fp32, auto: the CPU has no TF32"]
    assert "hint" not in said


def test_memory_is_said_as_the_run_will_count_it(tmp_path, monkeypatch):
    """On a CPU `mem` is all that is resident, PyTorch too; there, 0.1 GiB stood above a run of 1.1."""
    monkeypatch.setattr("dida.run.overview.peak_memory", lambda device: 5 * 2**30)
    (said,) = lines(tmp_path, "--steps", "80")["needs"]
    assert said == "about 5.1 GiB, with PyTorch itself"


def test_a_crop_that_is_larger_than_the_pictures_is_said(tmp_path):
    said = lines(tmp_path, "--crop", "128")["hint"]
    padding = 1 - 96 * 64 / 128**2
    assert said == [f"--crop 128 is larger than pictures of the {name}: {padding:.0%} is padding; --crop 64 fits"
                    for name in ("source", "target")]  # fmt: skip


def test_of_several_processes_the_need_of_one_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("dida.run.overview.flops_a_second", lambda device, dtype: 1e6)
    monkeypatch.setattr("dida.run.overview.peak_memory", lambda device: 0)
    alone = lines(tmp_path, "--batch-size", "2")
    monkeypatch.setattr(World, "size", 2)
    monkeypatch.setattr(World, "mine", lambda world, whole, dim=0: part_of(whole, world.rank, world.size, dim))
    two = lines(tmp_path, "--batch-size", "4")
    assert two["needs"] == alone["needs"] != lines(tmp_path, "--batch-size", "2")["needs"]
    assert "4 + 4 crops" in two["a"][0]


def test_a_run_of_days_is_said(tmp_path, monkeypatch):
    assert flops_a_second(torch.device("cpu"), torch.float32) > 1e8
    monkeypatch.setattr("dida.run.overview.flops_a_second", lambda device, dtype: 1e6)
    said = lines(tmp_path, "--steps", "1000000")
    assert "days on this device" in said["needs"][0]
    assert said["hint"][0].startswith("that is long: fewer --steps")
