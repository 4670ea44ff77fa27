"""What a GPU says of this tree, in one command of at most ten minutes: make gpu-check

    build       the C++/CUDA extension, in place, with the Python at hand
    agreement   every test that runs on a GPU, on fresh numbers: kernels against their equations, outputs filled with
                NaN before, two runs equal in every bit, no host synchronisation
    sanitizer   compute-sanitizer's memcheck and racecheck on every op, after it has found two planted mistakes
    benches     every op against eager and torch.compile, launched and replayed, its memory and its floor
    verdict     each number against the target it has (bench/gpu_report.py)

No speed is measured of an op whose agreement tests are red. What cannot be done here is named, with the reason, and
counts as not checked, never as passed. Records go to bench/results/<gpu>/ (or --results), with what travels with every
record; `python -m bench.gpu_report` makes tables of them. No virtual environment is needed: PYTHON=python3.
"""

import argparse
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import gpu_report, record

ROOT = record.ROOT
SECONDS = 570  # of all stages; what is over then is the start of Python and the way of the results
SLOTS = (300, 3000, 30_000, 100_000)
# Those with a target first: the last ones may find no time left for torch.compile.
OPS = ("instance_loss", "class_similarity", "boundary_mask", "bank_update", "bank_similarity", "gather", "scatter")

NEEDED = {"triton": "triton", "numpy": "numpy", "pytest": "pytest", "setuptools": "setuptools"}  # module -> package
# Tests, and the modules without which they cannot be imported.
TESTS = {
    "tests/kernels/test_agreement.py": (),
    "tests/kernels/test_training_size.py": (),
    "tests/kernels/test_triton_bank_similarity.py": (),
    "tests/kernels/test_triton_boundary_mask.py": (),
    "tests/kernels/test_triton_class_similarity.py": (),
    "tests/kernels/test_triton_rows_instance_loss.py": (),
    "tests/kernels/test_triton_instance_loss.py": (),
    "tests/kernels/test_triton_scatter_gather.py": (),
    "tests/kernels/test_bank_update.py": (),
    "tests/kernels/test_real_banks.py": (),
    "tests/kernels/test_fuzz.py": ("hypothesis",),
    "tests/engine/test_step_on_gpu.py": ("timm", "cv2", "safetensors"),
    "tests/data/test_loader.py::test_batches_arrive_on_the_device": ("cv2", "PIL", "tqdm"),
}
WORKERS = 12  # test processes; each has a context on the GPU of some 500 MB
FOUND = 9  # exit status by which compute-sanitizer says that it found something
TOOLS = {"memcheck": "write", "racecheck": "race"}  # and what planted.cu is told to do wrong for it
NEEDS_A_GPU = re.compile("CUDA|GPU|extension")  # in the reason of a skipped test: a GPU would have run it


class Done(NamedTuple):
    """A command that ended, or was ended."""

    status: int | None  # None: it took too long
    output: str
    seconds: float

    @property
    def tail(self) -> str:
        return self.output[-1500:]


def command(arguments: Sequence[str | Path], seconds: float, **environment: str) -> Done:
    start = time.monotonic()
    with subprocess.Popen(
        [str(x) for x in arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it started ends with it, and no bench is timed beside a left-over
    ) as process:
        try:
            output, status = process.communicate(timeout=max(seconds, 1))[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, status = f"{process.communicate()[0]}\nended after {seconds:.0f} s", None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Done(status, output, time.monotonic() - start)


# ---- what must be here ---------------------------------------------------------------------------------------------


def obstacles(present: Callable[[str], Any] = find_spec) -> list[str]:
    """Why nothing can be checked here, each with its cure; empty if all is well."""
    found = []
    if missing := [package for module, package in NEEDED.items() if not present(module)]:
        found.append(f"gpu-check needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if not torch.cuda.is_available():
        found.append("there is no CUDA device that this PyTorch can use (python -m dida.doctor)")
    if record.commit() == "unknown":
        found.append("no git here says which commit this is, and a record must: set DIDA_COMMIT to its hash")
    return found


def runnable_tests(present: Callable[[str], Any] = find_spec) -> tuple[list[str], list[str]]:
    """The tests that can be imported here, and a line for each that cannot, naming what is missing."""
    missing = {test: [module for module in modules if not present(module)] for test, modules in TESTS.items()}
    left_out = [
        f"{test}: left out, {', '.join(modules)} is not installed" for test, modules in missing.items() if modules
    ]
    return [test for test, modules in missing.items() if not modules], left_out


# ---- the stages ----------------------------------------------------------------------------------------------------


def build(seconds: float) -> dict[str, Any]:
    done = command([sys.executable, "setup.py", "build_ext", "--inplace"], seconds, DIDA_BUILD="1")
    return {"passed": done.status == 0, "seconds": round(done.seconds), "why": None if done.status == 0 else done.tail}


def agreement(report: Path, seconds: float, present: Callable[[str], Any] = find_spec) -> dict[str, Any]:
    tests, left_out = runnable_tests(present)
    arguments = [sys.executable, "-m", "pytest", *tests, "-p", "no:cacheprovider", f"--junitxml={report}"]
    if present("xdist"):
        arguments += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    else:
        left_out.append("pytest-xdist is not installed: the tests run one after the other")
    seed = secrets.token_hex(4)
    done = command(arguments, seconds, DIDA_SEED=seed)
    found = outcomes(report) if report.exists() else {"passed": 0, "failed": [], "skipped": {}}
    green = done.status == 0 and found["passed"] > 0
    return {
        "green": green,
        "seed": seed,
        "seconds": round(done.seconds),
        "left_out": left_out,
        **found,
        "why": None if green else done.tail,
    }


def outcomes(report: Path) -> dict[str, Any]:
    """From a JUnit report: how many tests passed, the names of those that failed, and reasons of those skipped."""
    passed, failed, skipped = 0, [], Counter()
    for test in ElementTree.parse(report).iter("testcase"):
        said = {child.tag: child for child in test}
        if {"failure", "error"} & said.keys():
            failed.append(f"{test.get('classname')}::{test.get('name')}")
        elif "skipped" in said:
            skipped[said["skipped"].get("message", "")] += 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": dict(skipped)}


def needing_a_gpu(skipped: Mapping[str, int]) -> dict[str, int]:
    """Of the reasons for which tests were skipped, those that a machine with a GPU must not have."""
    return {reason: count for reason, count in skipped.items() if NEEDS_A_GPU.search(reason)}


def sanitizer(seconds: float) -> dict[str, Any]:
    """Per tool and op "clean" or what was found; `why` some or all were not watched to their end."""
    until = time.monotonic() + seconds
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return {"why": "compute-sanitizer is not on the PATH and not in /usr/local/cuda/bin", "found": {}}

    def watch(kind: str, program: Sequence[str | Path]) -> Done:
        watched = [tool, "--tool", kind, "--error-exitcode", str(FOUND), *program]
        return command(watched, until - time.monotonic(), PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    if why := blind(watch):
        return {"why": why, "found": {}}
    pairs = [(kind, op) for kind in TOOLS for op in OPS]
    with ThreadPoolExecutor(len(OPS)) as pool:  # most of a run is importing torch
        runs = pool.map(lambda pair: watch(pair[0], [sys.executable, "-m", "tests.kernels.sanitized", pair[1]]), pairs)
        done = {f"{kind} {op}": run for (kind, op), run in zip(pairs, runs, strict=True)}
    found = {name: "clean" if run.status == 0 else run.tail for name, run in done.items() if run.status in (0, FOUND)}
    unwatched = [f"{name} was not watched to its end: {done[name].tail}" for name in done if name not in found]
    return {"why": "\n".join(unwatched) or None, "found": found}


def blind(watch: Callable[[str, Sequence[str | Path]], Done]) -> str | None:
    """Why this sanitizer's word is worth nothing: it misses a planted mistake. None if it finds both."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return "no nvcc to compile the planted mistakes with, so that a clean run would prove nothing"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "planted")
        built = command([nvcc, "-arch=native", "-o", program, "tests/kernels/planted.cu"], 60)
        if built.status != 0:
            return f"the planted mistakes do not compile: {built.tail}"
        for kind, mistake in TOOLS.items():
            seen = watch(kind, [program, mistake])
            if seen.status != FOUND:
                return f"{kind} does not work here, it missed a planted mistake: {seen.tail}"
    return None


def benches(report: Path, folder: Path, until: float) -> dict[str, Any]:
    """kernels.json: one process per op, so that one that crashes takes no other with it."""
    parts, failed = [], {}
    for i, op in enumerate(OPS):
        left = until - time.monotonic()
        # What the measurements of the remaining ops need without torch.compile is not known before: 20 s each.
        compiling = max(0.0, (left - 20 * (len(OPS) - i)) / (len(OPS) - i))
        path = folder / f"{op}.json"
        arguments = [
            sys.executable,
            "bench/kernels.py",
            "--op",
            op,
            "--device",
            "cuda",
            "--json",
            path,
            "--agreed",
            report,
        ]
        arguments += ["--dtype", "float32", "--dtype", "bfloat16", "--slots", *map(str, SLOTS)]
        done = command([*arguments, "--compile-seconds", f"{compiling:.0f}"], left)
        if path.exists():
            parts.append(gpu_report.read(path))
            say(f"  {op}: {done.seconds:.0f} s")
        else:
            failed[op] = done.tail
            say(f"  {op}: NOT MEASURED\n{done.tail}")
    merged = dict(parts[0]) if parts else {"header": record.header("cuda"), "ceilings": {}}
    for name in ("rows", "counted"):
        merged[name] = [x for part in parts for x in part[name]]
    return merged | {"not_measured": failed}


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """The exit status: 0 if everything here was checked and is right, whatever the speed; else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=record.RESULTS_FOLDER, help="folder of the folder <gpu>")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all stages")
    parser.add_argument("--skip", nargs="+", default=[], choices=("build", "agreement", "sanitizer", "benches"))
    options = parser.parse_args()
    if found := obstacles():
        sys.exit("\n".join(found))
    until = time.monotonic() + options.seconds
    folder = options.results / record.machine_name("cuda")

    def left() -> float:
        return until - time.monotonic()

    check: dict[str, Any] = {"header": record.header("cuda")}
    say(record.render_header(check["header"]))
    not_asked = {"why": "skipped by --skip"}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "agreement.xml")
        say("build")
        check["build"] = build(left()) if "build" not in options.skip else {"passed": None, **not_asked}
        say(f"  {_verdict(check['build']['passed'])} {check['build']['why'] or ''}")
        say("agreement")
        if "agreement" not in options.skip:
            check["agreement"] = agreement(report, 0.6 * left())
        else:
            check["agreement"] = {"green": None, "passed": 0, "failed": [], "skipped": {}, "left_out": [], **not_asked}
        tested = check["agreement"]
        tested["skipped_for_want_of_a_gpu"] = needing_a_gpu(tested["skipped"])
        for line in tested["left_out"]:
            say(f"  {line}")
        say(f"  {_verdict(tested['green'])} {tested['passed']} passed, {len(tested['failed'])} failed")
        say("\n".join(f"  skipped {count}: {reason}" for reason, count in tested["skipped"].items()))
        say("\n".join(f"  FAILED {name}" for name in tested["failed"][:20]))
        if tested["why"]:
            say(tested["why"])
        say("sanitizer")
        watched = sanitizer(min(120, 0.4 * left())) if "sanitizer" not in options.skip else {"found": {}, **not_asked}
        check["sanitizer"] = watched
        say(f"  {watched['why'] or ''}")
        say("\n".join(f"  {what}: {said}" for what, said in watched["found"].items()))
        record.write(folder / "check.json", check)
        if "benches" not in options.skip:
            say("benches")
            if report.exists():
                record.write(folder / "kernels.json", benches(report, Path(scratch), until))
            else:
                say("  none: there is no agreement report, and speed without agreement is not reported")
    say(gpu_report.verdict(folder))
    return 0 if gpu_report.right(check) else 1


def _verdict(passed: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "not checked"}[passed]


if __name__ == "__main__":
    sys.exit(main())
