"""python bench/bank_update.py: `bank_update` on the CPU against every honest baseline there is.

131 072 pixels, D = 256, float32, in one run, on one thread and on two: the C++ extension; the equation; a bare
index_add of rows that are already laid out, which is the equation without all that leads up to it; and one read of the
embedding, which nothing can beat. Both at image resolution, where each pixel has its own row, and from the grid of
stride 4 that training has, where the equation first enlarges. Writes bench/results/cpu/bank_update.{json,md}.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

if not __package__:  # python bench/bank_update.py
    from by_path import start_again

    start_again(__file__)

import torch

import dida_kernels
from bench import record
from bench.arguments import described
from bench.clocks import time_cpu
from bench.kernels import CPU_SCENES, Prepared, disagreement, forced, run
from dida_kernels.equations import IGNORE, pixels
from tests import cases
from tests.cases import MAIN, Call, Scene, resized

THREADS = (1, 2)
_OURS = "ours"
SCENES = {
    "image resolution": CPU_SCENES["bank_update"],
    "stride 4": resized(MAIN, hw=(64, 64), HW=(256, 256)),
}


def on_threads(threads: int, call: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def ways(scene: Scene) -> dict[str, Callable[[], Any]]:
    """Ours, and what else would do the work. At image resolution rows are laid out beforehand, for all ways alike."""
    (bank_KD, label_K, embed_BDhw, label_BHW, boundary_BHW), options = cases.call("bank_update", scene)
    on_image = scene.hw == scene.HW
    if on_image:
        embed_BDhw = embed_BDhw.contiguous(memory_format=torch.channels_last)
    x = Prepared(Call((bank_KD, label_K, embed_BDhw, label_BHW, boundary_BHW), options), None, None)
    calls = {
        _OURS: partial(run, forced("bank_update", "cpp"), x),
        "equation": partial(run, dida_kernels.bank_update.reference, x),
        "one read of the embedding": embed_BDhw.sum,
    }
    if on_image:
        embed_ND, classes = pixels(embed_BDhw), options["classes"]
        label_N = label_BHW.flatten()
        set_N = torch.where(label_N == IGNORE, 2 * classes, label_N + classes * boundary_BHW.flatten())
        zeros_SD = embed_ND.new_zeros(2 * classes + 1, scene.D)
        calls["index_add alone"] = partial(zeros_SD.index_add, 0, set_N, embed_ND)
    return calls


def survey_updates(scenes: dict[str, Scene]) -> list[dict[str, Any]]:
    """Every way on every number of threads. Raises RuntimeError, and times nothing, if ours is wrong."""
    if why := disagreement("bank_update", "cpp", torch.float32):
        raise RuntimeError(f"bank_update is not timed: {why}")
    rows = []
    for threads in THREADS:
        for name, scene in scenes.items():
            timings = on_threads(threads, partial(time_cpu, ways(scene)))
            ours = timings[_OURS].median
            rows += [
                {"embedding": name, "threads": threads, "way": way, **timing._asdict(), "of_ours": timing.median / ours}
                for way, timing in timings.items()
            ]
    return rows


def same_bits(scene: Scene) -> bool:
    """Whether ours gives the same bits on one thread and on two."""
    ours = ways(scene)[_OURS]
    one, two = ([x.clone() for x in on_threads(threads, ours)] for threads in THREADS)
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def update_report(result: dict[str, Any]) -> str:
    """The report in markdown; every number in it comes from `result`."""
    head = ["embedding", "threads", "way", "median ms", "20 - 80 %", "x ours"]
    body = []
    for row in result["rows"]:
        between, of_ours = f"{row['low']:.2f} - {row['high']:.2f}", f"{row['of_ours']:.2f}"
        body.append([row["embedding"], row["threads"], row["way"], f"{row['median']:.2f}", between, of_ours])
    same = [[name, "yes" if same else "NO"] for name, same in result["same_bits"].items()]
    return "\n\n".join(
        [
            "# bank_update on the CPU: 131 072 pixels, D = 256, float32",
            record.render_header(result["header"]),
            record.table(head, body),
            record.table(["embedding", "the same bits on one thread and on two"], same),
            "",
        ]
    )


def main() -> None:
    described(__doc__).parse_args()
    if (why := dida_kernels.report()["bank_update"]["cpp"]) != "yes":
        sys.exit(f"bench/bank_update.py: there is nothing to time, the extension does not run: {why}")
    result = {
        "header": record.header("cpu"),
        "rows": survey_updates(SCENES),
        "same_bits": {name: same_bits(scene) for name, scene in SCENES.items()},
    }
    record.write(record.RESULTS_FOLDER / "cpu" / "bank_update.json", result)
    record.write(record.RESULTS_FOLDER / "cpu" / "bank_update.md", update_report(result))
    print(update_report(result))


if __name__ == "__main__":
    main()
