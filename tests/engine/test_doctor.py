"""The doctor says what is there, and nothing that is missing makes it fail."""

import subprocess
import sys
from pathlib import Path

import torch

import dida_kernels
from dida.doctor import chosen_backend, examples, report
from dida_kernels.dispatch import ORDER
from tests.data.factories import make_cityscapes, make_gta

REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_every_op_has_an_example_that_it_runs_on():
    made = examples(CPU)
    assert set(made) == set(dida_kernels.OPS)
    for name, example in made.items():
        dida_kernels.OPS[name](*example.args, **example.options)


def test_the_backend_named_is_the_one_that_runs(monkeypatch):
    example = examples(CPU)["boundary_mask"]
    op = dida_kernels.OPS["boundary_mask"]
    chosen, passed_over = chosen_backend("boundary_mask", example)
    assert list(passed_over) == list(ORDER[: ORDER.index(chosen)])
    ran = []
    spy = op.backends[chosen]._replace(run=lambda *args, **options: ran.append(chosen))
    monkeypatch.setitem(op.backends, chosen, spy)
    op(*example.args, **example.options)
    assert ran == [chosen]


def test_the_switch_is_honoured(monkeypatch, tmp_path):
    monkeypatch.setenv("DIDA_BACKEND", "torch")
    assert chosen_backend("bank_update", examples(CPU)["bank_update"]) == ("torch", {})
    assert any(line.split() == ["DIDA_BACKEND", "torch"] for line in report(tmp_path))


def test_data_sets_are_counted_and_their_absence_is_no_error(tmp_path):
    make_gta(tmp_path, 2)
    make_cityscapes(tmp_path, train=3, val=2, labelled=("val",))
    lines = {line.split()[0]: line for line in report(tmp_path) if line.strip()}
    assert lines["gta5"].endswith("train 2 images, 2 labelled")
    assert lines["cityscapes"].endswith("train 3 images, no labels; val 2 images, 2 labelled")
    assert lines["synthia"].endswith("not there")


def test_the_command_exits_with_success(tmp_path):
    command = [sys.executable, "-m", "dida.doctor", "--data-root", str(tmp_path / "no such folder")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for heading in ("versions", "hardware", "building kernels", "backend of each operation", "data sets in"):
        assert heading in done.stdout
    assert torch.__version__.split("+")[0] in done.stdout
