"""From what a GPU brought back to tables, targets and a figure. No number here is of its own.

    python -m bench.gpu.report OUT/results.json                            report.md and floor.png beside it
    python -m bench.gpu.report OUT/results.json --results bench/results    and all three kept in the folder of the GPU
    python -m bench.gpu.report FILE --page docs/performance.md             and the page's block <!-- results:gpu -->
    python -m bench.gpu.report FIRST LATER ...                             the later has the word on what it reached

Without a file the block says of every target that it was not measured. Floors are calculated here, which costs no time
of a GPU: once, from the source that was measured, and kept with the results.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from bench import kernels, record
from bench.compiled import roofline
from bench.gpu.goals import judged
from bench.gpu.ledger import DONE, RESULTS
from bench.gpu.measurements import COMPILED, EAGER, OURS, Measurements, Row
from bench.record import NONE, replaced
from bench.record import table as markdown_table
from dida.machine.provenance import source_digest

BLOCK = "gpu"  # of the page
FIGURE, TABLES = "floor.png", "report.md"
LISTED = 12  # kernels of a step that take longest
COUNTERS = (
    "Duration", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput", "Achieved Occupancy",
    "Registers Per Thread", "Issue Slots Busy", "Warp Cycles Per Issued Instruction",
)  # fmt: skip


# ---- floors --------------------------------------------------------------------------------------------------------


def with_floors(measured: Measurements) -> Measurements:
    """The same with the floor of every op that was timed, where card and source are known and it has none yet.

    What an op launches depends on its source, so floors are only calculated by the source that was measured.
    """
    rates, here = roofline.rates_of(measured.card or ""), source_digest(record.ROOT)
    stages = [stage for stage in measured.op_stages() if measured.source_of(stage)["digest"] == here]
    if "floors" in measured.content or rates is None or not stages:
        return measured
    capability = measured.found("facts")["capability"]
    rows = [row for stage in stages for row in measured.rows(stage) if row["way"] in OURS]
    timed = dict.fromkeys((row["op"], row["dtype"], row["K"]) for row in rows)
    counted = (kernels.count_op(op, getattr(torch, dtype), k, capability, rates) for op, dtype, k in timed)
    return Measurements(measured.content | {"floors": [one for one in counted if one is not None]})


def plot_floors(measured: Measurements, path: Path) -> bool:
    """Per cent of the floor over K, a line for each op and dtype. False, and no file, if there is nothing to draw."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in measured.op_rows():
        floor = measured.floor_ms(row)
        if row["way"] in OURS and row["how"] == "replayed" and row["median"] and floor:
            lines.setdefault(f"{row['op']}, {row['dtype']}", []).append((row["K"], 100 * floor / row["median"]))
    if not lines:
        return False
    import matplotlib  # not on every machine, and only needed here

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xscale="log", ylim=(0, 105), xlabel="slots of the bank, K", ylabel="per cent of the calculated floor",
             title=measured.card)  # fmt: skip
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


# ---- tables --------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def stages_table(measured: Measurements) -> str:
    body = []
    for name, stage in measured.stages.items():
        why = (stage["why"] or "").strip().splitlines()
        body.append([name, stage["outcome"], number(stage["seconds"], 1), why[-1].replace("|", "/") if why else ""])
    return markdown_table(["stage", "outcome", "s", "why"], body)


def goals_table(measured: Measurements) -> str:
    return markdown_table(["target", "limit", "measured", ""], judged(measured))


def ops_table(measured: Measurements) -> str:
    """A row per op, dtype and K of ours: replayed, with what launched rows add."""
    head = ["", "dtype", "K", "ms", "% of the floor", "x eager", "x torch.compile", "launched, ms", "x eager",
            "x torch.compile", "MB on top", "in doubt"]  # fmt: skip
    body = []
    for row in measured.op_rows():
        if row["way"] not in OURS or row["how"] != "replayed":
            continue
        floor = measured.floor_ms(row)
        share = 100 * floor / row["median"] if floor and row["median"] else None
        launched = measured.op_row(row["op"], row["dtype"], row["K"], row["way"], "launched") or {"median": None}
        cells = [row["op"], row["dtype"], f"{row['K']:,}".replace(",", " ")]
        cells += [row["why"] or number(row["median"], 4), number(share, 0), *_against(measured, row)]
        cells += [number(launched["median"], 4), *_against(measured, launched)]
        peak = row["peak_bytes"]
        body.append([*cells, number(None if peak is None else peak / 1e6, 1), row["doubt"] or ""])
    return markdown_table(head, body) if body else ""


def _against(measured: Measurements, row: Row) -> list[str]:
    """How many times as long eager and torch.compile take; why not, where they have no number."""
    cells = []
    for way in (EAGER, COMPILED):
        other = measured.op_row(row["op"], row["dtype"], row["K"], way, row["how"]) if row["median"] else None
        why = other["why"] if other else None
        cells.append(why or number(measured.times_ours(row, way) if other else None, 1))
    return cells


def call_parts_table(measured: Measurements) -> str:
    """Which kernel of a call takes how long, of bfloat16."""
    body = [
        [f"{part['op']}, K = {part['K']}", f"`{name}`".replace("|", "/"), number(ms, 4), count]
        for part in measured.parts() if part["dtype"] == "bfloat16"
        for name, ms, count in part.get("kernels", [])[:LISTED]
    ]  # fmt: skip
    return markdown_table(["kernels of a call in bfloat16", "", "ms", "launches"], body) if body else ""


def counters_table(measured: Measurements) -> str:
    """What Nsight Compute counted, a line per kernel."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in measured.rows("profile"):
        lines.setdefault((row["op"], row["kernel"]), {})[row["counter"]] = row["value"]
    body = [[op, f"`{kernel}`", *(found.get(name, NONE) for name in COUNTERS)] for (op, kernel), found in lines.items()]
    return markdown_table(["", "counted by ncu", *COUNTERS], body) if body else ""


def toy_table(measured: Measurements) -> str:
    """mIoU of the runs on the GPU, and of a CPU's records of the same rows and seeds."""
    by_row: dict[str, dict[int, float]] = {}
    for score in measured.found("toy-table").get("scores", []):
        by_row.setdefault(score["row"], {})[score["seed"]] = next(iter(score["mIoU"].values()))
    body = []
    for row, scores in by_row.items():
        there = cpu_scores(row, scores)
        both = [scores[seed] - there[seed] for seed in there]
        cells = [row, len(scores), number(statistics.fmean(scores.values()), 2), len(there)]
        cells += (
            [number(statistics.fmean(there.values()), 2), f"{statistics.fmean(both):+.2f}"] if there else [NONE] * 2
        )
        body.append(cells)
    head = ["toy, test", "seeds", "mIoU on the GPU", "seeds", "mIoU on a CPU", "GPU - CPU"]
    return markdown_table(head, body) if body else ""


def cpu_scores(row: str, seeds: Iterable[int]) -> dict[int, float]:
    """Of the records of one source, that with most of these seeds."""
    found: dict[str, dict[int, float]] = {}
    for seed in seeds:
        for path in (record.RESULTS_FOLDER / "toy/records").glob(f"*/{row}_s{seed}_test.json"):
            content = json.loads(path.read_text())
            if content["digest"] != record.UNKNOWN and not content["environment"]["trained"].get("gpu"):
                found.setdefault(path.parent.name, {})[seed] = next(iter(content["student"]["mIoU"].values()))
    return max(found.values(), key=len, default={})


def cost_table(measured: Measurements) -> str:
    rows = [row for stage in ("step-cost", "step-cost-compiled") for row in measured.rows(stage)]
    if not rows:
        return ""
    head = ["", "precision", "images/s", "ms", *rows[0]["stages"], "peak MB", "more time, %", "more MB"]
    body = [
        [
            row["method"] + (f", K = {row['K']}" if row["K"] else ""),
            row["precision"] + (", compiled" if row["compiled"] else ""),
            number(row["images_per_second"], 1), number(row["step_ms"], 1),
            *(number(ms, 1) for ms in row["stages"].values()), number(row["peak_bytes"] / 1e6, 0),
            f"{row['more_time_percent']:+.1f}", f"{row['more_bytes'] / 1e6:+,.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table(head, body)


def precision_table(measured: Measurements) -> str:
    body = [[row["precision"], *(f"{loss:.5f}" for loss in row["losses"].values()), f"{row['gradient_norm']:.5f}",
             f"{1 - row['gradient_cosine']:.1e}"] for row in measured.rows("step-precision")]  # fmt: skip
    losses = [f"loss {name}" for name in next(iter(measured.rows("step-precision")), {}).get("losses", {})]
    head = ["one step from one state", *losses, "norm of the gradient", "1 - cosine with that of fp32"]
    return markdown_table(head, body) if body else ""


def variants_table(measured: Measurements) -> str:
    rows = measured.rows("step-variants")
    numbers = {"images/s": ("images_per_second", 1), "ms in a row": ("stream_ms", 1), "alone": ("wall_ms", 1),
               "host": ("host_ms", 1), "GPU": ("device_ms", 1), "launches": ("launches", 0)}  # fmt: skip
    body = []
    for row in rows:
        if "eager_stream_ms" in row:
            said = f"forward and backward {row['eager_stream_ms']:.1f} ms, as a graph {row['graph_stream_ms']:.1f} ms"
            body.append([row["name"], said, *[NONE] * len(numbers), NONE])
            continue
        peak = row.get("peak_bytes")
        cells = [number(row.get(key), digits) for key, digits in numbers.values()]
        body.append([row["name"], row["why"] or "", *cells, number(None if peak is None else peak / 1e6, 0)])
    return markdown_table(["the step", "", *numbers, "peak MB"], body) if body else ""


def longest_kernels(measured: Measurements, variant: str) -> str:
    row = measured.variant(variant)
    kernels_of = (row or {}).get("kernels", [])[:LISTED]
    body = [[f"`{name}`".replace("|", "/"), number(ms, 2), count] for name, ms, count in kernels_of]
    return markdown_table([f"kernels of a step in {variant}", "ms", "launches"], body) if body else ""


def parts_table(measured: Measurements) -> str:
    body = [[row["name"], row["dtype"], number(row["forward"], 4), number(row["backward"], 4)]
            for row in measured.rows("network-parts")]  # fmt: skip
    return markdown_table(["operation of the network", "dtype", "forward, ms", "backward, ms"], body) if body else ""


def data_table(measured: Measurements) -> str:
    found = measured.found("throughput")
    body = [[f"a batch, {row['workers']} loading processes", f"{row['ms_per_batch']:.1f} ms"]
            for row in found.get("loading", [])]  # fmt: skip
    body += [[f"scoring, {row['way']}", f"{row['images_per_second']:.1f} images/s"] for row in found.get("scoring", [])]
    return markdown_table(["data", ""], body) if body else ""


def run_table(measured: Measurements) -> str:
    """The whole run on the toy, as far as it came."""
    found = measured.found("whole-run")
    body = []
    if trained := found.get("trained"):
        body.append(["trained", f"{trained['steps']} steps"])
    if stopped := found.get("stopped"):
        body.append(["stopped by SIGTERM, saved", f"after step {stopped['after_step']}"])
    if resumed := found.get("resumed"):
        difference = resumed["largest_difference_of_a_weight"]
        body.append(["resumed to the end, largest difference of a weight", f"{difference:.3g}"])
    if scored := found.get("scored"):
        body.append(["scored, mIoU in per cent (a run of seconds: no result)", number(scored["mIoU"], 2)])
    return markdown_table(["a whole run on the toy", ""], body) if body else ""


def tests_list(measured: Measurements) -> str:
    """How many tests of agreement there were; those that failed, and findings of the sanitizer, by name."""
    found = measured.found("agreement")
    counts = Counter(found.get("tests", {}).values())
    lines = []
    if counts:
        earlier = found.get("before")
        said = (
            f"tests of agreement: {counts['passed']:,} passed, {counts['failed']} failed, {counts['skipped']} skipped"
        )
        lines.append(said + (f"; {earlier['tests']:,} of them at commit {earlier['commit']}" if earlier else ""))
    red = dict.fromkeys(name for stage in ("smoke", "no-waiting", "agreement") for name in measured.red(stage))
    return "\n".join(f"- {line}" for line in (*lines, *(f"RED: {name}" for name in (*red, *measured.findings()))))


def origin_line(measured: Measurements) -> str:
    """Card, commit, digest, versions and clocks."""
    header = measured.header
    if not header:
        return "Nothing has been measured on a GPU."
    names = ("gpu", "clocks", "commit", "digest", "date", "python", "torch", "triton", "cuda", "cores")
    said = ", ".join(f"{name} {header[name]}" for name in names if header.get(name) is not None)
    others: dict[str, list[str]] = {}
    for stage in measured.stages:
        source = measured.source_of(stage)
        if source["digest"] not in (None, header["digest"]):
            others.setdefault(f"commit {source['commit']}, digest {source['digest']}", []).append(stage)
    said += "".join(f"; of {source}: {', '.join(stages)}" for source, stages in others.items())
    tried = "" if measured.card else " **On a CPU, with tiny sizes: none of it is a result.**"
    return f"{said}.{tried}"


def tables(measured: Measurements) -> list[str]:
    """What a page shows: everything that has a number, and the targets in any case."""
    found = (
        goals_table(measured), tests_list(measured), ops_table(measured), call_parts_table(measured),
        counters_table(measured), precision_table(measured), cost_table(measured), variants_table(measured),
        longest_kernels(measured, "bfloat16"), parts_table(measured), data_table(measured), run_table(measured),
        toy_table(measured), origin_line(measured),
    )  # fmt: skip
    return [part for part in found if part]


def whole_report(measured: Measurements) -> str:
    title = f"# {measured.card or 'No GPU'}"
    figure = [f"![per cent of the calculated floor]({FIGURE})"] if "floors" in measured.content else []
    return "\n\n".join([title, *tables(measured), *figure, stages_table(measured)]) + "\n"


# ---- where it goes -------------------------------------------------------------------------------------------------


def why_no_record(measured: Measurements) -> str | None:
    """Why these numbers may not be kept beside others, or shown on a page."""
    commit = measured.header.get("commit", "unknown")
    if measured.card is None:
        return "it was not measured on a GPU"
    if commit == "unknown" or not commit.isalnum():
        return f"{commit} is no commit: measure again from a clean checkout, or with DIDA_COMMIT set"
    return None


def keep(measured: Measurements, folder: Path) -> None:
    """Results, tables and figure in a folder."""
    record.write(folder / RESULTS, measured.content)
    plot_floors(measured, folder / FIGURE)
    record.write(folder / TABLES, whole_report(measured))


def main() -> int:
    """The exit status: 0 if all stages that were asked for ended well, whatever the speed; else 1."""
    parser = argparse.ArgumentParser(
        "python -m bench.gpu.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="results.json of a run of the command")
    parser.add_argument("--results", type=Path, help="folder of the folders of machines, such as bench/results")
    parser.add_argument("--page", type=Path, help="page whose block is replaced, such as docs/performance.md")
    options = parser.parse_args()
    if not (options.files or options.page):
        parser.error("nothing to do: name a results.json, or a --page")
    try:
        measured = with_floors(Measurements.read(*options.files)) if options.files else Measurements({})
        why = why_no_record(measured) if options.files else None
        if why and (options.results or options.page):
            raise ValueError(f"{options.files[-1]}: these numbers are no record: {why}")
        if options.files:
            keep(measured, options.files[-1].parent)
            print(whole_report(measured))
        if options.results and options.files:
            keep(measured, options.results / str(measured.card).lower().replace(" ", "-"))
        if options.page:
            block = "\n\n".join(tables(measured))
            options.page.write_text(replaced(options.page.read_text(), BLOCK, block))
    except (OSError, ValueError) as error:
        sys.exit(f"bench.gpu.report: {error}")
    return 0 if all(stage["outcome"] == DONE for stage in measured.stages.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
