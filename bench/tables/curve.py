"""A sweep over one option as a picture."""

from pathlib import Path

from bench.tables.comparison import Comparison, Line


def draw_curve(found: Comparison, path: Path) -> None:
    """Paired differences to DIDA with their 95 % intervals over the swept option. Needs matplotlib."""
    from matplotlib.figure import Figure  # here, so that running needs no dev packages

    option, quantity = found.table.sweeps, found.quantities[found.headline]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for line in (line for line in found.lines if line.records):
        difference = line.difference(quantity)
        if line.against is None:
            axes.plot(_value(line, option), 0, "o", color="grey")
        elif difference is not None:
            half = difference.half_width if difference.n > 1 else None
            axes.errorbar(_value(line, option), difference.mean, half, fmt="o", color="tab:blue", capsize=3)
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xscale("log")
    swept = sorted(row.options[option] for row in found.table.rows)
    axes.set_xticks(swept, [f"{value:g}" for value in swept], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(f"--{option.replace('_', '-')}")
    axes.set_ylabel(f"{'toy ' * found.toy}mIoU, difference to DIDA (grey)")
    axes.set_title(f"{found.setting.benchmark.title}, {found.setting.split}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _value(line: Line, option: str) -> float:
    """Of the option in what was run; DIDA's own row does not spell it out."""
    return next(iter(line.records.values()))["options"][option]
