"""The kernel bench on tiny inputs: every row has its numbers or says why not, and what is wrong is marked."""

import pytest
import torch

import dida_kernels
from bench import clocks, kernels
from tests.cases import MAIN, SCENES, call, resized

TINY = resized(MAIN, C=5, D=8, K=12, hw=(4, 4), HW=(16, 16))


def agrees(op, backend, dtype):
    return None


def test_every_op_has_a_size_on_a_cpu():
    assert set(kernels.CPU_SCENES) == set(dida_kernels.OPS)


@pytest.fixture
def tiny(monkeypatch):
    """Small inputs, few rounds, and no compiler."""
    monkeypatch.setattr(kernels, "CPU_SCENES", dict.fromkeys(dida_kernels.OPS, TINY))
    monkeypatch.setattr(clocks, "ROUNDS", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def test_a_row_for_every_way_size_and_dtype(tiny):
    dtypes = [torch.float32, torch.bfloat16]
    rows = kernels.survey_ops(["instance_loss", "boundary_mask"], dtypes, [12, 20], "cpu", agrees)
    keys = {(row["op"], row["dtype"], row["K"], row["way"]) for row in rows}
    assert len(keys) == len(rows)
    for dtype in ("float32", "bfloat16"):
        for slots in (12, 20):
            for way in ("equation", "torch.compile", "chunked"):
                assert ("instance_loss", dtype, slots, way) in keys
    assert {row["K"] for row in rows if row["op"] == "boundary_mask"} == {12}  # it knows no bank
    for row in rows:
        assert row["low"] <= row["median"] <= row["high"]
        assert row["why"] is None
        assert row["speedup"] == 1 if row["way"] == "equation" else row["speedup"] > 0
        assert (row["peak_bytes"] is None) == (row["way"] == "torch.compile")


def test_a_backend_that_is_wrong_is_marked(tiny):
    rows = kernels.survey_ops(["instance_loss"], [torch.float32], [12], "cpu", lambda *_: "it is red")
    doubted = {row["way"]: row["doubt"] for row in rows}
    assert doubted == {"chunked": "it is red", "equation": None, "torch.compile": None}
    lines = kernels.kernel_report({"header": {"device": "cpu"}, "rows": rows, "counted": []}).splitlines()
    assert [("chunked" in line) for line in lines if "DOUBTFUL: it is red" in line] == [True]


@pytest.mark.parametrize("op", dida_kernels.OPS)
def test_a_call_is_forward_and_backward(op):
    x = kernels.prepared(op, TINY, torch.float32, "cpu")
    found = kernels.run(dida_kernels.OPS[op].reference, x)
    assert len(found) == (1 if x.argument is None else 2)
    if x.argument is not None:
        leaf = x.made.args[x.argument]
        assert leaf.grad is None
        out = dida_kernels.OPS[op].reference(*x.made.args, **x.made.options)
        out.backward(x.arriving)
        torch.testing.assert_close(found[1], leaf.grad)


GATHER = kernels.empty_row("gather", torch.float32, SCENES["ordinary"], "triton", "launched")


def fails(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    "error, why",
    [
        (torch.OutOfMemoryError("tried to allocate"), "does not fit"),
        (SyntaxError("generated code\nline 3"), "SyntaxError: generated code"),
        (RuntimeError("operation not permitted when stream is capturing"), "RuntimeError: operation not permitted"),
    ],
)
def test_what_fails_is_a_row_without_numbers(error, why):
    row = kernels.measured(GATHER, fails(error))
    assert row["why"].startswith(why)
    assert (row["median"], row["peak_bytes"]) == (None, None)
    kernels.add_speedups([row])
    assert why in kernels.kernel_report({"header": {"device": "cuda"}, "rows": [row], "counted": []})


@pytest.fixture
def on_a_gpu(monkeypatch):
    """bench_cuda without a GPU: kernels are the chunked code under another name; the manner of every timing is kept."""
    prepare, replays = kernels.prepared, []
    monkeypatch.setattr(kernels, "prepared", lambda op, scene, dtype, device: prepare(op, TINY, dtype, "cpu"))
    monkeypatch.setattr(kernels, "backends", lambda op, made: ["triton"])
    monkeypatch.setattr(kernels, "forced", lambda op, name: dida_kernels.OPS[op].backends["chunked"].run)
    monkeypatch.setattr(kernels, "peak_of_call", lambda call, inputs, device: 7)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)

    def time_cuda(call, *, replayed):
        replays.append(replayed)
        return clocks.Timing(1.0, 1.0, 1.0)

    monkeypatch.setattr(kernels, "time_cuda", time_cuda)
    return replays


def test_on_a_gpu_every_way_is_launched_and_replayed(on_a_gpu):
    """Ours, eager and compiled alike; what may fail comes last, torch.compile only while there is time for it."""
    scenes = [kernels.scene_of("instance_loss", k, "cuda") for k in (300, 100_000)]
    rows = list(kernels.rows_on_gpu("instance_loss", scenes, [torch.bfloat16], lambda *_: "it is red", 60))
    sure = [("triton", "launched"), ("triton", "replayed"), ("equation", "launched")]
    assert [(row["K"], row["way"], row["how"]) for row in rows] == [
        *((k, *one) for k in (300, 100_000) for one in sure),
        *((k, "equation", "replayed") for k in (300, 100_000)),
        *((300, "torch.compile", how) for how in kernels.HOWS),
    ]
    assert on_a_gpu == [row["how"] == "replayed" for row in rows]
    assert {row["way"] for row in rows if row["doubt"]} == {"triton"}
    assert all(row["median"] == 1.0 and row["why"] is None for row in rows)
    late = list(kernels.rows_on_gpu("instance_loss", scenes[:1], [torch.bfloat16], agrees, 0))[-2:]
    assert [(row["way"], row["why"]) for row in late] == [("torch.compile", "not tried, the time was up")] * 2


def test_equal_is_compared_with_equal():
    """A replayed row with the replayed equation, a launched one with the launched one, each in its dtype."""
    rows = [
        kernels.empty_row("gather", dtype, SCENES["ordinary"], way, how) | {"median": median}
        for dtype, way, how, median in (
            (torch.bfloat16, "equation", "launched", 8.0),
            (torch.bfloat16, "equation", "replayed", 6.0),
            (torch.float32, "equation", "launched", 100.0),
            (torch.bfloat16, "triton", "launched", 4.0),
            (torch.bfloat16, "triton", "replayed", 2.0),
            (torch.float32, "triton", "replayed", 2.0),
        )
    ]
    kernels.add_speedups(rows)
    assert [row["speedup"] for row in rows] == [1, 1, 1, 2, 3, None]


def test_the_report_takes_its_numbers_from_the_result():
    row = kernels.empty_row("gather", torch.float32, MAIN, "triton", "replayed")
    row |= {"median": 0.5, "low": 0.4, "high": 0.6, "peak_bytes": 7_000_000, "speedup": 3.25}
    counted = {"op": "gather", "dtype": "float32", "K": 300, "device": "H200", "bytes": 8_000_000, "flops": 0}
    result = {
        "header": {"device": "cuda"},
        "rows": [row],
        "counted": [counted | {"floor_ms": 0.2}],
    }
    (line,) = [line for line in kernels.kernel_report(result).splitlines() if "replayed" in line]
    assert [cell.strip() for cell in line.split("|")[4:-1]] == [
        "triton", "replayed", "0.500", "0.400 - 0.600", "3.25", "7.0", "40",
    ]  # fmt: skip


@pytest.mark.parametrize("op", ["scatter", "gather"])
def test_the_instance_level_at_image_resolution_is_no_larger_with_more_slots(op):
    pixels = [
        scene.HW[0] * scene.HW[1] * scene.K for scene in (kernels.scene_of(op, k, "cuda") for k in (300, 100_000))
    ]
    assert 0.9 * pixels[0] < pixels[1] <= pixels[0]
    assert kernels.scene_of(op, 300, "cuda") is MAIN


def test_floors_are_those_of_the_gpu_that_is_there():
    device_of = kernels.roofline.rates_of
    assert device_of("NVIDIA H200").name == "H200"
    assert device_of("NVIDIA H100 80GB HBM3").bandwidth < device_of("NVIDIA H200").bandwidth
    assert device_of("NVIDIA H100 PCIe") is None
    small, large = (
        kernels.count_op("instance_loss", torch.bfloat16, k, 90, device_of("NVIDIA H200")) for k in (300, 3000)
    )
    assert 5 < large["floor_ms"] / small["floor_ms"] < 10.5
    assert kernels.count_op("bank_update", torch.bfloat16, 300, 90, device_of("NVIDIA H200")) is None


def test_inputs_of_the_tests_and_of_the_benches_are_the_same():
    x = kernels.prepared("gather", TINY, torch.float32, "cpu")
    torch.testing.assert_close(x.made.args[0].detach(), call("gather", TINY).args[0])


def test_the_bank_is_updated_from_labels_in_regions():
    scene = kernels.scene_of("bank_update", 300, "cuda")
    assert scene.region == kernels.REGION
    label_BHW = call("bank_update", resized(scene, D=1)).args[3]
    side = kernels.REGION * scene.HW[0] // scene.hw[0]
    regions = label_BHW.unflatten(1, (-1, side)).unflatten(3, (-1, side)).movedim(2, 3).flatten(3)
    assert (regions == regions[..., :1]).all()
    assert len(regions[..., 0].unique()) > scene.C // 2
