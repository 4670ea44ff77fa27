"""`python train.py` end to end, on small data sets in the published formats."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dida import loop, recipes
from dida.command import run_training
from dida.state import FORMAT, checkpoints, latest, load_checkpoint
from tests.data.factories import make_cityscapes, make_gta, make_synthia
from tests.engine.short_runs import signalled_after
from tests.faults.scripts import Script

ROOT = Path(__file__).parents[2]
SMALL = (
    "--backbone mit_b0 --weights none --embed-dim 16 --crop 64 --src-size 174x96 --tgt-size 128x64 "
    "--rare-class-pixels 20 "
    "--steps 2 --warmup 1 --bank-size 40 --bank-start 1 --bank-fill 1 --bank-every 1 --log-every 1 --panel-every 2 "
    "--workers 0 --device cpu"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_gta(root, 6)
    make_synthia(root, 6)
    make_cityscapes(root, (128, 64), labelled=("train", "val"), train=4, val=2)
    return root


def train(*args: object) -> None:
    """What train.py does with these arguments, in this process."""
    run_training(recipes.from_command_line([str(arg) for arg in args]))


@pytest.fixture
def script(tmp_path) -> Callable[..., tuple[int, str]]:
    """train.py in a process of its own: its exit status, and what it says on both streams."""

    def run(*args: object, before: Callable[[], object] | None = None) -> tuple[int, str]:
        child = Script("train.py", [str(arg) for arg in args], tmp_path / "said.txt", before)
        return child.wait(), child.said()

    return run


@pytest.mark.parametrize("src", ["gta5", "synthia"])
@pytest.mark.parametrize("method", list(recipes.METHODS))
def test_every_method_starts_on_the_published_formats(data, tmp_path, src, method):
    domain = [] if method == "oracle" else ["--src", src]
    out = tmp_path / "run"
    train(*SMALL, *domain, "--method", method, "--data-root", data, "--out", out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (out / "panels" / "step_000002.png").stat().st_size > 1000
    saved = load_checkpoint(latest(out))
    assert saved["step"] == 2
    assert saved["config"]["method"] == method
    assert set(saved) >= {"student", "teacher", "bank", "optimizer", "schedule"}
    if method == "dida" and src == "synthia":  # no slot for classes that SYNTHIA lacks
        assert not set(saved["bank"]["labels"].tolist()) & {9, 14, 16}
    if method == "dida":
        assert lines[-1]["loss/instance"] > 0


def test_training_never_opens_a_target_label(data, tmp_path):
    """An audit hook on every open and directory listing of the process, and no label folder to find."""
    script = """
import runpy, sys
seen = []
watched = ("open", "os.listdir", "os.scandir")
sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event in watched else None)
runpy.run_path("train.py", run_name="__main__")
assert any("leftImg8bit" in path for path in seen), "the hook saw no image"
print("LABELS", [path for path in seen if "gtFine" in path])
"""
    args = [*SMALL, "--data-root", str(data), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", script, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LABELS []" in done.stdout


def stop_in_the_third_step() -> None:
    loop.train_step = signalled_after(3, loop.train_step)


def test_six_steps_are_three_a_kill_and_three(data, tmp_path, script):
    args = [*SMALL, "--data-root", data, "--steps", 6, "--save-every", 100]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert script(*args, "--out", straight)[0] == 0
    status, said = script(*args, "--out", broken, before=stop_in_the_third_step)
    assert status == 128 + signal.SIGTERM
    assert "SIGTERM after step" in said
    assert "python train.py --resume" in said
    assert load_checkpoint(latest(broken))["step"] == 3
    assert script("--resume", broken)[0] == 0

    a, b = load_checkpoint(latest(straight)), load_checkpoint(latest(broken))
    assert a["step"] == b["step"] == 6
    for part in ("student", "teacher", "bank"):
        for name, tensor in a[part].items():
            assert torch.equal(tensor, b[part][name]), (part, name)
    for i, moments in a["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(tensor, b["optimizer"]["state"][i][name]), (i, name)

    def losses(folder):
        lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k.startswith("loss/") or k == "step"} for line in lines]

    assert losses(straight) == losses(broken)
    assert losses(straight)[-1]["loss/instance"] > 0


def test_only_the_newest_two_checkpoints_stay(data, tmp_path):
    out = tmp_path / "run"
    train(*SMALL, "--data-root", data, "--steps", "4", "--save-every", "1", "--out", out)
    assert [path.name for path in checkpoints(out)] == ["step_000003.pt", "step_000004.pt"]


def test_init_starts_both_networks_from_another_run(data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    common = [*SMALL, "--data-root", data]
    train(*common, "--method", "source", "--out", first)
    train(*common, "--init", first, "--lr", "1e-30", "--weight-decay", "0", "--out", second)
    weights = load_checkpoint(latest(first))["student"]
    for part in ("student", "teacher"):
        started = load_checkpoint(latest(second))[part]
        assert torch.equal(weights["decode_head.conv_seg.weight"], started["decode_head.conv_seg.weight"])


def test_weights_that_an_update_spoils_stop_the_run_and_are_its_fault(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(SystemExit, match="weights not finite at step 1, after an update that was too large"):
        train(*SMALL, "--data-root", data, "--steps", "5", "--lr", "1e18", "--head-lr-factor", "1e18", "--out", out)
    assert list(out.glob("nonfinite_step_*.json"))
    assert not checkpoints(out)


@pytest.mark.parametrize(
    "args, parts",
    [
        (["--src", "gta5", "--data-root", "{empty}"], ["expected:", "gta/images", "found:", "download.visinf"]),
        (["--src", "gta6"], ["no domain is called 'gta6'"]),
        (["--backbone", "mit_b7"], ["no backbone 'mit_b7'", "mit_b5"]),
        (["--weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--device", "cuda:99"], ["train.py: device cuda:99: "]),
        (["--init", "{other}"], ["{other}: expected a whole number as 'step'"]),
        (["--resume", "{empty}"], ["no config.json in it"]),
        (["--resume", "{other}"], ["{other}: expected a dictionary as 'config', found nothing"]),
        (["--resume", "{future}"], ["unknown options ['magic']"]),
        (["--data-root", "{broken}", "--workers", "1"], ["train.py: {broken}/gta/images/00001.png: not a readable"]),
        (["--out", "{full}"], ["never overwritten"]),
    ],
)
def test_what_a_user_can_put_right_is_one_message(data, tmp_path, script, args, parts):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "future").mkdir()
    (tmp_path / "future" / "config.json").write_text('{"magic": 1}')
    torch.save({"format": FORMAT, "student": {"weight": torch.ones(1)}}, tmp_path / "other")
    if "{broken}" in args:
        make_gta(tmp_path / "broken", 1)
        make_cityscapes(tmp_path / "broken", (128, 64), labelled=(), train=1)
        (tmp_path / "broken" / "gta" / "images" / "00001.png").write_bytes(b"no picture")
    places = {name: tmp_path / name for name in ("empty", "full", "future", "other", "broken")}
    out = tmp_path / "run"
    status, said = script(*SMALL, "--data-root", data, "--out", out, *(arg.format(**places) for arg in args))
    assert status != 0
    assert "Traceback" not in said
    for part in parts:
        assert part.format(**places) in said


def test_resume_refuses_other_options(data, tmp_path):
    out = tmp_path / "run"
    train(*SMALL, "--data-root", data, "--out", out)
    with pytest.raises(SystemExit, match="lr cannot change"):
        train("--resume", out, "--lr", "1")


def test_check_data_reports_and_says_so_in_its_exit_status(data, tmp_path, script):
    status, said = script("--check-data", "--data-root", data)
    assert status == 0, said
    assert "gta5 (train)" in said
    broken = tmp_path / "data"
    make_gta(broken, 2)
    make_cityscapes(broken, (128, 64), train=2, val=1)
    (broken / "gta" / "images" / "00001.png").write_bytes(b"no picture")
    status, said = script("--check-data", "--data-root", broken)
    assert status == 1
    assert "00001.png" in said
