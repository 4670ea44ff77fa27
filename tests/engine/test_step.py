"""Sec. III-B: one iteration, for every method."""

import ast
import inspect
from collections.abc import Iterator

import pytest
import torch

from dida import recipes, step
from dida.config import changed
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
    assert (traces[-1].adaptation is not None) == adapts
    assert set(traces[-1].losses) == {"source", "feature"} | ({"target", "instance"} if adapts else set())
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


def test_two_backward_passes_give_the_gradient_of_the_sum():
    """Freezing the optimizer, the accumulated gradient must equal autograd's of all losses at once."""
    state, strategy = build(tiny(bank_start=1))
    train_step(state, batch(0), strategy)
    gradients = []
    for joint in (False, True):
        state, strategy = build(tiny(bank_start=1))
        train_step(state, batch(0), strategy)
        state.optimizer.step = lambda: None
        seen = []
        state.optimizer.zero_grad = lambda set_to_none, s=state, g=seen: g.extend(
            p.grad.clone() for p in s.student.parameters()
        )
        if joint:
            deferred = []
            original, torch.Tensor.backward = torch.Tensor.backward, lambda loss, kept=deferred: kept.append(loss)
            adapt, step.TARGET_HALF["adapt"] = step.TARGET_HALF["adapt"], _then_backward(deferred, original)
            try:
                train_step(state, batch(1), strategy)
            finally:
                torch.Tensor.backward, step.TARGET_HALF["adapt"] = original, adapt
        else:
            train_step(state, batch(1), strategy)
        gradients.append(seen)
    for separate, joint in zip(*gradients, strict=True):
        assert torch.allclose(separate, joint, atol=1e-6, rtol=1e-4)


def _then_backward(deferred, backward):
    def adapt(*args):
        result = step.adapt(*args)
        backward(sum(deferred))
        return result

    return adapt


@pytest.mark.parametrize(
    "options",
    [
        {"regenerate_semantic": semantic, "regenerate_instance": instance}
        for semantic in ("smooth", "scale", "none")
        for instance in ("scale", "smooth", "none")
    ]
    + [{"instance_loss": "stride4"}, {"bank_init": "random", "bank_start": 0}, {"confidence": "regenerated"}]
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


def functions() -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(inspect.getsource(step))):
        if isinstance(node, ast.FunctionDef):
            yield node


def test_the_step_has_no_branch_and_fits_one_screen():
    for function in functions():
        branches = (ast.If, ast.IfExp, ast.For, ast.While, ast.Match)
        loops = [n for n in ast.walk(function) if isinstance(n, branches)]
        assert not loops, f"{function.name} line {loops[0].lineno}"
        assert function.end_lineno - function.lineno < 60


BANNED = (".item(", ".cpu(", ".numpy(", "nonzero(", ".tolist(", ".unique(", "synchronize")


METHOD = ("views", "teacher", "bank", "sampling", "regeneration", "discrimination", "feature_distance")


@pytest.mark.parametrize("module", ["step", *(f"method.{name}" for name in METHOD)])
def test_nothing_between_batch_and_optimizer_reads_the_device(module):
    source = inspect.getsource(__import__(f"dida.{module}", fromlist=["_"]))
    assert not [word for word in BANNED if word in source]
