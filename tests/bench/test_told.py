"""What is told is the truth of the very pixels that the teacher looks at, and nothing else changes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.told import LEVELS, Told, main, told_parts
from bench.told import __file__ as told_file
from dida import recipes
from dida.assemble import Parts, assemble
from dida.batch import IGNORE, Belief, InstanceTarget
from dida.config import Config
from dida.data import domains
from dida.data.domains import LabelledDomain
from dida.data.image_file import read_label, save_png
from dida.data.loader import batches
from dida.data.toy import Counts, generate
from dida.machine.files import read_metrics
from dida.state import checkpoints
from dida.step import train_step

OPTIONS = ("--src", "toy-gta5", "--embed-dim", "16", "--crop", "64", "--batch-size", "2", "--workers", "0",
           "--steps", "2", "--bank-start", "1", "--bank-fill", "1", "--bank-size", "57", "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=Counts(source=4, source_val=1, target=3, val=1, test=1))
    return root


def options(root: Path, *more: str) -> Config:
    return recipes.from_command_line(["--data-root", str(root), *OPTIONS, *more])


def labelled(root: Path) -> LabelledDomain:
    return domains.labelled("toy-cityscapes-oracle", root, "train")


def told(config: Config, level: str) -> Parts:
    return told_parts(assemble(config), labelled(config.data.data_root), config.data.batch_size, level)


@pytest.mark.parametrize(("size", "alike"), [("256x128", 1.0), ("192x96", 0.8), ("96x48", 0.6)])
def test_a_label_is_of_the_pixels_of_the_crop(tmp_path, toy, size, alike):
    """Seen where every picture shows its own label; a scaled picture mixes its colours at boundaries."""
    config, known = options(toy, "--tgt-size", size), labelled(toy)
    truth = told(config, "both").method.believe.regenerate.truth
    shown = assemble(config).pairs
    drawn = [tmp_path / path.name for path in known.images]
    for i, path in enumerate(drawn):
        save_png(path, read_label(known.labels[i], known.encoding(i))[..., None].repeat(3, axis=2))
    shown.target = replace(shown.target, images=tuple(drawn))
    for step in range(3):
        samples = [shown[2 * step + i] for i in range(2)]
        seen_BHW = torch.stack([sample.target_image[0].long() for sample in samples])
        real_BHW = torch.stack([sample.target_real for sample in samples])
        truth_BHW = truth(step)
        assert (truth_BHW[~real_BHW] == IGNORE).all()
        assert (truth_BHW == seen_BHW)[real_BHW].float().mean() >= alike
        assert real_BHW.all() == (size != "96x48")


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_is_told_has_the_truth_where_there_is_one(level):
    z_BCHW = torch.tensor([[0.2, 0.5], [0.7, 0.1], [0.1, 0.4]])[None, :, None]
    term = InstanceTarget(1.0, torch.ones(1, 4, 1, 1), z_BCHW)
    believed = Belief(z_BCHW.flip(1), z_BCHW, (term,), torch.zeros(3))
    rule = Told(lambda *_: believed, lambda step: torch.tensor([[[step, IGNORE]]]), *LEVELS[level])
    found = rule(None, None, None, 2)
    true_BCHW = torch.tensor([[0.0, 0.5], [0.0, 0.1], [1.0, 0.4]])[None, :, None]
    assert torch.equal(found.semantic, believed.semantic if level == "instance" else true_BCHW)
    assert torch.equal(found.terms[0].factor, z_BCHW if level == "semantic" else true_BCHW)
    assert found.z is z_BCHW
    assert found.terms[0].embed is term.embed
    assert found.log_prior is believed.log_prior


@pytest.mark.parametrize(("method", "level"), [("daformer", "semantic"), ("dida", "both"), ("dida", "instance")])
def test_a_run_that_is_told_has_true_pseudo_labels(toy, method, level):
    parts = told(options(toy, "--method", method), level)
    with batches(parts.pairs, batch_size=2, start=0, stop=2, workers=0, device=parts.device) as stream:
        for step, (batch, _) in enumerate(stream):
            truth_BHW = parts.method.believe.regenerate.truth(step)
            known_BHW = truth_BHW != IGNORE
            target = train_step(parts.state, batch, parts.method).target
            right = (target.pseudo.label == truth_BHW)[known_BHW].float().mean()
            assert right == 1 if level != "instance" else right < 0.9
    assert len(target.belief.terms) == (method == "dida")
    for term in target.belief.terms:
        assert torch.equal(term.factor.argmax(1)[known_BHW], truth_BHW[known_BHW])


def test_it_is_a_training_like_any_other_and_goes_on(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [told_file, "semantic", "..."])  # as it is typed
    run = tmp_path / "run"
    main(["semantic", "--data-root", str(toy), *OPTIONS, "--method", "daformer", "--log-every", "1", "--out", str(run)])
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]
    main(["semantic", "--resume", str(run), "--steps", "3"])
    assert checkpoints(run)[-1].stem == "step_000003"
    with pytest.raises(SystemExit, match=r"environment.json: .*told.py semantic trained, so level both was not told"):
        main(["both", "--resume", str(run), "--steps", "4"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "'' is no level; expected one of semantic, instance, both"),
        (["--src", "toy-gta5"], "'--src' is no level"),
        (["both", *OPTIONS, "--method", "source"], "no pseudo-labels, so nothing can be told"),
    ],
)
def test_what_cannot_be_told_is_said(toy, args, said):
    where = ["--data-root", str(toy)] if len(args) > 2 else []
    with pytest.raises(SystemExit, match=said):
        main([*args, *where])


def test_labels_are_train_ids_of_the_runs_own_classes(tmp_path, monkeypatch):
    """The target has them in another order, and one that the source does not have."""
    label = np.repeat(np.array([[7, 8, 9, 7]], np.uint8), 32, axis=0).repeat(16, axis=1)
    for name, classes in {"sim": {"1": "floor", "2": "box"}, "real": {"7": "box", "8": "floor", "9": "rack"}}.items():
        for i in range(2):
            save_png(tmp_path / name / "images" / f"{i}.png", np.full((32, 64, 3), 99, np.uint8))
            save_png(tmp_path / name / "labels" / f"{i}.png", label if name == "real" else label % 2 + 1)
        (tmp_path / name / "classes.json").write_text(json.dumps(classes))
    src, tgt = f"folder:{tmp_path / 'sim'}", f"folder:{tmp_path / 'real'}"
    seen = []
    monkeypatch.setattr("bench.told.train", lambda config, parts: seen.append(parts))
    main(["both", *OPTIONS, "--src", src, "--tgt", tgt, "--weights", "none", "--backbone", "mit_b0", "--crop", "32",
          "--out", str(tmp_path / "run")])  # fmt: skip
    assert seen[0].class_set.names == ("floor", "box")
    row = np.repeat([1, 0, IGNORE, 1], 16)
    windows = {tuple(cut[::turn]) for left in range(33) for cut in [row[left : left + 32]] for turn in (1, -1)}
    for label_HW in seen[0].method.believe.regenerate.truth(0):
        assert {tuple(line) for line in label_HW.tolist()} < windows


def test_labels_are_of_the_targets_own_pictures(toy):
    other = domains.labelled("toy-gta5", toy, "train")
    with pytest.raises(ValueError, match="toy-gta5 does not have the labels of the pictures of toy-cityscapes"):
        told_parts(assemble(options(toy)), other, 2, "both")
