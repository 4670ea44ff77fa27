"""Command lines of the benches: what nobody could mean is one line and not 0."""

import runpy
import sys

import pytest

REFUSED = {
    "bench.step": ["--steps 0", "--steps 1.5", "--steps ²", "--slots 0", "--crop 16", "--json /proc/nope/x"],
    "bench.bank_update": ["--nope", "text"],
    "bench.lite0": ["", "--nope", "a b", "/proc/nope/x", "."],
    "bench.figures.warehouse": ["", "--nope", "a b", "/proc/nope/x"],
    "bench.figures.own_data": ["", "docs", "/proc/nope/x nope nope", ". nope nope"],
    "bench.loading": ["--steps 0", "--steps 0.1 nan", "--files 0", "--passes -1", "--batch-size 0", "--nope"],
    "bench.bank_memory": ["--json /dev/full", "--plot /proc/nope/x", "--json ."],
    "bench.kernels": ["--op nope", "--slots 0", "--slots 300 -1", "--agreed x"],
    "bench.gpu": ["--seconds nan", "--seconds -1", "--seconds inf", "--seconds soon", "--nope"],
    "bench.gpu.report": ["", "nope.json", "/dev/null", "pyproject.toml", "bench"],
    "bench.tables": ["--jobs 0", "--jobs x", "--seeds 5-3", "--seeds 1-"],
    "bench.figures": ["", "nope", "strips o.png nope", "similarity o.png nope", "strips /proc/x nope", "strips . nope"],
}  # fmt: skip


@pytest.mark.parametrize("program, line", [(program, line) for program, lines in REFUSED.items() for line in lines])
def test_what_a_bench_cannot_mean_is_one_line(program, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, *line.split()])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(program, run_name="__main__")
    said = f"{capsys.readouterr().err}{ended.value.code if isinstance(ended.value.code, str) else ''}"
    assert ended.value.code != 0
    assert "Traceback" not in said
    assert said.strip()
