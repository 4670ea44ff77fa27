"""The tests that run on a GPU, each outcome written down as it comes.

Kernels against their equations on fresh numbers, outputs filled with NaN before, two runs equal in every bit, no host
synchronisation. A red test marks the numbers of its op (`doubts`) and hides no other.

Where the time was up, or a test was mended, a second command runs what has not passed yet (`--again`); what passed
before is kept with it, and of which commits it is.
"""

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench.gpu.passed_before import NOTHING, Before, kernels_digest, leave_out, seen_before
from bench.gpu.program import Program, begin, stage_parser
from dida.data.workers import usable_cores

STEP = ("tests/engine/test_step_on_gpu.py",)
ON_GPU = (
    "tests/kernels/test_agreement.py",
    "tests/kernels/test_training_size.py",
    "tests/kernels/test_banks.py",
    "tests/kernels/test_triton_bank_similarity.py",
    "tests/kernels/test_triton_boundary_mask.py",
    "tests/kernels/test_triton_class_similarity.py",
    "tests/kernels/test_triton_rows_instance_loss.py",
    "tests/kernels/test_triton_instance_loss.py",
    "tests/kernels/test_triton_scatter_gather.py",
    "tests/kernels/test_bank_update.py",
    "tests/kernels/test_real_banks.py",
    "tests/kernels/test_fuzz.py",
    *STEP,
    "tests/use/test_evaluate.py::test_on_a_gpu_networks_are_scored_as_on_the_cpu",
    "tests/report/test_measure.py::test_on_a_gpu_the_same_is_counted",
    "tests/data/test_loader.py::test_batches_arrive_on_the_device",
)


class Selection(NamedTuple):
    """Tests, and which of them."""

    tests: tuple[str, ...]
    keyword: str = ""  # as pytest's -k
    few: int | None = None  # that there are no more than so many, where that is worth fewer processes


SELECTIONS = {
    # Of every kernel family the smallest scene: what fails here fails everywhere.
    "smoke": Selection(
        ("tests/kernels/test_agreement.py",),
        "test_agrees_with_the_equation and triton and (ordinary or stride_4 or same_grid) and not float16",
    ),
    "step": Selection(STEP, few=4),
    "rest": Selection(tuple(test for test in ON_GPU if test not in STEP)),
}
WORKERS = 12  # test processes at most; each has a context of some 500 MB on the GPU,
MEMORY_OF_A_WORKER = 6e9  # and beside the largest test there must be room for the contexts of the others
NEEDS_A_GPU = re.compile("CUDA|GPU|extension")  # in the reason of a skipped test: a GPU would have run it
SAVE_EVERY = 1.0  # seconds
SHOWN = 20  # red tests that the log names


class Outcomes:
    """A pytest plugin: what became of every test so far."""

    def __init__(self, program: Program, before: Before = NOTHING) -> None:
        self.program = program
        self._before = before
        self._new: dict[str, str] = {}  # id -> passed, failed or skipped
        self._why: dict[str, str] = {}  # of those that did not pass
        self._saved = 0.0

    @property
    def tests(self) -> dict[str, str]:
        """Outcomes by test, this command's and what is left of an earlier one's."""
        before = dict.fromkeys(self._before.passed, "passed") | dict.fromkeys(self._before.failed, "failed")
        return before | self._new

    @property
    def why(self) -> dict[str, str]:
        """Of those that did not pass."""
        tests = self.tests
        return {name: why for name, why in (self._before.failed | self._why).items() if tests[name] != "passed"}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._note(report.nodeid, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(report.nodeid, report)

    def _note(self, name: str, report: Any) -> None:
        if self._new.get(name) != "failed":  # a test that failed and whose teardown is well has failed
            self._new[name] = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            self._why[name] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            self._why[name] = report.longreprtext[-1500:]
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        self.program.keep(tests=self.tests, why=self.why)


def workers(memory_bytes: float | None) -> int:
    """How many test processes this machine and its card carry."""
    by_memory = WORKERS if memory_bytes is None else int(memory_bytes / MEMORY_OF_A_WORKER)
    return max(1, min(WORKERS, usable_cores(), by_memory))


def pytest_arguments(
    selection: Selection, processes: int, present: Callable[[str], Any] = find_spec
) -> tuple[list[str], str | None]:
    """What pytest is given, and what is done otherwise because a package is missing."""
    arguments = [*selection.tests, "-p", "no:cacheprovider"]
    arguments += ["-p", "bench.gpu.fresh_worker", "-p", "bench.gpu.passed_before"]
    arguments += ["-k", selection.keyword] if selection.keyword else []
    arguments += ["-p", "no:benchmark"] if present("pytest_benchmark") else []  # a plugin that warns in every process
    if not present("xdist"):
        return arguments, "pytest-xdist is not installed: tests run one by one, and a lost context reddens what follows"
    # A worker whose context is lost is replaced, however often. (By group, xdist 3.8 hangs when a worker is gone.)
    return [*arguments, "--numprocesses", str(processes), "--dist", "load", "--max-worker-restart", "1000"], None


def memory_of_card(device: str) -> float | None:
    """Bytes; None where there is no card."""
    if device == "cpu":
        return None
    import torch  # only here: test processes import it themselves

    return torch.cuda.get_device_properties(0).total_memory


def needing_a_gpu(why: Mapping[str, str], tests: Mapping[str, str]) -> list[str]:
    """Of the tests that were skipped, those that a machine with a GPU must not skip."""
    skipped = (name for name, outcome in tests.items() if outcome == "skipped")
    return [name for name in skipped if NEEDS_A_GPU.search(why.get(name, ""))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = stage_parser(__doc__)
    parser.add_argument("--tests", choices=tuple(SELECTIONS), default="rest")
    program, options = begin(parser, arguments)
    before = seen_before(program.device) if options.tests == "rest" else NOTHING
    return run_tests(program, SELECTIONS[options.tests], before)


def run_tests(program: Program, selection: Selection, before: Before = NOTHING) -> int:
    """Run them on fresh numbers, but for what passed `before`; 0 if some passed, none failed and none was skipped that
    a GPU would have run."""
    os.environ["DIDA_SEED"] = secrets.token_hex(4)  # inherited by the test processes; tests/cases.py reads it
    processes = min(workers(memory_of_card(program.device)), selection.few or WORKERS)
    # The truth is calculated on the CPU, where a team of threads in each process would be twelve for every core.
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))
    chosen, otherwise = pytest_arguments(selection, processes)
    leave_out(before.passed, program.to.with_suffix(".passed"))
    outcomes = Outcomes(program, before)
    earlier = {"tests": len(before.passed), "commit": before.commits} if before.commits else None
    program.keep(
        seed=os.environ["DIDA_SEED"], kernels=kernels_digest(), otherwise=otherwise, before=earlier, status=None,
        tests=outcomes.tests, why=outcomes.why,
    )  # fmt: skip
    status = int(pytest.main(chosen, plugins=[outcomes]))
    if status == pytest.ExitCode.NO_TESTS_COLLECTED and before.passed:
        status = 0  # nothing was left to run
    outcomes.save()
    failed = [name for name, outcome in outcomes.tests.items() if outcome == "failed"]  # earlier ones, too
    skipped = needing_a_gpu(outcomes.why, outcomes.tests) if program.device == "cuda" else []
    program.keep(status=status, skipped_for_want_of_a_gpu=skipped)
    passed = sum(outcome == "passed" for outcome in outcomes.tests.values())
    print("\n".join(filter(None, [before.note, otherwise, *(f"RED {name}" for name in failed[:SHOWN])])))
    print(f"{passed} of {len(outcomes.tests)} passed, {len(failed)} failed, {len(skipped)} skipped for want of a GPU")
    return 0 if status == 0 and passed and not failed and not skipped else 1


# ---- what a red test says of a number ------------------------------------------------------------------------------


def doubts(found: Mapping[str, Any], ops: Sequence[str]) -> Callable[[str, str, Any], str | None]:
    """What the tests of a stage say against an op on a backend in a dtype, None if they agree.

    A dtype is one of torch's. A red test counts against the ops in its name; one of the kernels' that names none,
    against all.
    """
    tests: dict[str, str] = dict(found.get("tests", {}))
    red: dict[str, list[str]] = {op: [] for op in ops}
    for name in (name for name, outcome in tests.items() if outcome == "failed"):
        named = [op for op in ops if op in name]
        for op in named or (ops if name.startswith("tests/kernels/") else ()):
            red[op].append(Path(name).name)

    def doubt(op: str, backend: str, dtype: Any) -> str | None:
        if red[op]:
            return f"{len(red[op])} red tests, such as {red[op][0]}"
        shown = "torch.float32" if op == "boundary_mask" else str(dtype)  # it sees integers only
        wanted, ending = f"test_agrees_with_the_equation[{op}-{backend}-", f"-{shown}]"
        if not any(wanted in name and name.endswith(ending) and tests[name] == "passed" for name in tests):
            return f"no agreement test of it passed in {shown}"
        return None

    return doubt


if __name__ == "__main__":
    sys.exit(main())
