"""Sec. III-B: one iteration, for every method."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import random
import weakref

import pytest
import torch

import dida.method
from dida import recipes, step
from dida.config import changed
from dida.method import passes
from dida.method.passes import Method
from dida.run.terms import LOSS, TERMS
from dida.state import TrainState
from dida.step import train_step
from tests.engine.scenes import batch, build, tiny


def snapshot(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("method", list(recipes.METHODS))
def test_every_method_runs_and_learns(method):
    options = {"feature_weight": 0.005} if method in ("daformer", "dida") else {}  # the toy's recipe has none
    state, strategy = build(tiny(method, **options), imagenet=True)
    before = snapshot(state.student)
    traces = [train_step(state, batch(i), strategy) for i in range(3)]
    assert state.step == 3
    for trace in traces:
        assert all(torch.isfinite(loss) and not loss.requires_grad for loss in trace.losses.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, state.student.parameters(), strict=True))
    adapts = method in ("dacs", "daformer", "dida")
    assert (traces[-1].target is not None) == adapts
    assert len(traces[-1].mixed) == adapts
    assert set(traces[-1].losses) == {"source", "feature"} | ({"target", "instance"} if adapts else set())
    assert {LOSS + name for name in traces[-1].losses} <= TERMS.keys()  # each is explained where it is shown
    assert (traces[-1].losses["feature"] > 0) == (method in ("daformer", "dida"))
    assert (state.bank.features.abs().sum() > 0) == (method == "dida")


def test_dida_is_daformer_until_the_bank_starts():
    curves = {}
    for method in ("daformer", "dida"):
        state, strategy = build(tiny(method, bank_start=2, bank_fill=1, feature_weight=0.0))
        curves[method] = [train_step(state, batch(i), strategy).losses for i in range(3)]
    for i in (0, 1):
        assert curves["dida"][i] == curves["daformer"][i]
    assert curves["daformer"][2]["instance"] == 0
    assert curves["dida"][2]["instance"] > 0


def test_the_teacher_gets_no_gradient_and_moves_towards_the_student():
    state, strategy = build(tiny())
    before = snapshot(state.teacher)
    train_step(state, batch(), strategy)
    pairs = zip(before, state.teacher.parameters(), state.student.parameters(), strict=True)
    for old, new, student in pairs:
        assert new.grad is None
        assert torch.allclose(new, old.lerp(student.detach(), 0.5), atol=1e-6)  # alpha = 1/2 after step 0


def second_step(change=lambda method: method) -> tuple[TrainState, Method]:
    """Before the second step of a run whose bank is in use; its optimizer leaves weights and gradient alone.

    `change` makes another method of the run's own.
    """
    state, method = build(tiny(bank_start=1))
    train_step(state, batch(0), method)
    state.optimizer.step = lambda: None
    state.optimizer.zero_grad = lambda set_to_none: None
    return state, change(method)


def gradient(state: TrainState) -> list[torch.Tensor]:
    return [p.grad.clone() for p in state.student.parameters()]


def test_a_pass_at_a_time_gives_the_gradient_of_the_sum(monkeypatch):
    """What the passes add up must equal autograd's gradient of all losses at once."""
    state, method = second_step()
    train_step(state, batch(1), method)
    by_pass = gradient(state)

    state, method = second_step()
    kept = []

    def defer(losses):
        kept.extend(losses.values())
        return {name: loss.detach() for name, loss in losses.items()}

    with monkeypatch.context() as patched:
        patched.setattr(passes, "_backward", defer)
        train_step(state, batch(1), method)
    assert len(kept) == 4
    assert all(p.grad is None for p in state.student.parameters())
    sum(kept).backward()
    for separate, joint in zip(by_pass, gradient(state), strict=True):
        assert torch.allclose(separate, joint, atol=1e-6, rtol=1e-4)


def test_the_optimizer_gets_the_gradient_of_the_whole_step_clipped():
    state, method = second_step()
    norm = train_step(state, batch(1), method).gradient_norm
    whole, limit = gradient(state), float(norm) / 4
    clip = build(tiny(clip_gradient=limit))[1].clip_gradient
    state, method = second_step(lambda method: dataclasses.replace(method, clip_gradient=clip))
    got: list[torch.Tensor] = []
    state.optimizer.step = lambda: got.extend(gradient(state))
    assert train_step(state, batch(1), method).gradient_norm == norm
    for clipped, one in zip(got, whole, strict=True):
        assert torch.allclose(clipped, one / 4, rtol=1e-5, atol=0)


def called(answer, number: int):
    """The same pass, whose losses have names of their own."""

    def renamed(*args):
        found = answer(*args)
        return found._replace(losses={f"{name} {number}": loss for name, loss in found.losses.items()})

    return renamed


def test_losses_of_two_passes_have_different_names():
    state, method = second_step(lambda m: dataclasses.replace(m, target_passes=m.target_passes * 2))
    with pytest.raises(AssertionError):
        train_step(state, batch(1), method)


def test_a_second_pass_over_the_target_is_one_more_entry():
    """With the same draws twice, what one pass adds to the source's gradient is added twice."""

    def repeatable(answer):
        def drawn_anew(student, bank, x, target, rng):
            state = rng.device.get_state()
            torch.manual_seed(5)  # of dropout and stochastic depth
            found = answer(student, bank, x, target, rng._replace(host=random.Random(5)))
            rng.device.set_state(state)
            return found

        return drawn_anew

    gradients = []
    for count in range(3):
        state, method = second_step(
            lambda method, n=count: dataclasses.replace(
                method, target_passes=tuple(called(repeatable(method.target_passes[0]), i) for i in range(n))
            )
        )
        trace = train_step(state, batch(1), method)
        assert len(trace.mixed) == count
        gradients.append(gradient(state))
    for none, one, two in zip(*gradients, strict=True):
        assert torch.allclose(two - none, 2 * (one - none), atol=1e-6, rtol=1e-3)
    assert any(not torch.allclose(none, one, atol=1e-4) for none, one in zip(*gradients[:2], strict=True))


def test_a_second_pass_sees_another_view_of_the_same_belief():
    state, method = second_step(
        lambda m: dataclasses.replace(m, target_passes=tuple(called(m.target_passes[0], i) for i in range(2)))
    )
    first, second = train_step(state, batch(1), method).mixed
    assert not torch.equal(first.image, second.image)  # its draws come after those of the first
    assert torch.equal(first.label[~first.pasted & ~second.pasted], second.label[~first.pasted & ~second.pasted])


def test_what_a_pass_saw_is_gone_before_the_next_one():
    """Scores of an image are its largest map: those of one pass never stand beside those of another."""
    state, method = build(tiny())
    seen: list[tuple[weakref.ref, ...]] = []

    def alive() -> list[int]:
        return [i for i, maps in enumerate(seen) if any(ref() is not None for ref in maps)]

    def remember(module, inputs, prediction):
        seen.append((weakref.ref(prediction.logits), weakref.ref(prediction.deepest)))

    before: list[list[int]] = []
    asked: list[list[int]] = []
    state.student.register_forward_pre_hook(lambda module, inputs: before.append(alive()))
    state.student.register_forward_hook(remember)

    def believe(*arguments):
        asked.append(alive())
        return method.believe(*arguments)

    two = tuple(called(method.target_passes[0], i) for i in range(2))
    doubled = dataclasses.replace(method, believe=believe, target_passes=two)
    for i in range(2):
        train_step(state, batch(i), doubled)
    assert len(seen) == 6
    assert before == [[]] * 6
    assert asked == [[]] * 2
    assert alive() == []


@pytest.mark.parametrize(
    "options",
    [
        {"regenerate_semantic": semantic, "regenerate_instance": instance}
        for semantic in ("smooth", "scale", "none")
        for instance in ("scale", "smooth", "none")
    ]
    + [{"instance_loss": "stride4"}, {"bank_init": "random", "bank_start": 0}, {"confidence": "regenerated"}]
    + [{"instance_weights": w, "instance_prior": p} for w, p in (("root", "student"), ("balanced", "both"))]
    + [{"selecting": s} for s in ("avg", "km", "rs")]
    + [{"clusters": 2}, {"boundary_classes": 3}, {"weak_view": "photometric"}, {"mix_classes": "image"}]
    + [{"pseudo_weight": w} for w in ("image", "pixel")]
    + [{"sampling": s} for s in ("nu", "rs", "ils")],
    ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()),
)
def test_every_alternative_of_the_design_takes_a_step(options):
    state, strategy = build(tiny(**options))
    for i in range(3):
        trace = train_step(state, batch(i), strategy)
    assert trace.losses["instance"] > 0
    assert all(torch.isfinite(loss) for loss in trace.losses.values())


def test_nu_never_updates_what_it_filled():
    state, strategy = build(tiny(sampling="nu", bank_every=1))
    train_step(state, batch(0), strategy)
    filled = state.bank.features.clone()
    train_step(state, batch(1), strategy)
    assert torch.equal(state.bank.features, filled)


def test_a_step_is_a_function_of_state_batch_and_seed():
    def run(seed):
        state, strategy = build(changed(tiny(), seed=seed))
        torch.rand(seed + 3)  # whatever else drew from the global generator before must not matter
        return [train_step(state, batch(i), strategy).losses["target"] for i in range(2)]

    assert run(0) == run(0)
    assert run(0) != run(1)


BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.Match, ast.Try)


def test_the_step_has_no_branch_and_fits_a_screen():
    source = inspect.getsource(step)
    assert len(source.splitlines()) <= 50
    tree = ast.parse(source)
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["train_step"]
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, BRANCHES)]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.comprehension) and node.ifs]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.BoolOp)]  # `a and b()` is a branch as well


BANNED = (".item(", ".cpu(", ".numpy(", "nonzero(", ".tolist(", ".unique(", "synchronize")
METHOD = [module.name for module in pkgutil.iter_modules(dida.method.__path__, "dida.method.")]


def test_the_modules_of_the_method_are_found():
    assert {"dida.method.passes", "dida.method.bank", "dida.method.feature_distance"} <= set(METHOD)


@pytest.mark.parametrize("module", ["dida.step", *METHOD])
def test_nothing_between_batch_and_optimizer_reads_the_device(module):
    source = inspect.getsource(importlib.import_module(module))
    assert not [word for word in BANNED if word in source]


PADDED = ({}, {"pseudo_weight": "pixel"}, {"pseudo_weight": "image"}, {"instance_loss": "stride4"},
          {"instance_weights": "balanced"}, {"instance_prior": "student"})  # fmt: skip


@pytest.mark.parametrize("options", PADDED, ids=str)
def test_padding_of_the_target_teaches_nothing(options):
    """FAULTS 10: no pixel of it has a weight, is valid in L_ins, or counts as covered."""
    config = tiny("dida", threshold=0.0, **options)
    state, method = build(config)
    train_step(state, batch(), method)  # fills the bank
    real = torch.ones(2, 64, 64, dtype=torch.bool)
    real[:, 20:], real[1, :, 40:] = False, False
    trace = train_step(state, batch(1)._replace(real=real), method)
    (mixed,) = trace.mixed
    assert float(trace.target.pseudo.weight[~real].abs().max()) == 0
    assert not trace.target.pseudo.used[~real].any()
    assert not mixed.valid[~real].any()
    assert float(mixed.weight[~real & ~mixed.pasted].abs().max()) == 0
    assert float(trace.target.pseudo.coverage) == 1
    assert trace.losses["instance"].isfinite()
