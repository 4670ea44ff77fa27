"""Places that nothing can be written to, as the outputs of train.py and eval.py; and programs of the bench."""

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dida.options import flag
from tests.faults.places import Places
from tests.faults.programs import evaluation, training
from tests.faults.trial import Case

# What is asked for, relative to a folder with: `file`, `folder` (not empty), `dangling`, a link to a file in no folder,
# `circle`, a link to itself, `pipe`.
NO_FOLDERS = (
    "file",
    "file/x",
    "/proc/nope/x",
    "/proc/1/x",
    "/sys/x",
    "n" * 300,
    "a/" + "n" * 300,
    "/dev/null",
    "/dev/full",
    "/dev/null/x",
    "circle",
    "circle/x",
    "pipe",
    "pipe/x",
    "x/" * 2500,
)
NO_FILES = (*NO_FOLDERS[1:], "folder", ".", "/", "..", "")


def output_cases(places: Places) -> Iterator[Case]:
    """Refused before the work, in a line that names the option; nothing is left behind."""
    for where in NO_FOLDERS:
        yield _refused("train.py", "out", where, lambda w: training(places.toy, out=w))
    for where in NO_FOLDERS:
        yield _refused(
            "eval.py", "save_predictions", where, lambda w: evaluation(places.checkpoint, save_predictions=w)
        )
        pictures = next(places.toy.rglob("leftImg8bit/val"))
        yield _refused("eval.py", "out", where, lambda w, p=pictures: evaluation(places.checkpoint, images=p, out=w))
    for where in NO_FILES:
        yield _refused("eval.py", "json", where, lambda w: evaluation(places.checkpoint, json=w))


def _refused(program: str, name: str, where: str, does: Callable[[str], Callable[[], None]]) -> Case:
    def run() -> None:
        Path("file").write_text("kept")
        Path("folder").mkdir()
        Path("folder/kept").write_text("kept")
        Path("circle").symlink_to("circle")
        os.mkfifo("pipe")
        before = _listing()
        try:
            does(where)()
        finally:
            assert _listing() == before, f"left behind: {_listing() ^ before}"
            assert Path("file").read_text() == Path("folder/kept").read_text() == "kept"

    short = where if len(where) < 40 else f"{where[:20]}... of {len(where)} characters"
    return Case("outputs", f"{program} {flag(name)} {short!r}", run, words=(f"{program}: {flag(name)}",))


def _listing() -> set[Path]:
    return set(Path().rglob("*"))


PROGRAMS = {
    "bench.kernels": (
        "--agreed text",
        "--agreed nope.json",
        "--agreed /dev/null",
        "--ops nope",
        "--nope",
        "--json file/x",
        "--json /proc/nope",
    ),
    "bench.step": ("--steps 0", "--steps -1", "--steps text", "--steps nan", "--nope", "--json /proc/nope/x"),
    "bench.bank_update": ("--nope", "text"),
    "bench.lite0": ("", "--nope", "a b", "/proc/nope/x", "."),
    "bench.figures.warehouse": ("", "--nope", "a b", "/proc/nope/x"),
    "bench.figures.own_data": ("", "docs", "/proc/nope/x nope nope", ". nope nope"),
    "bench.loading": ("--steps 0", "--steps 0.1 nan", "--files 0", "--passes -1", "--batch-size 0", "--nope"),
    "bench.bank_memory": ("--steps 0", "--nope", "--json /proc/nope/x"),
    "bench.gpu.report": ("empty.json", "list.json", "cut.json", "nope", "/dev/null", "--nope", ""),
    "bench.compiled.budget": ("--kernel nope", "--kernel", "--nope"),
    "bench.tables": (
        "--jobs 0",
        "--jobs -1",
        "--jobs text",
        "--seeds 5-3",
        "--seeds x",
        "--seeds -1",
        "--seeds 1-",
        "--table nope",
        "--nope",
    ),
    "bench.figures": (
        "",
        "nope",
        "strips",
        "strips out.png nope",
        "similarity out.png nope",
        "distribution out.png nope",
        "strips /proc/nope/x.png nope",
        "distribution . nope",
    ),
    "dida.doctor": ("--data-root", "--nope"),
    "dida.data.toy": (
        "--out file/x",
        "--out /proc/nope/x",
        "--seed text",
        "--seed -1",
        "--nope",
        "--size nope",
    ),
}
FINE = {"dida.doctor": ("--data-root nope", "--data-root file", "--data-root /dev/null", "--data-root /proc/1")}


def program_cases(places: Places) -> Iterator[Case]:
    """The programs of bench/, the doctor and the toy."""
    for right, programs in ((True, PROGRAMS), (False, FINE)):
        for program, lines in programs.items():
            for line in lines:
                yield Case("programs", f"{program} {line}", _program(program, line.split()), right)


def _program(name: str, args: list[str]) -> Callable[[], None]:
    def run() -> None:
        Path("file").write_text("kept")
        for kind, text in {"empty": "{}", "list": "[]", "cut": '{"a": '}.items():
            Path(f"{kind}.json").write_text(text)
        sys.argv = [name, *args]
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return run
