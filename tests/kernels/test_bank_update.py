"""`bank_update` in C++ and CUDA against its equation.

The truth is the equation in float64. The kernels keep sums of their own, in float32 over a few thousand nodes at most
and in float64 beyond, so they have to be within 1e-6 of it for every dtype: what float16 and bfloat16 lose, they have
lost before the call.
"""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import dida_kernels
from dida_kernels import backend, bank_update
from tests.cases import SCENES, call

CLASSES = 5
MOMENTUM = 0.75
TOLERANCE = 1e-6
INPUTS = ("bank_KD", "label_K", "embed_BDhw", "label_BHW", "boundary_BHW")

DEVICES = [pytest.param("cpu", id="cpp"), pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)]
NAME = {"cpu": "cpp", "cuda": "cuda"}


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Where the kernel under test runs. Skipped, with the reason, where it is not built or has no device."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    why = dida_kernels.report()["bank_update"][NAME[request.param]]
    if why != "yes":
        pytest.skip(why)
    return request.param


def inputs(
    grid: tuple[int, int] = (6, 7),
    size: tuple[int, int] = (24, 28),
    *,
    images: int = 2,
    channels: int = 24,
    slots: int = 12,
    classes: int = CLASSES,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Random embeddings and blobs of labels: the last class is absent, some pixels are ignored, some are boundary."""
    random = torch.Generator().manual_seed(seed)
    blobs = torch.randint(0, max(classes - 1, 1), (images, *(-(-s // 5) for s in size)), generator=random)
    label = blobs.repeat_interleave(5, 1).repeat_interleave(5, 2)[:, : size[0], : size[1]].contiguous()
    label[torch.rand(label.shape, generator=random) < 0.1] = 255
    return {
        "bank_KD": torch.randn(slots, channels, generator=random),
        "label_K": torch.arange(slots) % classes,
        "embed_BDhw": (torch.randn(images, channels, *grid, generator=random) + 0.5).to(dtype),
        "label_BHW": label,
        "boundary_BHW": torch.rand(label.shape, generator=random) < 0.3,
    }


def check(x: dict[str, Tensor], device: str, *, classes: int = CLASSES, momentum: float = MOMENTUM) -> Tensor:
    """Runs the kernel, compares it with the truth and returns its result."""
    options = {"classes": classes, "momentum": momentum}
    exact = x | {"bank_KD": x["bank_KD"].double(), "embed_BDhw": x["embed_BDhw"].double()}
    truth = bank_update.reference(*(exact[name] for name in INPUTS), **options)
    with backend(NAME[device]):
        result = bank_update(*(x[name].to(device) for name in INPUTS), **options).cpu()
    assert result.dtype == torch.float32
    assert relative_error(result, truth) < TOLERANCE
    absent_K = ~torch.isin(x["label_K"], x["label_BHW"])
    assert torch.equal(result[absent_K], x["bank_KD"][absent_K])  # bit for bit
    return result


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Of the worst row, in the norm: a single number that a wrong mean of any class would show in."""
    return ((result - truth).norm(dim=1) / truth.norm(dim=1)).max().item()


@pytest.mark.parametrize(
    "grid, size",
    [
        ((6, 7), (6, 7)),
        ((6, 7), (12, 14)),
        ((6, 7), (24, 28)),
        ((6, 7), (18, 21)),
        ((5, 7), (17, 23)),
        ((9, 8), (11, 24)),
        ((1, 9), (4, 36)),
        ((9, 1), (36, 3)),
        ((1, 1), (7, 5)),
        ((3, 150), (3, 600)),
        ((8, 8), (5, 6)),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_every_scale(device, grid, size):
    check(inputs(grid, size), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["channels_first", "channels_last", "sliced", "transposed", "expanded"])
def test_every_dtype_and_layout(device, dtype, layout):
    x = inputs(dtype=dtype, channels=37)
    wide = torch.randn(2, 40, 8, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    x["embed_BDhw"] = {
        "channels_first": lambda e: e,
        "channels_last": lambda e: e.contiguous(memory_format=torch.channels_last),
        "sliced": lambda e: wide[:, 2:39, 1:-1, 1:-1],
        "transposed": lambda e: e.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda e: e[:1, :, :, :1].expand(2, -1, -1, 7),
    }[layout](x["embed_BDhw"])
    check(x, device)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_labels_and_boundary_of_any_dtype_and_stride(device, dtype):
    x = inputs()
    x["label_BHW"] = x["label_BHW"].to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
    x["boundary_BHW"] = x["boundary_BHW"].repeat_interleave(2, 2)[:, :, ::2]
    check(x, device)


def test_half_precision_is_read_exactly(device):
    """Every finite float16, subnormal ones too, is the mean of its own class; infinities and NaN stay what they are."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for values in every.chunk(256):
        x = {
            "bank_KD": torch.ones(1, len(values)),
            "label_K": torch.zeros(1, dtype=torch.int64),
            "embed_BDhw": values[None, :, None, None],
            "label_BHW": torch.zeros(1, 1, 1, dtype=torch.uint8),
            "boundary_BHW": torch.zeros(1, 1, 1, dtype=torch.bool),
        }
        with backend(NAME[device]):
            result = bank_update(*(x[name].to(device) for name in INPUTS), classes=1, momentum=0.0).cpu()
        assert torch.equal(result.nan_to_num(7.0), values[None].float().nan_to_num(7.0))


def test_all_pixels_ignored_changes_nothing(device):
    x = inputs()
    x["label_BHW"] = torch.full_like(x["label_BHW"], 255)
    assert torch.equal(check(x, device), x["bank_KD"])


@pytest.mark.parametrize("boundary", [False, True])
def test_one_set_alone_is_the_mean(device, boundary):
    x = inputs()
    x["boundary_BHW"] = torch.full_like(x["boundary_BHW"], boundary)
    check(x, device)


def test_both_sets_weigh_the_same_whatever_their_size(device):
    x = inputs((1, 4), (1, 4), images=1, channels=1, slots=1, classes=1)
    x["embed_BDhw"] = torch.tensor([1.0, 2.0, 3.0, 10.0])[None, None, None]
    x["label_BHW"] = torch.zeros(1, 1, 4, dtype=torch.uint8)
    x["boundary_BHW"] = torch.tensor([[[False, False, False, True]]])
    assert check(x, device, classes=1, momentum=0.0).item() == 6.0  # (2 + 10) / 2


def test_every_image_has_its_own_label_map(device):
    x = inputs((2, 2), (2, 2), images=3, channels=1, slots=3, classes=3)
    x["embed_BDhw"] = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 1, 2, 2)
    x["label_BHW"] = torch.tensor([0, 1, 2])[:, None, None].expand(3, 2, 2)
    assert check(x, device, classes=3, momentum=0.0).flatten().tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("momentum", [0.0, 0.999, 1.0])
def test_momentum(device, momentum):
    x = inputs()
    result = check(x, device, momentum=momentum)
    if momentum == 1.0:
        assert torch.equal(result, x["bank_KD"])


@pytest.mark.parametrize("slots", [1, 100_003])
def test_bank_of_any_length(device, slots):
    check(inputs(slots=slots), device)


@pytest.mark.parametrize("classes", [1, 2, 19, 21, 300])
def test_any_number_of_classes(device, classes):
    """More than 20 need more than one pass of the CUDA kernel; a class may well be called 255, and is then ignored."""
    check(inputs((12, 40), (24, 80), slots=301, classes=classes), device, classes=classes)


def test_more_channels_than_a_block_has(device):
    check(inputs(channels=300), device)


def test_sums_are_carried_over_many_nodes(device):
    """200 000 nodes around 1000: float32 alone would be off by 1e-5."""
    x = inputs((400, 250), (400, 250), channels=3)
    x["embed_BDhw"] = x["embed_BDhw"] + 1000
    check(x, device)


def test_a_weight_may_need_more_than_32_bits(device):
    """1031 is prime: a node collects 2062 x 2062 units from each of a million pixels."""
    check(inputs((1, 1), (1031, 1031), images=1, channels=2), device)


def test_a_nan_stays_in_its_class(device):
    x = inputs((4, 4), (4, 4), images=1)
    x["label_BHW"] = (torch.arange(16).view(1, 4, 4) % 3).to(torch.uint8)
    x["label_BHW"][0, 0, 0] = 255
    clean = check(x, device)
    x["embed_BDhw"][0, :, 0, 0] = float("nan")  # ignored
    x["embed_BDhw"][0, :, 0, 1] = float("inf")  # class 1
    with backend(NAME[device]):
        result = bank_update(*(x[name].to(device) for name in INPUTS), classes=CLASSES, momentum=MOMENTUM).cpu()
    of_class_1 = x["label_K"] == 1
    assert torch.equal(result[~of_class_1], clean[~of_class_1])
    assert result[of_class_1].isinf().all()


def test_inputs_are_not_written(device):
    x = {name: value.to(device) for name, value in inputs().items()}
    before = {name: value.clone() for name, value in x.items()}
    with backend(NAME[device]):
        result = bank_update(*(x[name] for name in INPUTS), classes=CLASSES, momentum=MOMENTUM)
    assert all(torch.equal(x[name], before[name]) for name in INPUTS)
    assert result.data_ptr() != x["bank_KD"].data_ptr()


def test_two_runs_agree_in_every_bit(device):
    x = {name: value.to(device) for name, value in inputs((40, 60), (157, 240), images=3).items()}
    with backend(NAME[device]):
        first, second = (bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM) for _ in range(2))
    assert torch.equal(first, second)


def test_any_number_of_threads_agrees_in_every_bit():
    if dida_kernels.report()["bank_update"]["cpp"] != "yes":
        pytest.skip(dida_kernels.report()["bank_update"]["cpp"])
    x = inputs((40, 60), (157, 240), images=3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            with backend("cpp"):
                results.append(bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], result) for result in results[1:])


def test_a_non_contiguous_bank(device):
    x = inputs()
    x["bank_KD"] = x["bank_KD"].repeat_interleave(2, 1)[:, ::2]
    x["label_K"] = x["label_K"].repeat_interleave(2)[::2]
    check(x, device)


def test_chosen_by_itself(device):
    """Without a wish the kernel runs: the result is its own, bit for bit."""
    x = {name: value.to(device) for name, value in inputs().items()}
    with backend(NAME[device]):
        forced = bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM)
    assert torch.equal(forced, bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM))


def test_refusals_are_for_the_next_backend_unless_forced(device):
    x = {name: value.to(device) for name, value in inputs(dtype=torch.float64).items()}
    x["bank_KD"] = x["bank_KD"].double()
    assert bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM).dtype == torch.float64
    with backend(NAME[device]), pytest.raises(RuntimeError, match="float64"):
        bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM)


WRONG = {
    "embedding without channels": ({"embed_BDhw": torch.zeros(2, 6, 7)}, ValueError, "embedding"),
    "embedding of integers": ({"embed_BDhw": torch.zeros(2, 24, 6, 7, dtype=torch.int)}, TypeError, "embedding|float"),
    "empty embedding": ({"embed_BDhw": torch.zeros(2, 24, 0, 7)}, ValueError, "embedding"),
    "bank of another width": ({"bank_KD": torch.zeros(12, 23)}, ValueError, "bank"),
    "empty bank": ({"bank_KD": torch.zeros(0, 24), "label_K": torch.zeros(0, dtype=torch.int64)}, ValueError, "bank"),
    "bank labels of another length": ({"label_K": torch.zeros(11, dtype=torch.int64)}, ValueError, "label"),
    "bank labels of another dtype": ({"label_K": torch.zeros(12, dtype=torch.int32)}, TypeError, "label"),
    "label of floats": ({"label_BHW": torch.zeros(2, 24, 28)}, TypeError, "label"),
    "label of another batch": ({"label_BHW": torch.zeros(3, 24, 28, dtype=torch.uint8)}, ValueError, "label"),
    "boundary of bytes": ({"boundary_BHW": torch.zeros(2, 24, 28, dtype=torch.uint8)}, TypeError, "boundary"),
    "boundary of another size": ({"boundary_BHW": torch.zeros(2, 24, 27, dtype=torch.bool)}, ValueError, "boundary"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs_raise(device, wrong):
    """Through the op and, so that nothing is read out of bounds, through torch.ops directly."""
    change, error, message = WRONG[wrong]
    x = {name: value.to(device) for name, value in (inputs() | change).items()}
    with backend(NAME[device]), pytest.raises((error, RuntimeError), match=message):
        bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM)
    with pytest.raises(error, match=message):
        torch.ops.dida.bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_wrong_momentum_raises(device, momentum):
    x = {name: value.to(device) for name, value in inputs().items()}
    with backend(NAME[device]), pytest.raises(ValueError, match="momentum"):
        bank_update(*x.values(), classes=CLASSES, momentum=momentum)


def test_gradients_are_refused(device):
    x = {name: value.to(device) for name, value in inputs().items()}
    x["embed_BDhw"].requires_grad_()
    with backend(NAME[device]), pytest.raises(ValueError, match="gradient"):
        bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM)


def test_labels_out_of_range_are_found_on_the_cpu_and_harmless_below():
    if dida_kernels.report()["bank_update"]["cpp"] != "yes":
        pytest.skip(dida_kernels.report()["bank_update"]["cpp"])
    x = inputs()
    options = {"classes": CLASSES, "momentum": MOMENTUM}
    ignoring = bank_update.reference(*x.values(), **options)
    x["label_BHW"] = x["label_BHW"].where(x["label_BHW"] != 255, 2**62)
    with backend("cpp"), pytest.raises(ValueError, match="label"):
        bank_update(*x.values(), **options)
    torch.testing.assert_close(torch.ops.dida.bank_update(*x.values(), **options), ignoring)


def test_opcheck(device):
    x = {name: value.to(device) for name, value in inputs().items()}
    x["bank_KD"] = x["bank_KD"].t().contiguous().t()  # the result is contiguous all the same
    options = {"classes": CLASSES, "momentum": MOMENTUM}
    results = torch.library.opcheck(torch.ops.dida.bank_update.default, tuple(x.values()), options)
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_into_one_graph(device):
    x = {name: value.to(device) for name, value in inputs().items()}

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(*tensors: Tensor) -> Tensor:
        return bank_update(*tensors, classes=CLASSES, momentum=MOMENTUM) * 2

    expected = bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM) * 2
    assert torch.equal(step(*x.values()), expected)


def test_without_the_extension_a_forced_backend_says_why():
    """In a process of its own, in which the extension cannot be imported."""
    program = """
import sys
sys.modules["dida_kernels._C"] = None  # what Python itself does for a module that must not be found
import torch, dida_kernels
why = dida_kernels.report()["bank_update"]
assert "build_ext" in why["cpp"] and "build_ext" in why["cuda"], why
x = (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), torch.ones(1, 2, 1, 1),
     torch.zeros(1, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.bool))
assert dida_kernels.bank_update(*x, classes=1, momentum=0.0).tolist() == [[1.0, 1.0]]  # the equation serves
with dida_kernels.backend("cpp"):
    try:
        dida_kernels.bank_update(*x, classes=1, momentum=0.0)
    except RuntimeError as error:
        assert why["cpp"] in str(error)
    else:
        raise AssertionError("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_host_synchronisation(device):
    if device == "cpu":
        pytest.skip("nothing to wait for on a CPU")
    x = {name: value.to(device) for name, value in inputs().items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        with backend("cuda"):
            bank_update(*x.values(), classes=CLASSES, momentum=MOMENTUM)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("name", ["chunked", "cpp"])
def test_what_is_not_finite_reaches_the_classes_of_its_pixels_alone(name, place, value):
    made = call("bank_update", SCENES["ordinary"])
    x = made.args[place]
    x.view(-1)[x.numel() // 2] = value
    if why := bank_update.why_not(name, *made.args, **made.options):
        pytest.skip(why)
    with backend(name):
        found = bank_update(*made.args, **made.options)
    expected = bank_update.reference(*made.args, **made.options)
    assert not expected.isfinite().all()
    assert torch.equal(found.isfinite(), expected.isfinite())
    torch.testing.assert_close(found[found.isfinite()], expected[expected.isfinite()], rtol=1e-5, atol=1e-5)
