"""compute-sanitizer's memcheck and racecheck on every op, after it has found two planted mistakes.

What was not watched to its end counts as not watched, never as clean.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from bench.gpu.program import begin, stage_parser
from bench.gpu.runner import CHECKOUT

CHECKS = {"memcheck": "write", "racecheck": "race"}  # and what planted.cu is told to do wrong for it
FOUND = 9  # exit status by which compute-sanitizer says that it found something
CLEAN = "clean"
# Those whose kernels share memory between threads, or index most, first: time may end.
WATCHED_OPS = (
    "instance_loss", "class_similarity", "bank_update", "boundary_mask", "bank_similarity", "gather", "scatter",
)  # fmt: skip


class Watched(NamedTuple):
    """A program under the sanitizer, or any other."""

    status: int | None  # None: it took too long
    output: str


Watch = Callable[[str, Sequence[str]], Watched]  # (check, program)


def run_for(command: Sequence[str], seconds: float) -> Watched:
    """A program's status and the end of its output."""
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor an allocation of its own
    try:
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=max(seconds, 1), check=False, text=True, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = late.output.decode(errors="replace") if isinstance(late.output, bytes) else late.output or ""
        return Watched(None, f"{said[-1500:]}\nended after {seconds:.0f} s")
    return Watched(done.returncode, done.stdout[-1500:])


def tool_path(name: str) -> str | None:
    return shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")


def why_blind(watch: Watch) -> str | None:
    """Why this sanitizer's word is worth nothing: it misses a planted mistake. None if it finds both."""
    nvcc = tool_path("nvcc")
    if nvcc is None:
        return "there is no nvcc to compile the planted mistakes with, so that a clean run would prove nothing"
    with TemporaryDirectory() as folder:
        planted = str(Path(folder, "planted"))
        built = run_for([nvcc, "-arch=native", "-o", planted, "tests/kernels/planted.cu"], 60)
        if built.status != 0:
            return f"the planted mistakes do not compile: {built.output}"
        for check, mistake in CHECKS.items():
            seen = watch(check, [planted, mistake])
            if seen.status != FOUND:
                return f"{check} does not work here, it missed a planted mistake: {seen.output}"
    return None


def watch_ops(watch: Watch, at_once: int) -> Iterator[tuple[str, Watched]]:
    """("memcheck gather", what came of it), as they end. Most of such a run is importing torch, so several run."""
    with ThreadPoolExecutor(at_once) as pool:
        runs = {
            pool.submit(watch, check, [sys.executable, "-m", "tests.kernels.sanitized", op]): f"{check} {op}"
            for check in CHECKS
            for op in WATCHED_OPS
        }
        for run in as_completed(runs):
            yield runs[run], run.result()


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    program.keep(found={}, unwatched={}, why=None)
    tool = tool_path("compute-sanitizer")
    if tool is None:
        program.keep(why="compute-sanitizer is not on the PATH and not in /usr/local/cuda/bin")
        print(program.found["why"])
        return 1

    def watch(check: str, watched: Sequence[str]) -> Watched:
        return run_for([tool, "--tool", check, "--error-exitcode", str(FOUND), *watched], program.left())

    if why := why_blind(watch):
        program.keep(why=why)
        print(why)
        return 1
    for name, seen in watch_ops(watch, at_once=min(len(WATCHED_OPS), os.cpu_count() or 1)):
        if seen.status in (0, FOUND):
            program.keep(found=program.found["found"] | {name: CLEAN if seen.status == 0 else seen.output})
        else:
            program.keep(unwatched=program.found["unwatched"] | {name: seen.output})
        print(name, "clean" if seen.status == 0 else seen.output, flush=True)
    clean = all(said == CLEAN for said in program.found["found"].values())
    return 0 if clean and not program.found["unwatched"] else 1


if __name__ == "__main__":
    sys.exit(main())
