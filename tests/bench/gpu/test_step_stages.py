"""The stages of the step on a tiny network: rows have their numbers, and a variant changes how, never what."""

import json
from contextlib import suppress

import pytest
import torch
from torch.autograd import DeviceType

from bench.gpu import step_cost, step_precision, step_variants, watching
from bench.gpu.step_parts import WORKLOADS, batch_on, contenders_of
from bench.gpu.step_precision import compared
from bench.gpu.step_variants import VARIANTS, Rows, Variant, graphed, modules_of
from bench.gpu.watching import profiled
from bench.step import STAGES
from dida.models.mit import MixFFN
from tests.bench.gpu.stage_files import program

CPU = torch.device("cpu")
TINY = WORKLOADS["cpu"]


@pytest.fixture(scope="module")
def dida():
    return contenders_of(TINY, CPU)[1]


@pytest.fixture(scope="module")
def batch():
    return batch_on(CPU, TINY.crop)


def test_what_dida_costs(tmp_path):
    """In the precisions that are asked for and are there: a CPU has no TF32."""
    asked = ["--precision", "tf32", "bf16", "--compile"]
    assert step_cost.main(["--device", "cpu", *asked, "--to", str(tmp_path / "cost.json")]) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    assert [(row["method"], row["K"], row["precision"], row["compiled"]) for row in found["rows"]] == [
        ("daformer", 0, "bf16", True), ("dida", 20, "bf16", True),
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row["stages"]) == set(STAGES)
        assert row["steps"] == step_cost.TURNS * TINY.steps
    assert found["rows"][0]["more_bytes"] == 0 < found["rows"][1]["more_bytes"]
    assert found["setting"]["crop"] == 64


def test_a_step_is_compared_with_that_of_float32(tmp_path, monkeypatch, dida):
    monkeypatch.setattr(step_precision, "contenders_of", lambda workload, device: [None, dida])
    teacher = {name: x.clone() for name, x in dida.state.teacher.state_dict().items()}
    assert step_precision.main(["--device", "cpu", "--to", str(tmp_path / "precision.json")]) == 0
    fp32, bf16 = json.loads((tmp_path / "precision.json").read_text())["rows"]
    assert max(fp32["off"].values()) == 0 < max(bf16["off"].values())
    assert fp32["gradient_cosine"] > bf16["gradient_cosine"]
    assert all(torch.equal(x, teacher[name]) for name, x in dida.state.teacher.state_dict().items())


def test_a_step_that_is_too_far_off_is_red():
    gradient = torch.tensor([1.0, 0.0])
    exact = {"source": 2.0, "target": 0.0}, gradient
    for losses, other in (({"source": 2.05, "target": 0.0}, gradient), (exact[0], torch.tensor([1.0, 0.5]))):
        assert compared("bf16", exact, exact)["holds"]
        assert not compared("bf16", exact, (losses, other))["holds"]


def test_variants_are_measured(tmp_path, monkeypatch, dida):
    monkeypatch.setattr(step_variants, "VARIANTS", VARIANTS[:1])
    monkeypatch.setattr(step_variants, "contenders_of", lambda workload, device: [None, dida])
    assert step_variants.main(["--device", "cpu", "--to", str(tmp_path / "variants.json")]) == 0
    (row,) = json.loads((tmp_path / "variants.json").read_text())["rows"]
    assert row["name"] == "float32"
    assert row["why"] is None
    assert 0 < row["host_ms"] <= row["wall_ms"]
    assert row["images_per_second"] == pytest.approx(4e3 / row["stream_ms"], rel=0.01)


def test_a_variant_is_applied_and_taken_back(dida):
    """What it says is on inside and off behind, also behind an error."""
    group = dida.state.optimizer.param_groups[0]
    seen = []
    precision = torch.get_float32_matmul_precision()
    everything = Variant("all", "bf16", foreach=True, contiguous=True, benchmark=True)
    with suppress(ZeroDivisionError), everything.applied(dida) as applied:
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"  # what the kernels ask
        assert torch.backends.cudnn.benchmark
        assert group["foreach"]
        ffn = next(m for m in modules_of(applied) if isinstance(m, MixFFN))
        assert ffn.fc1.weight.dtype == torch.bfloat16
        hook = ffn.dwconv.register_forward_pre_hook(lambda m, x: seen.append(x[0].is_contiguous()))
        x = torch.zeros(1, ffn.fc1.in_features, 4, 4, dtype=torch.bfloat16).flatten(2).transpose(1, 2)
        ffn(x, (4, 4))
        _ = 1 / 0
    hook.remove()
    assert torch.get_float32_matmul_precision() == precision
    assert not torch.backends.cudnn.benchmark
    assert not group["foreach"]
    assert len(ffn.dwconv._forward_pre_hooks) == 0
    assert seen == [True]


def test_a_profile_sums_by_kernel():
    found = profiled(lambda: torch.ones(64, 64) @ torch.ones(64, 64), DeviceType.CPU)
    assert found["launches"] >= 1
    assert found["device_ms"] > 0
    names = {name: count for name, _, count in found["kernels"]}
    assert names["aten::mm"] == 1


def test_a_profiler_that_fails_costs_no_time(monkeypatch):
    def broken(**options):
        raise RuntimeError("CUPTI is not there")

    monkeypatch.setattr(watching, "profile", broken)
    assert profiled(lambda: None, DeviceType.CPU) == {"profile": "RuntimeError: CUPTI is not there"}


def test_a_graph_is_timed_beside_the_eager_encoder(dida, batch):
    """With a graph that is none: what is captured needs a GPU."""
    replays = []

    def as_graph(encoder, inputs):
        """As PyTorch's: the module that is given has another forward behind it."""
        forward = encoder.forward

        def replay(image):
            replays.append(image)
            return forward(image)

        encoder.forward = replay
        return encoder

    row = graphed(dida, batch.source.image, torch.float32, 1, as_graph)
    assert {"eager_stream_ms", "graph_stream_ms"} <= row.keys()
    assert len(replays) == 2 + 2  # to warm up, and of the two times: none of the eager ones


def test_a_row_that_fails_costs_no_other(tmp_path):
    rows = Rows(program(tmp_path), {})
    rows.add("broken", lambda: 1 / 0)
    rows.add("whole", lambda: {"wall_ms": 1.0})
    assert rows.status() == 1
    written = json.loads((tmp_path / "stage.json").read_text())["rows"]
    assert [(row["name"], row["why"]) for row in written] == [
        ("broken", "ZeroDivisionError: division by zero"), ("whole", None),
    ]  # fmt: skip
    late = Rows(program(tmp_path, seconds=1), {})
    late.add("late", lambda: {"wall_ms": 1.0})
    assert late.rows == [{"name": "late", "why": "not tried, the time was up"}]
