"""See the package."""

import argparse
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from dida.machine.provenance import source_digest
from dida.machine.signals import Stopped
from dida.recipes import METHODS
from tests.page_block import tried_on, write_block
from tests.pairs.made import make_domains
from tests.pairs.run import Case, run_case

Results = dict[Case, bool]  # whether it ran


def main() -> None:
    """Run what is asked for and not known yet; exit status 1 where something is known to have failed."""
    parser = argparse.ArgumentParser(description=sys.modules["tests.pairs"].__doc__)
    parser.add_argument("--src", nargs="*", help="sources, by default all")
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--known", type=Path, help="a file of results; those of this very source stand, and are shown")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        sources, targets = make_domains(root)
        every = cases_of(METHODS, sources, targets, options.steps)
        chosen = cases_of(options.method, options.src or sources, targets, options.steps)
        known = Known(options.known or Path(folder) / "known.jsonl", root)
        try:
            known.run([case for case in chosen if case not in known.results], root, Path(folder) / "run")
        finally:
            if options.known:
                write_block("contributing.md", "pairs", table(every, known.results))
    sys.exit(0 if all(known.results.values()) else 1)


def cases_of(methods: Iterable[str], sources: list[str], targets: list[str], steps: int) -> list[Case]:
    """In an order of their own, so that those that were run so far are a fair part of all."""
    cases = [
        Case(src, tgt, method, steps)
        for method in methods
        for src in (sources if method != "oracle" else ["-"])
        for tgt in targets
    ]
    random.Random(0).shuffle(cases)
    return cases


class Known:
    """Results of the source as it is now, in a file of a line each."""

    def __init__(self, path: Path, root: Path) -> None:
        """`root`: of the data, which the file does not name."""
        self._path, self._root, self._digest = path, str(root), source_digest()
        self.results: Results = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line.replace("ROOT", self._root))
            if entry["digest"] == self._digest:
                self.results[Case(*entry["case"])] = entry["ran"]

    def run(self, cases: list[Case], root: Path, out: Path) -> None:
        """Run them one after the other."""
        start = time.monotonic()
        for done, case in enumerate(cases, 1):
            self.add(case, ran=_ran(case, root, out))
            if done % 50 == 0 or done == len(cases):
                failed = sum(not ran for ran in self.results.values())
                print(f"{done} of {len(cases)}, {failed} failed, {time.monotonic() - start:.0f} s", flush=True)

    def add(self, case: Case, *, ran: bool) -> None:
        self.results[case] = ran
        line = json.dumps({"case": case, "ran": ran, "digest": self._digest})
        with self._path.open("a") as file:
            file.write(line.replace(self._root, "ROOT") + "\n")


def _ran(case: Case, root: Path, out: Path) -> bool:
    try:
        run_case(case, root, out)
    except Stopped:
        raise
    except (Exception, SystemExit):
        print(f"FAILED {case}\n{traceback.format_exc(limit=-2)}", flush=True)
        return False
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return True


def table(every: list[Case], results: Results) -> str:
    """What was run of all there is, as Markdown."""
    lines = ["| method | pairs | run | failed |", "|---|---|---|---|"]
    for method in METHODS:
        of_method = [case for case in every if case.method == method]
        ran = [results[case] for case in of_method if case in results]
        lines.append(f"| {method} | {len(of_method)} | {len(ran)} | {len(ran) - sum(ran)} |")
    return "\n".join([*lines, "", f"{datetime.now(UTC):%Y-%m-%d}, {tried_on()}.", ""])


if __name__ == "__main__":
    main()
