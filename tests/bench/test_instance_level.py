"""`python -m bench.instance_level`: hand-made cases whose numbers are known, and a run from disk to page."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import train
from bench.instance_level.__main__ import Options, as_dida, cli
from bench.instance_level.measures import (
    Pull,
    Tally,
    View,
    bank_state,
    beliefs,
    class_level,
    counted,
    look,
    pull,
    report_pulls,
    reweighted,
)
from dida import recipes
from dida.batch import IGNORE
from dida.config import Config, changed
from dida.data.classes import CLASSES, NAMES
from dida.data.labelled_images import LabelledImage
from dida.data.pairs import batches
from dida.method.bank import InstanceBank
from eval import load
from tests.data.factories import make_cityscapes, make_gta
from tests.engine.test_eval_command import write_checkpoint


def bank_of(label_K: torch.Tensor, features_KD: torch.Tensor) -> InstanceBank:
    """Every slot written."""
    bank = InstanceBank(label_K, features_KD.shape[1], CLASSES)
    bank.features.copy_(features_KD)
    bank.written.copy_(bank.held)
    return bank


def one_hot(label_BHW: torch.Tensor) -> torch.Tensor:
    return F.one_hot(label_BHW, CLASSES).permute(0, 3, 1, 2).float()


@pytest.fixture
def label_BHW() -> torch.Tensor:
    return torch.randint(CLASSES, (2, 4, 6), generator=torch.Generator().manual_seed(0))


# ---- the bank ------------------------------------------------------------------------------------------------------


def test_classes_on_axes_of_their_own_are_told_apart():
    label_K = torch.arange(CLASSES).repeat_interleave(2)
    found = bank_state(bank_of(label_K, F.one_hot(label_K).float() * 3))
    assert found == {"filled": 100, "cosine_within": 1, "cosine_between": 0, "nearest_neighbour": 100}


def test_slots_whose_nearest_is_of_another_class_are_not():
    label_K = torch.tensor([0, 0, 1, 1])
    found = bank_state(bank_of(label_K, torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])))
    assert found == {"filled": 100, "cosine_within": 0, "cosine_between": 0.5, "nearest_neighbour": 0}


def test_a_slot_that_holds_a_copy_does_not_count_as_its_own_neighbour():
    bank = bank_of(torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]]))
    bank.written[0] = 1  # the second slot of class 0 copies the first
    found = bank_state(bank)
    assert found["filled"] == 75
    assert found["cosine_within"] == 0
    assert found["nearest_neighbour"] == 0


# ---- the class level -----------------------------------------------------------------------------------------------


def test_a_belief_that_is_right_everywhere_mends_all_and_breaks_nothing(label_BHW):
    z_BCHW = one_hot((label_BHW + (label_BHW % 2)) % CLASSES)  # wrong on the odd classes
    perfect, opposite = Tally(), Tally()
    perfect.add(label_BHW, one_hot(label_BHW), z_BCHW)
    opposite.add(label_BHW, one_hot((label_BHW + 1) % CLASSES), one_hot(label_BHW))
    found = perfect.report(CLASSES)
    assert (found["right_where_z_is_wrong"], found["wrong_where_z_is_right"]) == (100, 0)
    assert (found["mIoU"], found["aAcc"], found["mAcc"], found["confidence"]) == (100, 100, 100, 100)
    found = opposite.report(CLASSES)
    assert (found["right_where_z_is_wrong"], found["wrong_where_z_is_right"]) == (None, 100)
    assert (found["mIoU"], found["aAcc"]) == (0, 0)


def test_pixels_without_a_class_are_not_counted(label_BHW):
    hidden_BHW = label_BHW.clone()
    hidden_BHW[:, :2] = IGNORE
    wrong_BHW = torch.where(hidden_BHW == IGNORE, (label_BHW + 1) % CLASSES, label_BHW)
    tally = Tally()
    tally.add(hidden_BHW, one_hot(wrong_BHW), one_hot(wrong_BHW))
    assert int(tally.right_22.sum()) == 24
    assert tally.report(CLASSES)["aAcc"] == 100


def test_confidence_is_the_mean_maximum(label_BHW):
    tally = Tally()
    for certainty in (0.5, 1.0):
        belief_BCHW = certainty * one_hot(label_BHW) + (1 - certainty) / CLASSES
        tally.add(label_BHW, belief_BCHW, belief_BCHW)
    assert tally.report(CLASSES)["confidence"] == pytest.approx(100 * (0.5 + 0.5 / CLASSES + 1) / 2, abs=1e-3)


def test_only_an_uneven_frequency_changes_a_belief():
    q_BCHW = torch.rand(1, CLASSES, 3, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    torch.testing.assert_close(reweighted(q_BCHW, torch.full((CLASSES,), 1 / CLASSES), 1.0), q_BCHW)
    frequency_C = torch.arange(1.0, CLASSES + 1)
    torch.testing.assert_close(reweighted(q_BCHW, frequency_C, 0.0), q_BCHW)
    lent_BCHW = reweighted(q_BCHW, frequency_C, 1.0)
    torch.testing.assert_close(lent_BCHW.sum(1), torch.ones(1, 3, 3))
    odds = (lent_BCHW[:, 5] / lent_BCHW[:, 1]) / (q_BCHW[:, 5] / q_BCHW[:, 1])
    torch.testing.assert_close(odds, torch.full((1, 3, 3), 3.0))  # of the frequencies 6 and 2


def test_where_z_and_the_bank_exclude_each_other_the_product_is_z(label_BHW):
    z_BCHW, q_BCHW = one_hot(label_BHW), one_hot((label_BHW + 1) % CLASSES)
    found = beliefs(z_BCHW, q_BCHW, (0.9, 0.4))
    torch.testing.assert_close(found["product"], z_BCHW)
    assert torch.equal(found["phi 0.9"].argmax(1), label_BHW)
    assert torch.equal(found["phi 0.4"].argmax(1), (label_BHW + 1) % CLASSES)


def test_a_bank_that_knows_better_than_z_is_seen_at_every_temperature(label_BHW):
    """Embeddings point at their class's slot; z says the next class, faintly."""
    bank = bank_of(torch.arange(CLASSES), torch.eye(CLASSES))
    z_BCHW = (0.1 * one_hot((label_BHW + 1) % CLASSES)).softmax(1)
    view = View(label_BHW, z_BCHW, one_hot(label_BHW))
    found = class_level([view, view], bank, temperatures=(0.05, 0.2), phis=(0.5,), mean_of=CLASSES)
    assert found["images"] == 4
    assert found["z"]["aAcc"] == 0
    assert len(found["beliefs"]) == 2 * 3 * 3
    assert all(row["right_where_z_is_wrong"] == 100 for row in found["beliefs"])
    sure = {row["temperature"]: row["confidence"] for row in found["beliefs"] if row["belief"] == "q_ga"}
    assert sure[0.05] > sure[0.2]


def test_images_that_differ_in_size_are_refused():
    images = [
        LabelledImage(torch.zeros(3, 4, w, dtype=torch.uint8), torch.zeros(4, w, dtype=torch.uint8), "") for w in (4, 6)
    ]
    with pytest.raises(ValueError, match="differ in size"):
        next(look(torch.nn.Conv2d(3, 3, 1), images, 2))


# ---- the gradient --------------------------------------------------------------------------------------------------


def test_shares_go_to_the_pseudo_label_of_the_node_and_the_pixel():
    """Two nodes: a road node of gradient length 3 over three counted pixels, a pole node of length 1 over one."""
    instance_BDhw = torch.tensor([[0.0, 1.0], [3.0, 0.0]])[None, :, None]
    label_BHW = torch.tensor([[0, 0, 5, 5], [0, 0, 5, 5]])[None]
    counts_BHW = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])[None].bool()
    by = Pull(2 * instance_BDhw, instance_BDhw, label_BHW, counts_BHW)
    order = counted(by).argsort(descending=True, stable=True)
    found = report_pulls([by], order)
    assert (found["ratio"], found["cosine"]) == (0.5, 1)
    assert found["classes"][NAMES[0]] == {"pixels": 75, "gradient": 75}
    assert found["classes"][NAMES[5]] == {"pixels": 25, "gradient": 25}
    assert next(iter(found["classes"])) == NAMES[0]
    assert [group["gradient"] for group in found["groups"].values()] == [100, 0, 0]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_gta(root, 6)
    make_cityscapes(root, (128, 64), train=3, val=3, labelled=("val",))
    return root


@pytest.fixture(scope="module")
def config(data) -> Config:
    tiny = {"backbone": "mit_b0", "weights": "none", "embed_dim": 16, "crop": 64, "bank_size": 40, "workers": 0}
    sizes = {"src_size": "174x96", "tgt_size": "128x64", "rare_class_pixels": 20, "batch_size": 2}
    return recipes.daformer(changed(Config(), data_root=data, device="cpu", **tiny, **sizes))


@pytest.fixture(scope="module")
def run(tmp_path_factory, config) -> Path:
    """Of a method without a bank."""
    folder = tmp_path_factory.mktemp("runs") / "daformer"
    write_checkpoint(folder / "checkpoints" / "step_000400.pt", config)
    (folder / "environment.json").write_text(json.dumps({"git": {"commit": "abc123" * 4, "dirty": False}}))
    return folder


def test_twice_the_weight_is_twice_the_gradient_of_l_ins_and_the_same_of_l_tgt(run):
    config = as_dida(load(run, "cpu"), Options((run,), steps=1, device="cpu"))
    state, _, pairs, device = train.assemble(config)
    state.bank.fill_random(torch.Generator().manual_seed(0))
    state.student.eval()
    state.step = 1
    batch, _ = next(batches(pairs, batch_size=2, start=0, stop=1, workers=0, device=device))
    once, twice = (pull(changed(config, instance_weight=weight), state, batch) for weight in (1.0, 2.0))
    assert once.instance_BDhw.norm() > 0
    assert once.target_BDhw.norm() > 0
    torch.testing.assert_close(twice.instance_BDhw, 2 * once.instance_BDhw)
    assert torch.equal(twice.target_BDhw, once.target_BDhw)
    assert all(parameter.grad is None for parameter in state.student.parameters())
    balanced = pull(changed(config, instance_pixels="balanced"), state, batch)
    assert torch.equal(balanced.target_BDhw, once.target_BDhw)  # the views are the same
    assert counted(balanced).sum() < counted(once).sum()


# ---- the command ---------------------------------------------------------------------------------------------------


def test_a_run_keeps_its_own_choices_of_the_bank(tmp_path, config):
    mine = {"selecting": "km", "sampling": "ils", "regenerate_semantic": "none", "instance_loss": "off"}
    path = write_checkpoint(tmp_path / "a.pt", changed(config, method="dida", **mine))
    asked = as_dida(load(path, "cpu"), Options((path,), steps=7)).bank
    assert (asked.selecting, asked.sampling, asked.regenerate_semantic) == ("km", "ils", "none")
    assert (asked.instance_loss, asked.instance_weight, asked.bank_start, asked.bank_fill) == ("image", 1.0, 7, 7)


def test_a_run_without_a_bank_is_measured_with_one(run, tmp_path, capsys):
    out = tmp_path / "new" / "level"
    cli([str(run), "--images", "3", "--steps", "3", "--batches", "1", "--phis", "0.9", "--out", str(out)])
    found = json.loads(out.with_suffix(".json").read_text())
    assert {"commit", "date", "cpu", "torch"} <= found["header"].keys()
    (of,) = found["runs"]
    assert (of["commit"], of["method"], of["step"]) == ("abc123abc123", "daformer", 400)
    assert 0 < of["bank"]["filled"] < 100  # six source images cannot fill two slots of every class
    assert of["classes"]["images"] == 3
    assert set(of["gradient"]) == {"all", "balanced"}
    for pulls in of["gradient"].values():
        assert pulls["ratio"] > 0
        for share in ("pixels", "gradient"):
            assert sum(group[share] for group in pulls["groups"].values()) == pytest.approx(100, abs=0.01)
            assert sum(of_class[share] for of_class in pulls["classes"].values()) == pytest.approx(100, abs=0.01)
    page = out.with_suffix(".md").read_text()
    assert page in capsys.readouterr().out
    assert f"| {of['classes']['z']['mIoU']:.2f} " in page
    assert found["header"]["commit"] in page


def refusal(*args: object) -> str:
    """What the command says when it refuses; it must be one message, not a traceback."""
    with pytest.raises(SystemExit) as ended:
        cli([str(arg) for arg in args])
    assert isinstance(ended.value.code, str)
    assert ended.value.code.startswith("bench.instance_level: ")
    return ended.value.code


def test_what_a_user_can_put_right_is_one_message(run, tmp_path, config):
    assert "no run was named" in refusal()
    assert "no such run folder or checkpoint" in refusal(tmp_path / "nowhere")
    assert "--images 4: cityscapes val has 1 to 3" in refusal(run, "--images", 4)
    assert "--steps 0: expected at least 1" in refusal(run, "--steps", 0)
    assert "expected numbers above 0" in refusal(run, "--temperatures", 0)
    assert "expected numbers in [0, 1]" in refusal(run, "--phis", 1.1)
    make_gta(tmp_path, 2)
    make_cityscapes(tmp_path, (128, 64), train=1, val=1, labelled=())
    assert "cityscapes (val) is not there, or holds no files" in refusal(run, "--images", 1, "--data-root", tmp_path)
