"""`python -m bench.figures` from runs on disk to pictures, on networks of random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from bench.figures import distribution, own_data, warehouse
from bench.figures.__main__ import figures_command as cli
from bench.figures.runs import domain_of, images_of, load_bank, load_runs, predictions
from bench.figures.similarity import Pixel, innermost_pixels, look, parse_pixel
from dida import recipes
from dida.assemble import build_state, build_student
from dida.batch import IGNORE
from dida.config import Config, changed, to_dict
from dida.data.class_file import read_class_file
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.transforms import Normalise
from dida.use.evaluate import evaluating
from dida_kernels import class_similarity
from tests.data.factories import make_cityscapes, make_folder, make_gta
from tests.engine.checkpoints import tiny_config, write_checkpoint

SIZE = (64, 32)
C = len(CITYSCAPES_CLASSES)


def saved(folder: Path, config: Config, step: int = 400) -> Path:
    """The checkpoint of a run whose networks nobody trained; student and teacher differ all the same."""
    torch.manual_seed(0)
    state = build_state(config, CITYSCAPES_CLASSES, torch.ones(C), torch.device("cpu"))
    state.teacher.load_state_dict(build_student(config, CITYSCAPES_CLASSES).state_dict())
    state.step = step
    return state.save(folder, to_dict(config), CITYSCAPES_CLASSES.to_dict())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_gta(root, 3, SIZE)
    make_cityscapes(root, (128, 64), val=3, train=1, labelled=("val",))
    return root


@pytest.fixture(scope="module")
def config(data) -> Config:
    return changed(Config(), data_root=data, backbone="mit_b0", embed_dim=16, tgt_size="64x32", bank_size=40)


@pytest.fixture(scope="module")
def run(tmp_path_factory, config) -> Path:
    """Of DIDA, with a bank of random vectors."""
    folder = tmp_path_factory.mktemp("runs") / "dida"
    saved(folder, changed(config, bank_init="random"), step=2000)
    (folder / "environment.json").write_text(json.dumps({"git": {"commit": "abc123" * 4, "dirty": False}}))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory, config) -> Path:
    """Of a method without a bank."""
    return saved(tmp_path_factory.mktemp("runs"), recipes.daformer(config))


def refusal(*args: object) -> str:
    """What the command says when it refuses; it must be one message, not a traceback."""
    with pytest.raises(SystemExit) as ended:
        cli([str(arg) for arg in args])
    assert isinstance(ended.value.code, str)
    assert ended.value.code.startswith("bench.figures: ")
    return ended.value.code


def facts(picture: Path) -> dict:
    found = json.loads(picture.with_suffix(".json").read_text())
    assert {"commit", "date", "cpu", "torch"} <= found["drawn"].keys()
    return found


def test_a_strip_has_a_column_per_run_and_says_where_it_comes_from(run, other, config, data, tmp_path):
    out = tmp_path / "new" / "strip.png"
    cli(["strips", str(out), str(run), str(other), "--images", "2"])
    found = facts(out)
    assert found["columns"] == ["image", "truth", "dida", "daformer"]
    assert found["rows"] == ["aachen_000000_000019_leftImg8bit.png", "zurich_000001_000019_leftImg8bit.png"]
    assert [(x["commit"], x["step"]) for x in found["runs"]] == [("abc123abc123", 2000), ("unknown", 400)]
    drawn = np.asarray(Image.open(out))
    (trained,) = load_runs([run], "cpu")
    image = images_of(trained, domain_of(trained, None, None, "val"))[0]
    (train_ids,) = predictions(trained, "student", [image])
    third = drawn[26 : 26 + 128, 2 * 260 : 2 * 260 + 256]  # below the captions, of pictures twice their own size
    np.testing.assert_array_equal(third[::2, ::2], CITYSCAPES_CLASSES.palette[train_ids])


def test_a_narrow_strip_still_has_the_whole_legend(run, tmp_path):
    cli(["strips", str(tmp_path / "strip.png"), str(run), "--images", "1"])
    last = np.asarray(Image.open(tmp_path / "strip.png"))[-60:]
    for colour in CITYSCAPES_CLASSES.palette:
        assert (last == colour).all(2).any()


def test_what_a_pixel_is_similar_to_is_what_the_bank_says_at_that_place(run):
    """The slots of a pixel, summed by class, are q^ga of the whole image at that pixel."""
    (trained,) = load_runs([run], "cpu")
    bank, network = load_bank(trained), trained.networks["teacher"]
    image = images_of(trained, domain_of(trained, None, None, "val"))[0]
    small = image._replace(label=image.label[::2, ::2])  # of the size that the network sees
    pixels = [Pixel(0, 0), Pixel(63, 31), Pixel(21, 14)]
    found = look(network, bank, small, pixels, 0.1)
    torch.testing.assert_close(found.slots_PK.sum(1), torch.ones(3))
    for i, (x, y) in enumerate(pixels):
        torch.testing.assert_close(found.classes_PC[i], found.mass_CHW[:, y, x])
    with evaluating(network):
        seen = network(Normalise()(image.image)[None])
        mass = class_similarity(seen.embed, bank.features, bank.labels, classes=C, temperature=0.1, size=(32, 64))
        assert found.predicted_P.tolist() == [int(seen.logits[0, :, y, x].argmax()) for x, y in pixels]
        whole = F.normalize(F.interpolate(seen.embed, (32, 64), mode="bilinear")[0], dim=0)
    torch.testing.assert_close(found.mass_CHW, mass[0])
    nodes = F.normalize(seen.embed[0], dim=0)
    torch.testing.assert_close(found.cosine_Phw[2], torch.einsum("d,dhw->hw", whole[:, 14, 21], nodes))


def test_pixels_at_the_labels_size_are_the_same_places(run):
    (trained,) = load_runs([run], "cpu")
    bank, network = load_bank(trained), trained.networks["teacher"]
    image = images_of(trained, domain_of(trained, None, None, "val"))[0]
    assert image.label.shape == (64, 128)
    slots = look(network, bank, image, [Pixel(42, 28), Pixel(43, 28), Pixel(42, 29), Pixel(43, 29)], 0.1).classes_PC
    small = look(network, bank, image._replace(label=image.label[::2, ::2]), [Pixel(21, 14)], 0.1).classes_PC
    assert (slots.amin(0) <= small[0] + 1e-6).all()
    assert (slots.amax(0) >= small[0] - 1e-6).all()
    assert not torch.equal(slots[0], slots[3])


def test_similarity_is_drawn_with_its_numbers(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "similarity.png"
    cli(["similarity", str(out), str(run), "--image", "1", "--pixels", "5,60", "127,0"])
    assert Image.open(out).width > 1000
    found = facts(out)
    assert [(x["x"], x["y"]) for x in found["pixels"]] == [(5, 60), (127, 0)]
    assert (found["slots"], found["image"]) == (40, "aachen_000002_000019_leftImg8bit.png")
    for pixel in found["pixels"]:
        assert list(pixel["q_ga"]) == list(CITYSCAPES_CLASSES.names)
        assert sum(pixel["q_ga"].values()) == pytest.approx(1, abs=1e-3)
    assert found["pixels"][0]["truth"] == "no class"  # the hood


def test_by_default_pixels_lie_deep_inside_classes_from_the_largest_to_the_smallest():
    label = np.full((20, 30), IGNORE, dtype=np.uint8)
    label[:9], label[10:15, 3:8], label[16:19, 20:23], label[15, 0] = 10, 13, 7, 5
    assert innermost_pixels(label, 2) == [Pixel(4, 4), Pixel(0, 15)]
    assert innermost_pixels(label, 9)[1:] == [Pixel(5, 12), Pixel(21, 17), Pixel(0, 15)]
    with pytest.raises(ValueError, match="no pixel of the image belongs to a class"):
        innermost_pixels(np.full((4, 4), IGNORE, dtype=np.uint8), 2)


def test_the_distribution_counts_where_the_truth_has_a_class(run, other, data, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "distribution.png"
    cli(["distribution", str(out), str(run), str(other), "--names", "A", "B", "--network", "student"])
    assert Image.open(out).width > 1000
    found = facts(out)
    source, truth, first, second = found["pixels"].values()
    assert list(found["pixels"])[2:] == ["target, student of A", "target, student of B"]
    assert list(source.values()) == sorted(source.values(), reverse=True)
    (trained,) = load_runs([run], "cpu")
    images = images_of(trained, domain_of(trained, None, None, "val"))
    label = np.stack([image.label.numpy() for image in images])
    guess = np.stack(list(predictions(trained, "student", images)))
    valid = label != IGNORE
    assert not valid.all()
    for c, name in enumerate(CITYSCAPES_CLASSES.names):
        assert truth[name] == pytest.approx(100 * (label == c).sum() / valid.sum(), abs=1e-3)
        assert first[name] == pytest.approx(100 * (guess[valid] == c).sum() / valid.sum(), abs=1e-3)
    assert sum(second.values()) == pytest.approx(100, abs=0.01)
    for slots in found["slots"].values():
        assert sum(slots.values()) == 40
        assert list(slots) == list(source)


def test_joined_sources_and_a_target_of_other_classes_are_drawn(config, data, tmp_path):
    """`--src A+B`, and a folder that knows two of the run's classes in an order of its own."""
    pytest.importorskip("matplotlib")
    joined = changed(config, bank_init="random", src="gta5+gta5*3")
    saved(tmp_path / "run", joined)
    own = make_folder(tmp_path / "own", 2, (96, 48), classes={"0": "ignore", "110": "sky", "100": "road"})
    for out, more in (("a.png", ()), ("b.png", ("--tgt", f"folder:{own}"))):
        cli(["distribution", str(tmp_path / out), str(tmp_path / "run"), *more])
    ours, other = (list(facts(tmp_path / out)["pixels"].items()) for out in ("a.png", "b.png"))
    assert ours[0][0] == "source: gta5+gta5"
    assert ours[0] == other[0]
    assert {name for name, share in other[1][1].items() if share} == {"road", "sky"}
    cli(["strips", str(tmp_path / "c.png"), str(tmp_path / "run"), "--tgt", f"folder:{own}", "--images", "1"])


def test_the_pictures_of_own_data_are_drawn_from_made_data_and_a_run(tmp_path):
    warehouse.main(tmp_path)
    class_set = read_class_file(tmp_path / "warehouse_sim" / "classes.json").class_set
    run = write_checkpoint(tmp_path / "x.pt", tiny_config(tmp_path), class_set=class_set)
    own_data.main(tmp_path / "docs", tmp_path, run)
    for name, columns in (("before", 2), ("after", 3)):
        picture = tmp_path / "docs" / f"own_data_{name}.png"
        assert Image.open(picture).width >= columns * 256
        assert len(json.loads(picture.with_suffix(".json").read_text())["columns"]) == columns


def test_slots_follow_the_source_against_it_or_not_at_all():
    pixels_C = np.array([900, 90, 10] + [0] * (C - 3))
    found = {name: slots_C[:3].tolist() for name, slots_C in distribution.slots_of(30, pixels_C).items()}
    assert found["CBS"] == [10, 10, 10]
    assert found["RS, NU"][0] > found["RS, NU"][1] > found["RS, NU"][2]
    assert found["ILS"][0] < found["ILS"][1] < found["ILS"][2]


def test_what_a_user_can_put_right_is_one_message(run, other, config, data, tmp_path):
    out = tmp_path / "x.png"
    for figure in ("strips", "distribution"):
        assert "no run was named" in refusal(figure, out)
        assert "no such run" in refusal(figure, out, tmp_path / "nowhere")
        assert "several runs would be called dida" in refusal(figure, out, run, run)
        assert "--names: 1 for 2 runs" in refusal(figure, out, run, other, "--names", "A")
    assert "no labels found" in refusal("strips", out, run, "--split", "train")  # it has no labels
    for images in (0, 4):
        assert f"--images {images}: cityscapes val has 1 to 3" in refusal("strips", out, run, "--images", images)
    from_synthia = saved(tmp_path / "s", changed(config, src="synthia", method="source"))
    assert "different sources: gta5, synthia" in refusal("distribution", out, run, from_synthia)
    assert not list(tmp_path.glob("x.*"))


def test_what_a_user_can_put_right_of_similarity_is_one_message(run, other, config, tmp_path):
    out = tmp_path / "x.png"
    assert "no such run" in refusal("similarity", out, tmp_path / "nowhere")
    assert "--method daformer keeps no bank" in refusal("similarity", out, other)
    early = saved(tmp_path / "early", config)
    assert "the bank is still empty; it is filled from step 1000 on, this is step 400" in refusal(
        "similarity", out, early
    )
    assert "--image 3: the images of cityscapes val are 0 to 2" in refusal("similarity", out, run, "--image", 3)
    assert "--pixels 128,0: outside of the image" in refusal("similarity", out, run, "--pixels", "128,0")
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("128,0", "outside of the image, which is 128 x 64 pixels"),
        ("0,64", "outside of the image"),
        ("5", "expected X,Y"),
        ("a,b", "expected X,Y"),
        ("-1,5", "expected X,Y"),
    ],
)
def test_a_pixel_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=f"--pixels {text}: {message}"):
        parse_pixel(text, (64, 128))
    assert parse_pixel("127,63", (64, 128)) == Pixel(127, 63)
