"""Scoring pictures and counting labels, now and in an older version: python -m bench.versions

The older version is checked out beside this one, and the two take turns on the same made pictures, each with a network
that it trained for two steps, as neither reads checkpoints of the other. Seconds are of the clock, with all cores, for
the pictures by which a large set is larger than a small one, so that starting a program does not count. Of several
turns the fastest counts.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bench import record
from bench.loading import PUBLISHED, make_files
from dida.machine.files import require_writable
from dida.options import COUNT, read_command_line

FIRST = "27994bd"  # the last commit of the first version
GTA5, CITYSCAPES = PUBLISHED[0], PUBLISHED[-1]

_COUNT = """
import sys, time
from pathlib import Path
from dida.data import domains
from dida.data.statistics import class_statistics
domain = domains.labelled("gta5", Path(sys.argv[1]), "train")
begin = time.perf_counter()
class_statistics(domain, workers=2)
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class VersionsOptions:
    """Print what scoring and counting cost, now and before."""

    before: str = FIRST
    """The commit that this version is compared with."""
    turns: Annotated[int, COUNT] = 3
    """Turns of each, of which the fastest counts."""
    json: Path | None = None
    """A file that keeps the times, with what they were measured on; a table of them goes beside it."""


class Sets(NamedTuple):
    """Pictures of one size, in a small set and a large one that are folders `few` and `many`."""

    size: tuple[int, int]  # (width, height)
    few: int
    many: int

    def difference(self, seconds: Callable[[str], float]) -> float:
        """Seconds that one picture more takes."""
        return (seconds("many") - seconds("few")) / (self.many - self.few)


SCORED = (Sets((256, 128), 10, 110), Sets((1024, 512), 2, 14))
COUNTED = Sets(GTA5.size, 8, 40)


def main(options: VersionsOptions) -> None:
    """Measure, print, and keep if asked. Raises CalledProcessError where a version fails, OSError, before anything is
    measured, where the result cannot be kept."""
    if options.json:
        require_writable(options.json, option="--json", folder=False)
    with tempfile.TemporaryDirectory() as folder, checked_out(options.before, Path(folder) / "before") as before:
        trees = {"before": before, "now": record.ROOT}
        found = {
            f"score a picture of {sets.size[0]}x{sets.size[1]}": fastest(
                ways_to_score(trees, Path(folder) / f"scored-{sets.size[0]}", sets), options.turns
            )
            for sets in SCORED
        }
        found["count a label of GTA5"] = fastest(ways_to_count(trees, Path(folder) / "counted", COUNTED), options.turns)
    result = {"header": record.header("cpu"), "before": options.before, "turns": options.turns, "seconds": found}
    print(versions_report(result))
    if options.json:
        record.write(options.json, result)
        record.write(options.json.with_suffix(".md"), versions_report(result) + "\n")


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """The tree of a commit, in a folder of its own."""
    git = ("git", "-C", str(record.ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def ways_to_score(trees: Mapping[str, Path], root: Path, sets: Sets) -> dict[str, Callable[[], float]]:
    """What measures the seconds to score a picture by two networks, by version; in this one also by one network."""
    val = CITYSCAPES._replace(
        size=sets.size, **{part: getattr(CITYSCAPES, part).replace("/train/", "/val/") for part in ("image", "label")}
    )
    for name, count in (("few", sets.few), ("many", sets.many)):
        make_files(root / name, val, count)
    for data in (GTA5, CITYSCAPES):  # to train on
        make_files(root / "few", data._replace(size=(256, 128)), 2)
    for name, tree in trees.items():
        _train(tree, root / "few", sets, root / name)

    def way(name: str, *more: str) -> Callable[[], float]:
        def seconds(of: str) -> float:
            command = ("eval.py", root / name, "--data-root", root / of, "--split", "val", "--device", "cpu", *more)
            begin = time.perf_counter()
            said_by(trees[name], *command)
            return time.perf_counter() - begin

        return lambda: sets.difference(seconds)

    return {name: way(name) for name in trees} | {"now, --alone": way("now", "--alone")}


def ways_to_count(trees: Mapping[str, Path], root: Path, sets: Sets) -> dict[str, Callable[[], float]]:
    """What measures the seconds to count a label, by version; two processes do."""
    for name, count in (("few", sets.few), ("many", sets.many)):
        make_files(root / name, GTA5, count)

    def way(tree: Path) -> Callable[[], float]:
        def seconds(of: str) -> float:
            for cache in root.rglob("*.npz"):  # of the turn before
                cache.unlink()
            return float(said_by(tree, "-c", _COUNT, root / of).split()[-1])

        return lambda: sets.difference(seconds)

    return {name: way(tree) for name, tree in trees.items()}


def _train(tree: Path, data: Path, sets: Sets, out: Path) -> None:
    options = {
        "--src": "gta5", "--tgt": "cityscapes", "--data-root": data, "--method": "source", "--steps": 2, "--warmup": 1,
        "--crop": 64, "--batch-size": 1, "--src-size": "256x128", "--tgt-size": "{}x{}".format(*sets.size),
        "--backbone": "mit_b0", "--embed-dim": 64, "--weights": "none", "--device": "cpu", "--workers": 2,
        "--rare-class-pixels": 1, "--out": out,
    }  # fmt: skip
    said_by(tree, "train.py", *(x for pair in options.items() for x in pair))


def said_by(tree: Path, *args: object) -> str:
    """What a version prints. Raises CalledProcessError."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=tree, check=True, stdout=subprocess.PIPE, text=True).stdout


def fastest(ways: Mapping[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """By name, the least that each returned. They take turns."""
    found = [{name: way() for name, way in ways.items()} for _ in range(turns)]
    return {name: min(turn[name] for turn in found) for name in ways}


def versions_report(result: Mapping[str, Any]) -> str:
    """The table in markdown: milliseconds, and how many times as fast as before."""
    rows = [
        [what, name, f"{1000 * seconds:.1f}", f"{by_name['before'] / seconds:.2f}"]
        for what, by_name in result["seconds"].items()
        for name, seconds in by_name.items()
    ]
    setting = f"before: commit {result['before']}; made pictures, the fastest of {result['turns']} turns"
    table = record.table(["what", "version", "ms", "times as fast"], rows)
    return "\n\n".join(
        ["# Scoring and counting, before and now", setting, record.render_header(result["header"]), table]
    )


def versions_command(args: list[str]) -> None:
    try:
        main(read_command_line(VersionsOptions, args, "bench.versions"))
    except subprocess.CalledProcessError as error:
        sys.exit(f"bench.versions: {' '.join(map(str, error.cmd[:4]))} ... ended with status {error.returncode}")


if __name__ == "__main__":
    versions_command(sys.argv[1:])
