"""In what numbers a step computes: what each precision rounds, and what none of them does."""

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import dida_kernels
import tests.machine.several  # noqa: F401  registers mit_tiny
from dida import loop
from dida.assemble import assemble, build_state
from dida.data.classes import CITYSCAPES_CLASSES
from dida.method.passes import Method
from dida.models import mit
from dida.precision import Arithmetic, choose_precision, in_bfloat16, products_in
from dida.state import TrainState, load_checkpoint
from dida.step import train_step
from tests.engine.scenes import batch, build, tiny
from tests.engine.short_runs import options

FLOAT, HALF = torch.float32, torch.bfloat16
GPU = torch.device("cuda")


def made(precision: str = "bf16", method: str = "dida", **more) -> tuple[TrainState, Method]:
    config = tiny(method, backbone="mit_tiny", crop=32, precision=precision, feature_weight=0.005, **more)
    return build(config, imagenet=True)


def step(state: TrainState, method: Method, number: int = 0) -> dict[str, Tensor]:
    return train_step(state, batch(number), method).losses


# ---- which ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    def has(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")

    return has


@pytest.mark.parametrize(
    "capability, name, chosen",
    [
        ((8, 0), "auto", ("tf32", "auto: a card has it")),
        ((7, 5), "auto", ("fp32", "auto: a card has no TF32")),
        ((9, 0), "bf16", ("bf16", "as asked for")),
        ((8, 6), "fp32", ("fp32", "as asked for")),
    ],
)
def test_what_a_card_computes_in(card, capability, name, chosen):
    card(capability)
    assert choose_precision(name, GPU) == chosen


def test_a_cpu_computes_in_float32_unless_told():
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == ("fp32", "auto: the CPU has no TF32")
    assert choose_precision("bf16", cpu)[0] == "bf16"
    with pytest.raises(ValueError, match="--precision tf32: the CPU has none, take fp32"):
        choose_precision("tf32", cpu)


@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_what_a_card_does_not_have_is_refused(card, name):
    card((7, 5))
    with pytest.raises(ValueError, match=f"--precision {name}: a card has none, take fp32"):
        choose_precision(name, GPU)


@pytest.mark.parametrize("precision, rounded", [("fp32", False), ("tf32", True), ("bf16", True)])
def test_products_are_rounded_in_the_block_and_no_longer(precision, rounded):
    def switches() -> tuple[str, bool, bool]:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return torch.get_float32_matmul_precision(), matmul.allow_tf32, cudnn.allow_tf32

    before = switches()
    with suppress(ZeroDivisionError), products_in(precision):
        assert switches() == ("high" if rounded else "highest", rounded, rounded)
        _ = 1 / 0
    assert switches() == before


def test_a_run_computes_in_what_it_is_told(toy, tmp_path, monkeypatch):
    """From the options: what the networks see, and what float32 products may be rounded to."""
    seen = []

    def watched(state, batch, method):
        seen.append((torch.get_float32_matmul_precision(), state.working.student.decode_head.conv_seg.weight.dtype))
        return train_step(state, batch, method)

    monkeypatch.setattr(loop, "train_step", watched)
    for precision in ("fp32", "bf16"):
        config = options(toy, tmp_path / precision, precision=precision, steps=1, bank_start=0, bank_init="random")
        loop.train(config, assemble(config))
    assert seen == [("highest", FLOAT), ("high", HALF)]


def test_how_a_step_is_computed_is_said():
    everything = Arithmetic("bf16", compiled=True, recomputed=True, parts=2)
    assert Arithmetic("tf32", "auto: a card has it").said() == "tf32, auto: a card has it"
    assert everything.said() == (
        "bf16, as asked for; blocks compiled; maps of blocks made again in backward; a batch in 2 parts"
    )


# ---- bfloat16 ------------------------------------------------------------------------------------------------------


def test_the_networks_of_a_step_see_bfloat16():
    """Every product and map of student, teacher and ImageNet's encoder; batch norms have float32 weights."""
    state, method = made()
    networks = (state.working.student, state.working.teacher, method.source_pass.feature_distance.encoder)
    seen: dict[str, set[torch.dtype]] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        dtypes = {inputs[0].dtype, out.dtype, *(p.dtype for p in module.parameters())}
        seen.setdefault(type(module).__name__, set()).update(dtypes)

    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d):
                module.register_forward_hook(watch)
    step(state, method)
    assert seen == {"Linear": {HALF}, "Conv2d": {HALF}, "LayerNorm": {HALF}, "BatchNorm2d": {HALF, FLOAT}}


def test_what_is_trained_averaged_and_saved_is_float32():
    state, method = made()
    for number in range(2):
        step(state, method, number)
    assert {tensor.dtype for _, tensor in state.tensors()} == {FLOAT, torch.int64}
    moments = [x for found in state.optimizer.state.values() for x in found.values()]
    assert moments
    assert {x.dtype for x in moments} == {FLOAT}
    weight = dict(state.student.named_parameters())["backbone.block1.0.mlp.fc1.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())  # an update is not lost in rounding


def test_losses_and_the_bank_are_float32_and_embeddings_what_the_networks_make(monkeypatch):
    state, method = made()
    seen = []
    own = dida_kernels.instance_loss

    def watched(student, teacher, z, weight, bank, label, **more):
        loss = own(student, teacher, z, weight, bank, label, **more)
        seen.append([x.dtype for x in (student, teacher, z, weight, bank, loss)])
        return loss

    monkeypatch.setattr(dida_kernels, "instance_loss", watched)
    step(state, method)
    losses = step(state, method, 1)
    assert seen == [[HALF, HALF, FLOAT, FLOAT, FLOAT, FLOAT]]
    assert {loss.dtype for loss in losses.values()} == {FLOAT}
    assert losses["instance"] > 0
    assert state.working.student(batch(0).target).logits.dtype == FLOAT


def test_weights_are_cast_before_and_the_gradient_is_collected_after_the_passes():
    state, method = made()
    names = [name for name, _ in state.student.named_parameters()]
    gradients: dict[str, Tensor] = {}

    def take(optimizer, *_) -> None:
        gradients.update((name, p.grad.clone()) for name, p in state.student.named_parameters())

    state.optimizer.register_step_pre_hook(take)
    for number in range(2):
        step(state, method, number)
    state.working.refreshed()
    assert list(gradients) == names
    cast = dict(state.working.student.named_parameters())
    for name, own in state.student.named_parameters():
        assert torch.equal(cast[name], own.to(cast[name].dtype)), name
        assert cast[name].grad is None
        assert gradients[name].dtype == FLOAT
        assert gradients[name].any(), name
    for own, other in zip(state.teacher.parameters(), state.working.teacher.parameters(), strict=True):
        assert torch.equal(other, own.to(other.dtype))


def test_a_copy_shares_the_batch_norms_and_nothing_else():
    state, _ = made("fp32")
    copy = in_bfloat16(state.student)
    for own, other in zip(state.student.modules(), copy.modules(), strict=True):
        assert (own is other) == isinstance(own, nn.BatchNorm2d)
    assert copy.training
    assert not in_bfloat16(state.teacher).backbone.training


def test_a_step_in_bfloat16_is_nearly_that_of_float32():
    """As near as eight bits are; the distance to ImageNet's features is rounding of weights that are equal."""
    exact, rounded = made("fp32"), made("bf16")
    for number in range(3):
        before, after = step(*exact, number), step(*rounded, number)
        for name in ("source", "target", "instance"):
            assert float(after[name]) == pytest.approx(float(before[name]), rel=0.01, abs=1e-6)
        assert after != before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_same_run(tmp_path, precision):
    whole, method = made(precision)
    for number in range(2):
        step(whole, method, number)
    path = whole.save(tmp_path, {}, {})
    resumed, _ = made(precision, seed=1)
    resumed.load(load_checkpoint(path))
    resumed.seed = whole.seed
    for number in range(2, 4):
        assert step(whole, method, number) == step(resumed, method, number)
    for (name, one), (_, other) in zip(whole.tensors(), resumed.tensors(), strict=True):
        assert torch.equal(one, other), name


# ---- compiled ------------------------------------------------------------------------------------------------------


def test_compiled_blocks_are_whole_programs_made_once(monkeypatch):
    """A program a stage, with a gradient and without; no break in one, and none made anew after the first step."""
    torch._dynamo.reset()
    counters.clear()
    compiler = CompileCounterWithBackend("eager")
    monkeypatch.setattr(mit, "COMPILER", compiler)
    state, method = made("fp32", compile=True)
    plain, its_method = made("fp32")
    for number in range(3):
        assert step(state, method, number) == step(plain, its_method, number)
        assert compiler.frame_count == 8
    assert not counters["graph_break"]


def test_only_what_has_known_blocks_is_compiled():
    with pytest.raises(ValueError, match="--compile: only the blocks of mit_"):
        build_state(tiny(backbone="resnet18", compile=True), CITYSCAPES_CLASSES, torch.ones(19), torch.device("cpu"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_network_of_a_step_is_compiled(precision):
    arithmetic = Arithmetic(precision, compiled=True)
    state, _ = made("fp32")
    working = arithmetic.working(state.student, state.teacher)
    for network in (working.student, working.teacher, arithmetic.frozen(state.student.backbone)):
        blocks = [module for module in network.modules() if isinstance(module, mit.Block)]
        assert len(blocks) == 4
        assert all(block._compiled_call_impl is not None for block in blocks)


# ---- recomputed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_blocks_give_the_same_step_bit_for_bit(precision):
    (plain, method), (state, its_method) = made(precision), made(precision, checkpoint_activations=True)
    for number in range(3):
        assert step(plain, method, number) == step(state, its_method, number)
    for (name, one), (_, other) in zip(plain.tensors(), state.tensors(), strict=True):
        assert torch.equal(one, other), name


def test_only_the_students_blocks_are_computed_again_and_their_maps_are_not_kept():
    state, method = made("fp32", checkpoint_activations=True)
    calls = {"student": 0, "teacher": 0}
    for name, network in (("student", state.student), ("teacher", state.teacher)):
        network.backbone.block1[0].register_forward_pre_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1})
        )
    step(state, method)
    assert calls == {"student": 2 * 2, "teacher": 1}  # source and mixed images, each once more in backward

    def kept(network: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            network(batch(0).target)
        return sum(sizes.values())

    assert kept(state.student.backbone) < 0.5 * kept(made("fp32")[0].student.backbone)


def test_only_what_has_known_blocks_is_recomputed():
    with pytest.raises(ValueError, match="--checkpoint-activations: only mit_"):
        Arithmetic("fp32", recomputed=True).working(nn.Linear(1, 1), nn.Linear(1, 1))
