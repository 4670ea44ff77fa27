"""Plant each mistake of a room in a copy of the tree, run its tests there, and report: see the package."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from tests.planted import Plant

ROOT = Path(__file__).parents[2]
ROOMS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
SECONDS = 1800  # for one selection of tests
GREEN, RED, HUNG = 0, 1, -1  # the first two are pytest's; its others are mistakes of a plant or of its selection


def copy_tree(to: Path) -> None:
    """What git knows and what it does not ignore, and the compiled extension."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    extension = (path.relative_to(ROOT) for path in (ROOT / "dida_kernels").glob("*.so"))
    for name in (*filter(None, files), *extension):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


class Copy:
    """A copy of the tree in which tests can be run."""

    def __init__(self, root: Path):
        self.root = root

    def run(self, *selection: str) -> tuple[int, str]:
        """The status of pytest, and the first test that failed; else the end of what it said."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *selection]
        try:
            done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return HUNG, f"not ended after {SECONDS} s"
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.M)
        return done.returncode, failed[1] if failed else (done.stdout + done.stderr)[-500:].strip()

    def build(self) -> None:
        """Compile the extension again."""
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=self.root, check=True, capture_output=True, env=os.environ | {"DIDA_BUILD": "1"})

    def plant(self, plant: Plant) -> tuple[int, str]:
        """Run the plant's tests with it in the tree, and take it out again. Returns as `run`."""
        path = self.root / plant.file
        source = path.read_text()
        # CUDA sources are not compiled here: a test runs them on the CPU.
        built = path.suffix in (".cpp", ".h") and "sanitized" not in plant.red
        try:
            path.write_text(source.replace(plant.old, plant.new))
            if built:
                self.build()
            return self.run(*shlex.split(plant.red))
        finally:
            path.write_text(source)
            if built:
                self.build()


def line_of(plant: Plant) -> str:
    source = (ROOT / plant.file).read_text()
    return f"{plant.file}:{source[: source.index(plant.old)].count(chr(10)) + 1}"


def main() -> int:
    """Exit status 1 if a mistake survives, or if a test that saw one is red without it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="+", choices=ROOMS, metavar="room", help=", ".join(ROOMS))
    parser.add_argument("--only", default="", help="only plants with this in their file or mistake")
    options = parser.parse_args()
    plants = [plant for room in options.rooms for plant in import_module(f"tests.planted.{room}").PLANTS]
    plants = [plant for plant in plants if options.only in f"{plant.file} {plant.mistake}"]
    seen: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        copy = Copy(Path(folder))
        for plant in plants:
            status, said = copy.plant(plant)
            verdict = {RED: "red", GREEN: "SURVIVED", HUNG: "HUNG"}.get(status, "BROKEN PLANT")
            seen += [said] if status == RED else []
            print(f"{verdict:8} {line_of(plant)}  {plant.mistake}  ->  {said}", flush=True)
        status, said = copy.run(*dict.fromkeys(seen)) if seen else (GREEN, "")
    print(f"{len(seen)} of {len(plants)} mistakes are seen")
    if status != GREEN:
        print(f"RED WITHOUT A MISTAKE: {said}")
    return 0 if len(seen) == len(plants) and status == GREEN else 1


if __name__ == "__main__":
    sys.exit(main())
