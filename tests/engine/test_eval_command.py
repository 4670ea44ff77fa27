"""eval.py from its options to tables, numbers, pictures and messages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dida.config import Config, changed, to_dict
from dida.state import FORMAT
from tests.data.factories import make_cityscapes, make_folder
from tests.engine.checkpoints import evaluate, refusal, tiny_config, write_checkpoint

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(data) -> Config:
    return tiny_config(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory, config) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_checkpoint(folder / "checkpoints" / "step_000200.pt", config, step=200)
    write_checkpoint(folder / "checkpoints" / "step_000400.pt", config)
    return folder


def test_a_run_is_scored_into_table_json_and_label_maps(run, data, tmp_path, capsys):
    numbers, maps = tmp_path / "a" / "val.json", tmp_path / "p"
    evaluate(run, "--json", numbers, "--save-predictions", maps)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cityscapes val: 3 images at 64x32"
    assert lines[-2:] == [f"numbers: {numbers}", f"label maps of the student: {maps}"]
    report = json.loads(numbers.read_text())
    assert report["checkpoint"].endswith("step_000400.pt")
    assert f"{report['student']['mIoU']['19']:.2f}" in next(line for line in lines if line.startswith("mIoU ("))
    for kind in ("train_ids", "label_ids", "colour"):
        assert len(list((maps / kind).iterdir())) == 3


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_one_network_alone_has_the_same_scores(run, tmp_path, capsys, network):
    both, one = tmp_path / "both.json", tmp_path / "one.json"
    evaluate(run, "--workers", "0", "--json", both)
    evaluate(run, "--workers", "0", "--json", one, "--network", network, "--alone")
    assert f"19 classes (16 and 13 below), {network}, scored" in capsys.readouterr().out
    expected = json.loads(both.read_text())
    del expected["teacher" if network == "student" else "student"]
    assert json.loads(one.read_text()) == expected


def test_a_named_checkpoint_window_flip_and_worker_change_what_they_say(run, tmp_path, capsys):
    path = run / "checkpoints" / "step_000200.pt"
    options = ["--window", "32", "--flip", "--size", "128x64", "--workers", "1", "--json", tmp_path / "x.json"]
    evaluate(path, *options)
    assert "at 128x64, window 32 every 16, with mirror image" in capsys.readouterr().out
    report = json.loads((tmp_path / "x.json").read_text())
    assert [report[k] for k in ("step", "window", "stride", "flip", "size")] == [200, 32, 16, True, "128x64"]


def test_another_domain_is_scored_where_it_is_asked_for(run, data, tmp_path, capsys):
    evaluate(run, "--tgt", "toy-cityscapes")
    assert capsys.readouterr().out.startswith("toy-cityscapes val (toy benchmark")
    make_cityscapes(tmp_path, (128, 64), test=2, labelled=("test",))
    evaluate(run, "--data-root", tmp_path, "--split", "test")
    assert capsys.readouterr().out.startswith("cityscapes test: 2 images at 64x32")


def test_pictures_go_where_they_are_told(run, tmp_path, capsys):
    photos = make_folder(tmp_path / "own", 2, (70, 90)) / "images"
    evaluate(run, "--images", photos, "--out", tmp_path / "out", "--network", "teacher")
    assert "2 pictures labelled by the teacher of step 400" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "overlay").iterdir())) == 2


def test_one_picture_goes_into_the_run_folder(config, tmp_path):
    folder = tmp_path / "run"
    path = write_checkpoint(folder / "checkpoints" / "step_000001.pt", config, step=1)
    photo = make_folder(tmp_path / "own", 1) / "images" / "street 0.jpg"
    evaluate(folder, "--images", photo)
    assert (folder / "images" / "overlay" / "street 0.png").exists()
    evaluate(path, "--images", photo)  # beside a checkpoint that is named
    assert (folder / "checkpoints" / "images" / "overlay" / "street 0.png").exists()


def test_what_a_user_can_put_right_is_one_message(run, config, tmp_path):
    assert "no such run" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in refusal(tmp_path / "empty")
    future = write_checkpoint(tmp_path / "future.pt", config, format=FORMAT + 1)
    assert f"format {FORMAT}, found {FORMAT + 1}" in refusal(future)
    other = write_checkpoint(tmp_path / "other.pt", changed(config, embed_dim=32))
    assert "student: not the weights of the network of its own config" in refusal(other)
    assert len(refusal(other).splitlines()) < 5  # of the hundreds of tensors, a few will do
    from_the_future = {"config": to_dict(config) | {"magic": 1}}
    assert "unknown options ['magic']" in refusal(write_checkpoint(tmp_path / "x.pt", config, **from_the_future))
    assert "no domain is called 'mars'" in refusal(run, "--tgt", "mars")
    assert "--size" in refusal(run, "--size", "big")
    assert "no window was asked for" in refusal(run, "--stride", "8")
    assert "window 40 and stride 41" in refusal(run, "--window", "40", "--stride", "41")
    assert "device cuda:99" in refusal(run, "--device", "cuda:99")
    assert "no picture there" in refusal(run, "--images", tmp_path / "empty")
    assert "--json" in refusal(run, "--images", tmp_path, "--json", tmp_path / "x.json")
    for option, value in (("--tgt", "acdc"), ("--split", "test"), ("--data-root", tmp_path)):
        assert f"{option} says what is scored" in refusal(run, "--images", tmp_path, option, value)
    assert "--batch-size is of --images" in refusal(run, "--batch-size", "2")
    assert "--save-predictions" in refusal(run, "--out", tmp_path)
    assert "cityscapes (train): no labels found" in refusal(run, "--split", "train")


def test_the_script_ends_with_that_message_and_status_1(tmp_path):
    command = [sys.executable, "eval.py", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"eval.py: {tmp_path / 'nowhere'}: no such run")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(run, tmp_path, workers):
    make_cityscapes(tmp_path, val=1)
    broken = next(tmp_path.rglob("*_leftImg8bit.png"))
    broken.write_bytes(b"no image")
    message = refusal(run, "--data-root", tmp_path, "--workers", workers)
    assert str(broken) in message
    assert "\n" not in message


def test_pictures_that_cannot_be_read_are_named_and_the_status_says_so(run, tmp_path, capsys):
    photos = make_folder(tmp_path / "own", 3) / "images"
    (photos / "street 1.jpg").write_bytes(b"no picture")
    first, second = refusal(run, "--images", photos, "--out", tmp_path / "out", "--workers", 0).splitlines()
    assert first == "eval.py: 1 could not be read:"
    assert second.startswith(f"  {photos / 'street 1.jpg'}: not a readable image")
    said = capsys.readouterr().out
    assert said == f"2 pictures labelled by the student of step 400: {tmp_path / 'out' / 'overlay'}\n"


def test_two_pictures_of_one_name_are_refused(run, tmp_path):
    make_folder(tmp_path, 1)
    (tmp_path / "images" / "street 0.png").touch()
    assert "would have the same name" in refusal(run, "--images", tmp_path)


def test_a_file_where_numbers_cannot_go_is_one_message(run, tmp_path):
    (tmp_path / "full").touch()
    assert str(tmp_path / "full") in refusal(run, "--json", tmp_path / "full" / "x.json")
