"""N processes that share a batch do what one does with all of it, to rounding, in every method."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dida.assemble import assemble, join
from dida.config import Config
from dida.data.loader import batches
from dida.machine.distributed import joined
from dida.method import feature_distance
from dida.models import mit
from dida.step import train_step
from tests.machine.several import config_of, make_files
from tests.processes import Processes

CLIPPED = 0.5  # the norm of a gradient; that of almost every step is larger
METHODS: dict[str, dict[str, Any]] = {
    "source": {"method": "source"},
    "dacs": {"method": "dacs", "teacher_momentum": 0.99, "ignore_bottom": 64},
    "daformer": {"method": "daformer"},
    "dida": {"method": "dida", "instance_weights": "all", "instance_weight": 1.0},
    "dida-balanced": {"method": "dida", "instance_weights": "balanced", "instance_weight": 1.0},
    "dida-other": {
        "method": "dida", "weak_view": "photometric", "mix_classes": "image", "pseudo_weight": "image",
        "teacher_norm": "averaged", "selecting": "km", "clusters": 2, "instance_loss": "stride4",
        "regenerate_instance": "smooth", "instance_weights": "root", "instance_prior": "both", "clip_gradient": CLIPPED,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return make_files(tmp_path_factory.mktemp("several"))


class Ran(NamedTuple):
    """What a run came to."""

    losses: list[dict[str, float]]  # means over processes, step by step
    norms: list[float]  # of the gradient
    tensors: dict[str, Tensor]  # parameters and buffers of student, teacher, bank and shares after the last


def run(config: Config, dtype: torch.dtype, *, fixed_norms: bool = False) -> Ran:
    """All steps from the files on disk, in each process of a world. `fixed_norms`: batch norms do not look at them."""
    torch.set_default_dtype(dtype)
    feature_distance.MIN_SHARE = 0.2  # things in small crops: one is a cell of the deepest stage
    with joined() as world:
        parts = join(assemble(config, world))
        state, losses, norms, steps = parts.state, [], [], config.optim.steps
        move_away(state.student)
        for module in (*state.student.modules(), *state.teacher.modules()):
            if isinstance(module, nn.BatchNorm2d) and fixed_norms:
                module.eval()
        stream = batches(parts.pairs, batch_size=4, start=0, stop=steps, workers=0, device=parts.device, world=world)
        for batch, _ in stream:
            trace = train_step(state, batch, parts.method)
            losses.append({name: float(world.mean(loss)) for name, loss in trace.losses.items()})
            norms.append(float(trace.gradient_norm))
            if state.step % 5 == 0 or state.step == steps:
                world.require_same(state.tensors(), f"after step {state.step}")
        return Ran(losses, norms, {name: tensor.clone() for name, tensor in state.tensors()})


@torch.no_grad()
def move_away(student: nn.Module) -> None:
    """From ImageNet's weights: where a distance to them is 0 but for rounding, its gradient is rounding of length 1."""
    generator = torch.Generator().manual_seed(5)
    for parameter in student.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    "method, dtype, sizes",
    [
        *((method, torch.float64, (2, 4)) for method in METHODS if method != "dida-other"),
        ("dida-other", torch.float64, (2,)),
        ("dida", torch.float32, (2,)),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_n_processes_are_one_with_the_whole_batch(files, tmp_path, method, dtype, sizes):
    config, bound = config_of(files, **METHODS[method]), {torch.float64: 1e-9, torch.float32: 1e-5}[dtype]
    (one,) = Processes(1, tmp_path / "1", run, config, dtype).results
    for size in sizes:
        several = Processes(size, tmp_path / str(size), run, config, dtype).results
        assert len(several) == size
        for step, (expected, losses) in enumerate(zip(one.losses, several[0].losses, strict=True)):
            assert losses == pytest.approx(expected, rel=bound, abs=1e-12), f"{size} processes, step {step}"
        for part in ("student", "teacher", "bank", "shares"):
            assert distance(one, several[0], part) < bound, (size, part)
        for other in several[1:]:
            assert all(torch.equal(other.tensors[name], tensor) for name, tensor in several[0].tensors.items())
    terms = {"source": 1, "feature": 1, "target": method != "source", "instance": "dida" in method}
    for term, there in terms.items():
        assert any(losses.get(term, 0) > 0 for losses in one.losses) == there, term  # or nothing was compared


@pytest.mark.parametrize("method", ["dida-balanced", "dida-other"])
def test_processes_with_parts_are_one_with_the_whole_batch(files, tmp_path, method):
    """Two processes, each of which sees its two pictures one after the other: batch norm apart, one that sees four."""
    short = {"steps": 8, "bank_start": 3, "bank_fill": 2, "drop_path": 0.3}
    configs = [config_of(files, **METHODS[method], **short, accumulate=parts) for parts in (1, 2)]
    work = partial(run, dtype=torch.float64, fixed_norms=True)
    runs = [Processes(n, tmp_path / str(n), work, config) for n, config in zip((1, 2), configs, strict=True)]
    (one,), several = (ran.results for ran in runs)
    for expected, *losses in zip(one.losses, *(ran.losses for ran in several), strict=True):
        assert losses == [pytest.approx(expected, rel=1e-9, abs=1e-12)] * 2
    for part in ("student", "teacher", "bank", "shares"):
        assert distance(one, several[0], part) < 1e-9, part
    assert all(any(losses[term] > 0 for losses in one.losses) for term in ("source", "feature", "target", "instance"))
    assert several[0].norms == several[1].norms == pytest.approx(one.norms, rel=1e-9)
    assert min(one.norms) > CLIPPED


def test_in_bfloat16_processes_are_one_to_its_rounding_and_equal_each_other(files, tmp_path):
    config = config_of(files, **METHODS["dida"], precision="bf16")
    (one,), several = (Processes(n, tmp_path / str(n), run, config, torch.float32).results for n in (1, 2))
    for expected, losses in zip(one.losses, several[0].losses, strict=True):
        assert losses == pytest.approx(expected, rel=0.05, abs=0.005)
    for part in ("student", "teacher", "bank"):
        assert distance(one, several[0], part) < 0.01, part
    assert all(torch.equal(several[1].tensors[name], tensor) for name, tensor in several[0].tensors.items())


def test_compiled_processes_are_one_that_is_not(files, tmp_path):
    """Gradients that come out of compiled blocks are averaged as all others are."""
    config = config_of(files, **METHODS["dida"], steps=8, bank_start=3, bank_fill=2)
    works = partial(run, dtype=torch.float64), partial(run_compiled, dtype=torch.float64)
    (one,), several = (
        Processes(n, tmp_path / str(n), work, config).results for n, work in zip((1, 2), works, strict=True)
    )
    for expected, *losses in zip(one.losses, *(ran.losses for ran in several), strict=True):
        assert losses == [pytest.approx(expected, rel=1e-9, abs=1e-12)] * 2
    assert all(distance(one, several[0], part) < 1e-9 for part in ("student", "teacher", "bank", "shares"))


def run_compiled(config: Config, dtype: torch.dtype) -> Ran:
    """With blocks that are traced, but not made faster, which would take a minute."""
    mit.COMPILER = "aot_eager"
    ran = run(replace(config, speed=replace(config.speed, compile=True)), dtype)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return ran


def distance(one: Ran, other: Ran, part: str) -> float:
    """Euclidean, between all numbers of a part, relative to their norm."""
    pairs = [(one.tensors[name], other.tensors[name]) for name in one.tensors if name.startswith(part)]
    squares = [((a - b).double().square().sum(), a.double().square().sum()) for a, b in pairs]
    difference, norm = (math.fsum(values) for values in zip(*squares, strict=True))
    return math.sqrt(difference / norm)
