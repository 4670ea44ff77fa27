"""Looking at a run: what is seen of the source and, without labels, of the target; and that looking changes nothing."""

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from dida import loop, recipes
from dida.assemble import assemble
from dida.batch import Prediction
from dida.config import Config, changed
from dida.data.toy import Counts, generate
from dida.errors import UserError
from dida.run.terms import SHARE, WATCH
from dida.run.watch import Watch, amount, build_watch, in_words
from dida.state import checkpoints, latest, load_checkpoint


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=Counts(source=3, source_val=2, target=3, val=2, test=1))
    return root


def options(toy: Path, out: Path, **more) -> Config:
    small = {
        "crop": 64, "batch_size": 1, "embed_dim": 16, "bank_size": 40, "steps": 4, "bank_start": 1, "bank_fill": 1,
        "workers": 0, "device": "cpu", "log_every": 3, "panel_every": 0, "save_every": 1, "out": out,
    }  # fmt: skip
    return changed(recipes.toy(Config()), data_root=toy, **small | more)


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(toy, tmp_path_factory) -> Path:
    config = options(toy, tmp_path_factory.mktemp("run"), eval_every=2, keep=0)
    return loop.train(config, assemble(config))


def test_looking_changes_nothing_of_the_run(toy, watched, tmp_path):
    config = options(toy, tmp_path / "run")
    blind = load_checkpoint(latest(loop.train(config, assemble(config))))
    seen = load_checkpoint(latest(watched))
    for part in ("student", "teacher", "bank"):
        assert all(torch.equal(seen[part][name], x) for name, x in blind[part].items())


def test_source_and_target_are_in_the_log_and_labels_of_the_target_are_not(watched):
    two, four = (line for line in lines(watched) if f"{WATCH}agreement" in line)
    assert (two["step"], four["step"]) == (2, 4)
    for line in (two, four):
        assert {name for name in line if name.count("/") == 2 and not name.startswith(SHARE)} == {
            f"{WATCH}toy-gta5-val_val/student", f"{WATCH}toy-gta5-val_val/teacher"
        }  # fmt: skip
        assert all(0 <= line[WATCH + name] <= 1 for name in ("agreement", "confident", "entropy"))
        shares = [x for name, x in line.items() if name.startswith(SHARE)]
        assert len(shares) == 19
        assert math.isclose(sum(shares), 1, rel_tol=1e-9)
        assert math.isclose(line[f"{WATCH}classes"], amount(shares), rel_tol=1e-9)
    assert f"{WATCH}drift" not in two
    moved = sum(abs(four[name] - two[name]) for name in four if name.startswith(SHARE)) / 2
    assert math.isclose(four[f"{WATCH}drift"], moved, rel_tol=1e-9, abs_tol=1e-12)


def test_all_checkpoints_stay_where_that_is_asked_for(toy, watched, tmp_path):
    assert len(checkpoints(watched)) == 4
    config = options(toy, tmp_path / "run", keep=1)
    assert [path.stem for path in checkpoints(loop.train(config, assemble(config)))] == ["step_000004"]


def test_labels_of_the_target_are_scored_where_that_is_asked_for(toy, tmp_path):
    config = options(toy, tmp_path / "run", eval_every=1, eval_target_labels=True)
    pairs = assemble(config).pairs
    names = [images.domain.name for images in build_watch(config, pairs.source, pairs.target).scored]
    assert names == ["toy-gta5-val", "toy-cityscapes"]


def test_pictures_of_a_source_that_it_does_not_train_on_are_scored(toy, tmp_path):
    """An own folder's are those of its own val split, not of another folder whose name is nearly its."""
    frames, source = tmp_path / "frames", toy / "toy/gta"
    for split, folder in (("train", "gta"), ("val", "gta-val")):
        for kind in ("images", "labels"):
            shutil.copytree(toy / "toy" / folder / kind, frames / kind / split)
    (tmp_path / "frames-val").mkdir()
    own = {"7": "road", "8": "sidewalk", "21": "vegetation"}
    (frames / "classes.json").write_text(json.dumps(own))
    config = options(toy, tmp_path / "run", src=f"folder:{frames}", eval_every=1)
    pairs = assemble(changed(config, eval_every=0)).pairs
    (scored,) = build_watch(config, pairs.source, pairs.target).scored
    assert scored.domain.images == tuple(sorted((frames / "images/val").iterdir()))
    assert len(pairs.source.images) == len(list((source / "images").iterdir()))
    for kind in ("images", "labels"):
        shutil.rmtree(frames / kind)
        shutil.copytree(source / kind, frames / kind)
    pairs = assemble(changed(config, eval_every=0)).pairs
    (scored,) = build_watch(config, pairs.source, pairs.target).scored
    assert scored.domain.split == "train"


def test_labels_that_are_asked_for_and_are_not_there(toy, tmp_path):
    config = options(toy, tmp_path / "run", eval_every=1, eval_target_labels=True)
    pairs = assemble(changed(config, eval_every=0, eval_target_labels=False)).pairs
    with pytest.raises((OSError, UserError, ValueError), match="val"):
        build_watch(changed(config, tgt=f"folder:{toy / 'toy/cityscapes/leftImg8bit/train'}"), pairs.source,
                    pairs.target)  # fmt: skip


class Says(nn.Module):
    """A network that says one thing of every pixel."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, image: torch.Tensor) -> Prediction:
        logits = self.scores.view(1, -1, 1, 1).expand(len(image), -1, *image.shape[2:])
        return Prediction(logits, logits, logits)


def watch_of(toy: Path) -> Watch:
    config = options(toy, Path("unused"), eval_every=1)
    pairs = assemble(config).pairs
    return build_watch(config, pairs.source, pairs.target)._replace(scored=())


def look(toy: Path, student: list[float], teacher: list[float], earlier=()) -> dict[str, float]:
    return watch_of(toy).look({"student": Says(student), "teacher": Says(teacher)}, earlier)


def test_looking_compiles_nothing(toy):
    """Pictures come in many sizes, and a block may be made for so many only."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    says = Says(19 * [0.0])
    says.compile(backend=backend, dynamic=False, fullgraph=True)
    watch_of(toy).look({"student": says, "teacher": says}, ())
    assert compiled == []
    says(torch.zeros(1, 3, 8, 8))
    assert len(compiled) == 1


def test_signals_by_hand(toy):
    sure, level = [9.0] + 18 * [0.0], 19 * [0.0]
    alike = look(toy, sure, sure)
    assert alike[f"{WATCH}agreement"] == 1
    assert alike[f"{WATCH}confident"] == 1
    assert alike[f"{WATCH}classes"] == 1
    assert alike[f"{SHARE}road"] == 1
    apart = look(toy, [0.0, 1.0] + 17 * [0.0], sure)
    assert apart[f"{WATCH}agreement"] == 0
    unsure = look(toy, level, level)
    assert math.isclose(unsure[f"{WATCH}entropy"], 1, rel_tol=1e-6)
    assert unsure[f"{WATCH}confident"] == 0


def test_a_collapse_is_told(toy, caplog):
    sure = [9.0] + 18 * [0.0]
    before = {f"{WATCH}classes": 6.0, f"{SHARE}road": 0.25, f"{SHARE}building": 0.75}
    with caplog.at_level(logging.WARNING):
        found = look(toy, sure, sure, [before, {"step": 3.0}])
    assert math.isclose(found[f"{WATCH}drift"], 0.75)
    assert "1.0 classes in effect, of 6.0 at an earlier look; most of them is road" in caplog.text
    assert "drift 75.0%" in in_words(found)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        look(toy, sure, sure, [before | {f"{WATCH}classes": 1.5}])
    assert not caplog.text


def test_shares_amount_to_classes():
    assert math.isclose(amount([0.25] * 4), 4)
    assert math.isclose(amount([1.0, 0.0]), 1)


def test_scores_of_an_own_folder_are_in_the_line():
    signals = {f"{WATCH}{name}": 0.5 for name in ("agreement", "confident", "entropy", "classes")}
    said = in_words({f"{WATCH}folder:/a/b_val/teacher": 0.25, f"{SHARE}pole/student": 0.5} | signals)
    assert said.startswith("mIoU folder:/a/b_val/teacher 25.00  student and teacher agree on 50%")
