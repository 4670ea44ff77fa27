"""From a GPU's records to targets met or missed, and to the README's table. No number here is of its own.

    python -m bench.gpu_report bench/results/<gpu>                        targets, one a line
    python -m bench.gpu_report bench/results/<gpu> --readme README.md     and the block <!-- results:gpu -->

A folder holds what was measured there: check.json and kernels.json of bench/gpu_check.py, step.json of bench/step.py.
Targets are those of an H200, two crops of 512 x 512, D = 256, C = 19, the median of graph replays.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bench.record import NONE, replaced, table

FILES = ("check", "kernels", "step")
BRANCH = ("instance_loss", "class_similarity")  # the two calls of a step that know the bank
OF = "NVIDIA H200"

Records = dict[str, Any]  # by the names in FILES; those that are there


class SpeedTarget(NamedTuple):
    """A number that is wanted. `find` gives what was measured, None if it was not."""

    text: str
    limit: float
    unit: str
    find: Callable[[Records], float | None]
    at_least: bool = False  # else at most

    def met(self, found: float | None) -> bool | None:
        if found is None:
            return None
        return found >= self.limit if self.at_least else found <= self.limit


# ---- what was measured ---------------------------------------------------------------------------------------------


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def records(folder: Path) -> Records:
    return {name: read(path) for name in FILES if (path := folder / f"{name}.json").exists()}


def row(found: Records, op: str, dtype: str, slots: int, way: str | tuple[str, ...], how: str) -> dict | None:
    ways = (way,) if isinstance(way, str) else way
    for one in found.get("kernels", {}).get("rows", ()):
        if (one["op"], one["dtype"], one["K"], one["how"]) == (op, dtype, slots, how) and one["way"] in ways:
            return one
    return None


KERNELS = ("cuda", "triton")


def replayed(found: Records, op: str, slots: int, dtype: str = "bfloat16") -> float | None:
    """Milliseconds of our kernels."""
    mine = row(found, op, dtype, slots, KERNELS, "replayed")
    return mine and mine["median"]


def branch(slots: int) -> Callable[[Records], float | None]:
    return lambda found: _sum(replayed(found, op, slots) for op in BRANCH)


def times(way: str, dtype: str) -> Callable[[Records], float | None]:
    """How many times the branch's time another way of computing it takes, launched, at K = 300."""

    def find(found: Records) -> float | None:
        others = [row(found, op, dtype, 300, way, "launched") for op in BRANCH]
        theirs = _sum(other and other["median"] for other in others)
        ours = branch(300)(found)
        return theirs / ours if theirs and ours else None

    return find


def memory(slots: int) -> Callable[[Records], float | None]:
    """Megabytes on top of the inputs: of the larger of the branch's two calls, in either dtype."""

    def find(found: Records) -> float | None:
        rows = [row(found, op, dtype, slots, KERNELS, "launched") for op in BRANCH for dtype in ("float32", "bfloat16")]
        peaks = [one["peak_bytes"] if one else None for one in rows]
        return None if None in peaks else max(peaks) / 1e6

    return find


def step(slots: int, what: str, unit: float = 1.0) -> Callable[[Records], float | None]:
    """What DIDA's step costs more than DAFormer's; of the two precisions the worse."""

    def find(found: Records) -> float | None:
        rows = [one for one in found.get("step", {}).get("rows", ()) if (one["method"], one["K"]) == ("dida", slots)]
        return max((one[what] / unit for one in rows), default=None)

    return find


def of_check(part: str, find: Callable[[dict], float | None]) -> Callable[[Records], float | None]:
    return lambda found: find(found["check"][part]) if "check" in found else None


def _sum(parts: Iterable[float | None]) -> float | None:
    values = list(parts)
    return None if None in values else sum(values)


def _failures(agreement: dict) -> float | None:
    if agreement["green"] is None:
        return None
    return max(len(agreement["failed"]), 0 if agreement["green"] else 1)


def _dirty(sanitizer: dict) -> float | None:
    findings = sum(said != "clean" for said in sanitizer["found"].values())
    return None if sanitizer["why"] and not findings else findings


def _skipped(agreement: dict) -> float | None:
    return None if agreement["green"] is None else sum(agreement["skipped_for_want_of_a_gpu"].values())


TARGETS = (
    SpeedTarget("agreement tests that fail", 0, "", of_check("agreement", _failures)),
    SpeedTarget("tests skipped though a GPU is there", 0, "", of_check("agreement", _skipped)),
    SpeedTarget("sanitizer runs with a finding", 0, "", of_check("sanitizer", _dirty)),
    SpeedTarget("instance_loss + class_similarity, K = 300, bfloat16", 0.45, "ms", branch(300)),
    SpeedTarget("... eager float32 takes so many times as long", 20, "x", times("equation", "float32"), at_least=True),
    SpeedTarget("... torch.compile bfloat16", 7, "x", times("torch.compile", "bfloat16"), at_least=True),
    SpeedTarget("... K = 3 000", 3.8, "ms", branch(3000)),
    SpeedTarget("... memory of a call, K = 100 000", 400, "MB", memory(100_000)),
    SpeedTarget("boundary_mask", 6, "us", lambda found: _micro(replayed(found, "boundary_mask", 300, "float32"))),
    SpeedTarget("bank_update, K = 300, bfloat16", 25, "us", lambda found: _micro(replayed(found, "bank_update", 300))),
    SpeedTarget("DIDA's step over DAFormer's, K = 300: time", 5, "%", step(300, "more_time_percent")),
    SpeedTarget("DIDA's step over DAFormer's, K = 300: memory", 300, "MB", step(300, "more_bytes", 1e6)),
    SpeedTarget("DIDA's step over DAFormer's, K = 3 000: time", 15, "%", step(3000, "more_time_percent")),
)


def _micro(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else 1e3 * milliseconds


# ---- how it is printed ---------------------------------------------------------------------------------------------


def judged(found: Records) -> list[list[str]]:
    """Per target: what it is, the limit, what was measured, and met, MISSED or not measured."""
    lines = []
    for target in TARGETS:
        value = target.find(found)
        sign = "at least" if target.at_least else "at most"
        word = {True: "met", False: "MISSED", None: "not measured"}[target.met(value)]
        measured = NONE if value is None else f"{value:.4g} {target.unit}".strip()
        lines.append([target.text, f"{sign} {target.limit:g} {target.unit}".strip(), measured, word])
    return lines


def verdict(folder: Path) -> str:
    """The verdict, for a terminal."""
    found = records(folder)
    gpu = next((one["header"]["gpu"] for one in found.values()), folder.name)
    note = "" if gpu == OF else f" The targets are of an {OF}; this is an {gpu}."
    return f"{folder}.{note}\n\n{table(['target', 'limit', 'measured', ''], judged(found))}\n"


def right(check: dict[str, Any]) -> bool:
    """Whether everything that gpu-check was to look at was looked at and is as it must be, whatever its speed."""
    clean = check["sanitizer"]["why"] is None and not _dirty(check["sanitizer"])
    tested = check["agreement"]["green"] and not check["agreement"]["skipped_for_want_of_a_gpu"]
    return bool(check["build"]["passed"] and tested and clean)


def block(folder: Path) -> str:
    """The README's block. Raises ValueError for records that may not be shown."""
    found = records(folder)
    if missing := {"check", "kernels"} - found.keys():
        raise ValueError(f"{folder}: no {' and no '.join(f'{name}.json' for name in sorted(missing))}")
    if not found["check"]["agreement"]["green"]:
        raise ValueError(f"{folder}: the agreement tests are not green, and speed without agreement is not reported")
    commits = sorted({one["header"]["commit"] for one in found.values()})
    if bad := [commit for commit in commits if not commit.isalnum() or commit == "unknown"]:
        raise ValueError(f"{folder}: {', '.join(bad)} is no commit; measure again from a clean checkout")
    header = found["kernels"]["header"]
    parts = [
        f"### On a GPU: {header['gpu']}",
        "Two crops of 512 x 512, D = 256, C = 19, forward and backward where there is one; milliseconds are medians of "
        "CUDA graph replays, those of eager and torch.compile are launched one by one.",
        _kernels(found),
    ]
    if "step" in found:
        parts += [_setting(found["step"]["setting"]), _steps(found["step"]["rows"])]
    parts += [
        "Against the targets, which are those of an H200:",
        table(["target", "limit", "measured", ""], judged(found)),
    ]
    versions = ", ".join(f"{name} {header[name]}" for name in ("torch", "triton", "cuda"))
    parts.append(f"Commit {', '.join(commits)}. {versions}; clocks (SM, memory, highest SM) {header['clocks']}.")
    return "\n\n".join(parts)


def _kernels(found: Records) -> str:
    floors = {(x["op"], x["dtype"], x["K"]): x["floor_ms"] for x in found["kernels"]["counted"]}
    body = []
    for mine in found["kernels"]["rows"]:
        if mine["way"] not in KERNELS or mine["how"] != "replayed":
            continue
        key = (mine["op"], mine["dtype"], mine["K"])
        cells = [mine["op"], mine["dtype"], f"{mine['K']:,}".replace(",", " ")]
        if mine["median"] is None:
            body.append([*cells, mine["why"], *[NONE] * 4])
            continue
        cells += [f"{mine['median']:.3f}", f"{100 * floors[key] / mine['median']:.0f} %" if key in floors else NONE]
        for way in ("equation", "torch.compile"):
            other = row(found, *key, way, "launched")
            if other is None:
                cells.append(NONE)
            else:
                cells.append(other["why"] or f"{other['median'] / mine['median']:.1f}")
        body.append([*cells, f"{mine['peak_bytes'] / 1e6:.0f}"])
    return table(["", "dtype", "K", "ms", "of the floor", "x eager", "x torch.compile", "MB on top"], body)


def _setting(setting: dict[str, Any]) -> str:
    return "The whole training step: " + ", ".join(f"{name} {value}" for name, value in setting.items()) + "."


def _steps(rows: list[dict[str, Any]]) -> str:
    stages = list(rows[0]["stages"])
    body = [
        [
            one["method"] + (f", K = {one['K']}" if one["K"] else ""),
            one["dtype"],
            f"{one['images_per_second']:.1f}",
            f"{one['step_ms']:.1f}",
            *(f"{one['stages'][stage]:.1f}" for stage in stages),
            f"{one['peak_bytes'] / 1e6:,.0f}",
        ]
        for one in rows
    ]
    return table(["", "dtype", "images/s", "ms", *stages, "peak MB"], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="records of one GPU")
    parser.add_argument("--readme", type=Path, help="file whose block results:gpu is replaced")
    options = parser.parse_args()
    if not records(options.folder):
        sys.exit(f"bench.gpu_report: {options.folder}: no {', '.join(f'{name}.json' for name in FILES)}")
    print(verdict(options.folder))
    if options.readme is None:
        return
    try:
        options.readme.write_text(replaced(options.readme.read_text(), "gpu", block(options.folder)))
    except ValueError as error:
        hint = "a first block needs its two lines, <!-- results:gpu --> and <!-- /results -->, put where it is to stand"
        sys.exit(f"bench.gpu_report: {error} ({hint})" if "results:gpu" in str(error) else f"bench.gpu_report: {error}")


if __name__ == "__main__":
    main()
