"""See the package."""

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from dida.machine.signals import Stopped
from dida.recipes import METHODS
from tests.page_block import tried_on, write_block
from tests.pairs.made import make_domains
from tests.pairs.run import Case, run_case


def main() -> None:
    """Run all cases that are asked for; exit status 1 if one of them failed. All there are: the page is written."""
    parser = argparse.ArgumentParser(description=sys.modules["tests.pairs"].__doc__)
    parser.add_argument("--src", nargs="*", help="sources, by default all")
    parser.add_argument("--method", nargs="*", default=list(METHODS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--part", default="1/1", help="I/N: every Nth case from the Ith on, to run N at once")
    options = parser.parse_args()
    all_of_them = options == parser.parse_args([])
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "run"
        sources, targets = make_domains(root)
        chosen = options.src or sources
        cases = [
            Case(src, tgt, method, options.steps)
            for method in options.method
            for src in (chosen if method != "oracle" else ["-"])
            for tgt in targets
        ]
        random.Random(0).shuffle(cases)  # so that a part of them is a fair part
        first, parts = map(int, options.part.split("/"))
        cases = cases[first - 1 :: parts]
        failed, start, made_by = Counter[str](), time.monotonic(), tried_on()
        for done, case in enumerate(cases, 1):
            try:
                run_case(case, root, out)
            except Stopped:
                raise
            except (Exception, SystemExit):
                failed[case.method] += 1
                print(f"FAILED {case}\n{traceback.format_exc(limit=-2)}", flush=True)
            shutil.rmtree(out, ignore_errors=True)
            if done % 50 == 0 or done == len(cases):
                print(f"{done} of {len(cases)}, {failed.total()} failed, {time.monotonic() - start:.0f} s", flush=True)
    if all_of_them:
        write_block("contributing.md", "pairs", f"{table(cases, failed)}\n\n{datetime.now(UTC):%Y-%m-%d}, {made_by}.\n")
    sys.exit(1 if failed else 0)


def table(cases: list[Case], failed: Counter[str]) -> str:
    """What was run, as Markdown. `failed`: by method."""
    lines = ["| method | sources | targets | pairs | failed |", "|---|---|---|---|---|"]
    for method in METHODS:
        of_method = [case for case in cases if case.method == method]
        counts = (len({case.src for case in of_method}), len({case.tgt for case in of_method}), len(of_method))
        lines.append(f"| {method} | {' | '.join(map(str, counts))} | {failed[method]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
