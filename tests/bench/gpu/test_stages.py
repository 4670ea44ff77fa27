"""The plan: every stage has a program, and needs nothing that such a machine does not have."""

import subprocess
import sys
from importlib.util import find_spec

import dida_kernels
from bench.gpu.facts import NEEDED
from bench.gpu.runner import CHECKOUT
from bench.gpu.stages import GATE, STAGES, chosen_stages, groups_of


def modules() -> list[str]:
    return sorted({stage.command[1] for stage in STAGES})


def test_every_stage_has_a_name_and_a_program_of_its_own():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert len({stage.command for stage in STAGES}) == len(STAGES)
    assert all(stage.command[0] == "-m" and find_spec(stage.command[1]) for stage in STAGES)
    assert all(stage.needs <= stage.seconds for stage in STAGES)
    assert STAGES[0].name == GATE


def test_small_things_come_first_and_a_large_bank_last():
    """What most depends on is known before anything that may take the time away."""
    order = [stage.name for stage in STAGES]
    pairs = (
        ("smoke", "agreement"),
        ("build", "agreement"),
        ("agreement", "step-cost"),
        ("agreement", "bench-instance_loss-300-3000"),
        ("bench-bank_update-300", "bench-instance_loss-30000-100000"),
        ("bench-bank_update-300", "step-variants"),
        ("whole-run", "sanitizer"),
    )
    for before, after in pairs:
        assert order.index(before) < order.index(after)


def test_most_have_the_machine_for_themselves():
    together = [{stage.name for stage in group} for group in groups_of(STAGES)]
    assert [group for group in together if len(group) > 1] == [
        {"build", "kernels"},
        {"step-precision", "whole-run"},
    ]
    assert set.union(*together) == {stage.name for stage in STAGES}
    some = chosen_stages(["whole-run", "build", "bench-scatter-300", "kernels"])
    assert [len(group) for group in groups_of(some)] == [1, 1, 1, 1, 1]


def test_every_op_is_timed_in_a_process_of_its_own():
    timed = {stage.command[stage.command.index("--op") + 1] for stage in STAGES if stage.name.startswith("bench-")}
    assert timed == set(dida_kernels.OPS)


def test_what_is_named_is_run_as_it_is_named_and_what_says_whether_anything_can_be():
    assert [stage.name for stage in chosen_stages(["sanitizer", "smoke"])] == [GATE, "sanitizer", "smoke"]
    assert chosen_stages([]) == list(STAGES)
    assert [stage.seconds for stage in chosen_stages(["build", "smoke"], at_most=50)] == [45, 50, 50]


def test_stages_run_with_what_such_a_machine_has():
    """None of the log's, the tests' or the plots' packages is imported; a whole run has a log."""
    program = f"""
import importlib, sys
for name in ("matplotlib", "transformers", "xdist", "tensorboard"):
    sys.modules[name] = None
for name in {[name for name in modules() if name != "bench.gpu.whole_run"]}:
    importlib.import_module(name)
del sys.modules["tensorboard"]
import bench.gpu.whole_run
"""
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True)


def test_the_command_itself_runs_without_any_package():
    """So that a package that is missing or broken is a stage that failed."""
    program = f"""
import sys
for name in {[*NEEDED]}:
    sys.modules[name] = None
import bench.gpu.__main__
"""
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True)
