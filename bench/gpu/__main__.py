"""What a GPU says of this tree, in one command.

    python -m bench.gpu --out OUT [--seconds 545] [--stages NAME ...]     all of it, or after a fix what is named
    python -m bench.gpu.report OUT/results.json                           tables, targets and the figure

Stage by stage (bench/gpu/stages.py), each in a process group of its own with its own time and log. OUT gets two files
whatever happens: results.json, everything that was measured and what became of every stage, and logs.tar.gz. Nothing is
written into the checkout but the compiled extension.

All of it takes an H100 or H200 twenty minutes, most of them compilation and starts of processes. Where a GPU is lent
for less, calls share it. A later one runs the tests that are not green yet, and finds the compiled kernels where it is
the same machine (TRITON_CACHE_DIR=/tmp/triton for all); on another it needs `build` again:

    --stages build kernels agreement no-waiting bench-instance_loss-300-3000 bench-class_similarity-300-3000 ...
    --stages build kernels agreement step-cost step-cost-compiled whole-run sanitizer --again FIRST/results.json

It needs no installation of ours: a Python with torch, triton, numpy, timm, opencv and pytest. Packages that are missing
travel as wheels (--wheels). Where git does not travel, DIDA_COMMIT says which commit this is.
"""

import argparse
import sys
from pathlib import Path

from bench.arguments import seconds
from bench.gpu.runner import Request, run_stages
from bench.gpu.stages import STAGES, chosen_stages


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--seconds", type=seconds, default=545, help="for all stages (default: 545)")
    parser.add_argument("--stages", nargs="+", default=[], choices=[stage.name for stage in STAGES], metavar="NAME",
                        help=f"only these, in this order: {', '.join(stage.name for stage in STAGES)}")  # fmt: skip
    parser.add_argument("--again", type=Path, metavar="RESULTS",
                        help="results.json of an earlier command: what passed there is not run again")  # fmt: skip
    parser.add_argument("--at-most", type=seconds, help="for any stage, where there is less time than its own limit")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to try the command")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that are missing here")
    parser.add_argument("--banks", type=Path, help="folder of banks of real runs (*.npz), for their test")
    options = parser.parse_args()
    for name in ("wheels", "banks"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            parser.error(f"--{name} {folder}: no such folder")
    if options.again is not None and not options.again.is_file():
        parser.error(f"--again {options.again}: no such file")
    request = Request(options.out, options.seconds, options.device, options.banks, options.wheels, options.again)
    return run_stages(chosen_stages(options.stages, options.at_most), request)


if __name__ == "__main__":
    sys.exit(main())
