"""What is said of the choice of backends is what happens."""

import pytest
import torch

import dida_kernels
from dida_kernels import choices
from dida_kernels.dispatch import OPS, ORDER

CPU = torch.device("cpu")
CLASSES = 19


def test_every_op_has_an_example_that_it_runs_on():
    made = choices.examples(CPU, classes=CLASSES)
    assert set(made) == set(OPS)
    for name, example in made.items():
        OPS[name](*example.args, **example.options)


@pytest.mark.parametrize("name", OPS)
def test_the_backend_named_is_the_one_that_runs(name, monkeypatch):
    """Of every backend only a spy is left, which says who was called."""
    ran = []
    op, example = OPS[name], choices.examples(CPU, classes=CLASSES)[name]
    for backend, implementation in op.backends.items():
        spy = implementation._replace(run=lambda *args, backend=backend, **options: ran.append(backend))
        monkeypatch.setitem(op.backends, backend, spy)
    chosen, passed_over = dida_kernels.chosen_backends(CPU, classes=CLASSES)[name]
    op(*example.args, **example.options)
    assert ran == [chosen]
    assert list(passed_over) == list(ORDER[: ORDER.index(chosen)])
    assert all(passed_over.values())


def test_the_number_of_classes_is_part_of_the_choice():
    chosen, passed_over = dida_kernels.chosen_backends(CPU, classes=150)["boundary_mask"]
    assert chosen == "equation"
    assert "150" in passed_over["chunked"]


def test_a_wish_is_a_reason(monkeypatch):
    monkeypatch.setenv("DIDA_BACKEND", "equation")
    found = dida_kernels.chosen_backends(CPU, classes=CLASSES)
    assert {choice.backend for choice in found.values()} == {"equation"}
    assert found["instance_loss"].passed_over["chunked"] == "equation was asked for"
    with dida_kernels.backend("cuda"), pytest.raises(RuntimeError, match=r"bank_similarity.*'cuda' was asked for"):
        dida_kernels.chosen_backends(CPU, classes=CLASSES)


def test_a_line_for_every_op_and_every_reason_once():
    lines = list(dida_kernels.choice_lines(CPU, classes=150))
    chosen = dida_kernels.chosen_backends(CPU, classes=150)
    assert [line.split() for line in lines[: len(OPS)]] == [[op, chosen[op].backend, "on", "cpu"] for op in OPS]
    reasons = lines[len(OPS) :]
    assert "not chunked on cpu: " + chosen["boundary_mask"].passed_over["chunked"] + " (boundary_mask)" in reasons
    assert len(reasons) == len({reason.split(" (")[0] for reason in reasons})
    assert not any("not implemented" in reason for reason in reasons)


def test_a_reason_of_all_ops_names_none(monkeypatch):
    monkeypatch.setitem(dida_kernels.dispatch._missing, "cuda", "no compiler was found")
    monkeypatch.delitem(OPS["bank_update"].backends, "cuda", raising=False)
    assert "not cuda on cpu: no compiler was found" in list(dida_kernels.choice_lines(CPU, classes=CLASSES))


def test_the_report_names_every_op_and_backend():
    report = dida_kernels.report()
    assert list(report) == sorted(dida_kernels.OPS)
    assert {
        "bank_similarity",
        "bank_update",
        "boundary_mask",
        "class_similarity",
        "gather",
        "instance_loss",
        "scatter",
    } == set(report)
    for backends in report.values():
        assert tuple(backends) == ORDER
        assert backends["equation"] == "yes"
        assert all(isinstance(why, str) and why for why in backends.values())
