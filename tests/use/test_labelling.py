"""Pictures without labels, from a file or a folder to overlays and label maps."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.data.drawing import legend
from dida.data.pictures import find_pictures
from dida.data.transforms import scaled_image
from dida.data.video_file import VideoFile, _rate_to_write, whole_video
from dida.use import labelling
from dida.use.evaluate import WHOLE_IMAGE, Inference
from dida.use.labelling import Summary, label_pictures
from dida.use.trained import Trained, load_trained
from tests.data.factories import make_folder, picture, save_image, scene
from tests.engine.checkpoints import tiny_config, write_checkpoint


def network(tmp_path, class_set: ClassSet = CITYSCAPES_CLASSES) -> Trained:
    path = write_checkpoint(tmp_path / "x.pt", tiny_config(tmp_path), class_set=class_set)
    return load_trained(path, torch.device("cpu"))


def label(trained: Trained, images, out, name: str = "student", **options) -> Summary:
    return label_pictures(trained, [images], out, network=name, size=(64, 32), inference=WHOLE_IMAGE, **options)


def written(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pictures_are_labelled_without_reading_any_label(tmp_path, monkeypatch):
    def no_label(*args):
        raise AssertionError("a label was read")

    monkeypatch.setattr("dida.data.labelled_images.read_ids", no_label)
    monkeypatch.setattr("dida.data.domains.labelled", no_label)
    photos, out = make_folder(tmp_path / "own", 2, (70, 90)) / "images", tmp_path / "out"
    assert label(network(tmp_path), photos, out) == Summary(2, 0, 0, ())
    for kind in ("overlay", "train_ids", "label_ids", "colour"):
        assert sorted(p.name for p in (out / kind).iterdir()) == ["street 0.png", "street 1.png"]
        assert Image.open(out / kind / "street 0.png").size == (70, 90)
    assert np.array_equal(np.asarray(Image.open(out / "legend.png")), legend(CITYSCAPES_CLASSES))
    photo = np.asarray(Image.open(photos / "street 0.jpg")).astype(float)
    train_ids = np.asarray(Image.open(out / "train_ids" / "street 0.png"))
    drawn = np.asarray(Image.open(out / "overlay" / "street 0.png"))
    np.testing.assert_allclose(drawn, (photo + CITYSCAPES_CLASSES.palette[train_ids]) / 2, atol=0.5)


def test_the_network_asked_for_is_the_one_that_answers(tmp_path):
    photo, trained = make_folder(tmp_path / "own", 1) / "images" / "street 0.jpg", network(tmp_path)
    answers = []
    for name in ("student", "teacher"):
        label(trained, photo, tmp_path / name, name)
        answers.append(np.asarray(Image.open(tmp_path / name / "train_ids" / "street 0.png")))
    assert not np.array_equal(*answers)


def test_label_files_hold_the_ids_and_colours_of_the_runs_classes(tmp_path):
    farm = ClassSet(("field", "barn"), ((0, 200, 0), (120, 60, 0)), (), (7, 40_000))
    photo, out = make_folder(tmp_path / "own", 1) / "images" / "street 0.jpg", tmp_path / "out"
    label(network(tmp_path, farm), photo, out)
    train_ids, ids, colour = (
        np.asarray(Image.open(out / kind / "street 0.png")) for kind in ("train_ids", "label_ids", "colour")
    )
    assert train_ids.max() < 2
    assert np.array_equal(ids, np.array(farm.label_ids)[train_ids])  # of more than 8 bits
    assert np.array_equal(colour, farm.palette[train_ids])


def test_trees_are_mirrored(tmp_path):
    for folder in ("cam0", "cam1"):
        save_image(tmp_path / "own" / folder / "000.jpg", picture(scene(0), 0))
    out = tmp_path / "out"
    assert label(network(tmp_path), tmp_path / "own", out).pictures == 2
    for kind in ("overlay", "train_ids", "label_ids", "colour"):
        assert written(out / kind) == ["cam0/000.png", "cam1/000.png"]


def test_two_pictures_of_one_place_and_name_are_refused(tmp_path):
    make_folder(tmp_path, 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "street 0.png")
    with pytest.raises(ValueError, match="would have the same name"):
        label(network(tmp_path), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_two_places_with_a_file_of_one_name_are_refused(tmp_path, name):
    for folder in ("cam0", "cam1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    with pytest.raises(ValueError, match="would have the same name, a"):
        label_pictures(network(tmp_path), [tmp_path / "cam0", tmp_path / "cam1"], tmp_path / "out", network="student",
                       size=(64, 32), inference=WHOLE_IMAGE)  # fmt: skip


@pytest.mark.parametrize("out", ["images/drawn", "images", ".", "../out"])
def test_of_a_data_set_the_images_are_labelled_and_nothing_that_was_drawn_before(tmp_path, out):
    own = make_folder(tmp_path / "own", 2)
    for _ in range(2):
        assert label(network(tmp_path), own, own / out, confidence=True).pictures == 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", [b"", b"no picture", b"cut", b"folder"], ids=str)
def test_one_broken_picture_ends_nothing(tmp_path, damage, workers):
    photos = make_folder(tmp_path / "own", 5) / "images"
    broken = photos / "street 2.jpg"
    content = broken.read_bytes()
    broken.unlink()
    if damage == b"folder":
        broken.symlink_to(tmp_path / "nowhere")  # which is neither
    else:
        broken.write_bytes(content[: len(content) // 2] if damage == b"cut" else damage)
    summary = label(network(tmp_path), photos, tmp_path / "out", workers=workers)
    assert summary.pictures == 4
    (said,) = summary.failed
    assert said.startswith(f"{broken}: not a readable image")
    assert written(tmp_path / "out" / "overlay") == [f"street {i}.png" for i in (0, 1, 3, 4)]


def test_batches_change_no_label(tmp_path):
    """Of sizes that alternate, so that some pictures are asked about together and some are not."""
    for i, size in enumerate([(70, 90), (70, 90), (90, 70), (70, 90), (70, 90), (70, 90), (70, 90)]):
        save_image(tmp_path / "own" / f"{i}.png", picture(scene(i, size), i))
    trained = network(tmp_path)
    for n in (1, 3):
        label(trained, tmp_path / "own", tmp_path / f"by {n}", batch_size=n)
    alone = tmp_path / "by 1"
    assert len(written(alone)) == 7 * 4 + 1
    for name in written(alone / "train_ids"):
        same = pixels(alone / "train_ids" / name) == pixels(tmp_path / "by 3" / "train_ids" / name)
        assert same.mean() > 0.999  # sums in another order


def test_confidence_is_the_probability_of_the_class_that_was_taken(tmp_path):
    photo, trained, out = (
        make_folder(tmp_path / "own", 1) / "images" / "street 0.jpg",
        network(tmp_path),
        tmp_path / "o",
    )
    label(trained, photo, out, confidence=True)
    with trained.labeller("student", (64, 32)) as labeller:
        seen = labeller.normalise(torch.tensor(scaled_image(pixels(photo), (64, 32))).permute(2, 0, 1))[None]
        scores = trained.networks["student"](seen).logits
    scores = torch.nn.functional.interpolate(scores, size=(96, 174), mode="bilinear")[0]
    p = scores.softmax(0).amax(0).numpy()
    np.testing.assert_allclose(pixels(out / "confidence" / "street 0.png"), 255 * p, atol=0.51)


@pytest.mark.parametrize("inference", [WHOLE_IMAGE, Inference(16, 8)], ids=["whole", "windows"])
def test_pictures_of_any_size_are_labelled(tmp_path, inference):
    """FAULTS 18."""
    sizes = [(2000, 20), (20, 2000), (5000, 4), (1, 1), (7, 5), (64, 32)]
    for size in sizes:
        save_image(tmp_path / "own" / f"{size[0]}.png", picture(scene(0, size), 0))
    out = tmp_path / "out"
    trained = network(tmp_path)
    label_pictures(trained, [tmp_path / "own"], out, network="student", size=(64, 32), inference=inference)
    for size in sizes:
        assert Image.open(out / "label_ids" / f"{size[0]}.png").size == size


# ---- videos --------------------------------------------------------------------------------------------------------


def film(path: Path, frames: int = 7, size: tuple[int, int] = (64, 48)) -> Path:
    """A bright square that moves over a gradient."""
    width, height = size
    with whole_video(path, 10.0) as write:
        for i in range(frames):
            frame = np.stack([np.tile(np.linspace(0, 200, width), (height, 1))] * 3, -1).astype(np.uint8)
            frame[10:30, 4 * i : 4 * i + 20] = (250, 200, 0)
            write(frame)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "b.avi", "C.MP4", "deep/er/d.avi"])
def test_a_video_becomes_a_video_and_a_label_map_a_frame(tmp_path, name):
    film(tmp_path / "own" / name)
    trained, out = network(tmp_path), tmp_path / "out"
    assert label(trained, tmp_path / "own", out, batch_size=3, confidence=True) == Summary(0, 1, 7, ())
    frames = [f"{name}/{i:06d}.png" for i in range(7)]
    for kind in ("train_ids", "label_ids", "colour", "confidence"):
        assert written(out / kind) == frames
    assert written(out / "overlay") == [name]
    with VideoFile(out / "overlay" / name) as drawn, VideoFile(tmp_path / "own" / name) as original:
        assert drawn.rate == original.rate == 10
        assert drawn.count == 7
        with trained.labeller("student", (64, 32)) as labeller:
            for path, overlaid, frame in zip(frames, drawn.frames(), original.frames(), strict=True):
                train_ids = pixels(out / "train_ids" / path)
                assert (train_ids == labeller(frame)).mean() > 0.999
                blend = (frame.astype(float) + CITYSCAPES_CLASSES.palette[train_ids]) / 2
                assert np.abs(overlaid - blend).mean() < 12  # of 255: it was compressed


@pytest.mark.parametrize("ending", [".mp4", ".avi"])
@pytest.mark.parametrize("rate", [23.976, 29.97, 59.94, 119.88, 120.4567, 237.2634, 480.0])
def test_a_video_of_any_rate_is_written_as_its_file_takes_it(tmp_path, ending, rate):
    with whole_video(tmp_path / f"a{ending}", _rate_to_write(rate)) as write:
        for _ in range(3):
            write(np.zeros((16, 16, 3), np.uint8))
    with VideoFile(tmp_path / f"a{ending}") as video:
        assert video.rate == pytest.approx(rate, rel=1e-3)


def test_a_rate_that_no_video_has_is_the_usual_one():
    assert {_rate_to_write(rate) for rate in (0.0, -1.0, 1e-4, 90_000.0, float("nan"), float("inf"))} == {25.0}


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (33, 31)])
@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_videos_of_odd_sizes_are_written(tmp_path, size, ending):
    with VideoFile(film(tmp_path / f"odd{ending}", size=size)) as video:
        shapes = {frame.shape for frame in video.frames()}
    assert shapes == {(size[1] + size[1] % 2, size[0] + size[0] % 2, 3)}


def test_frames_are_read_when_they_are_needed(tmp_path, monkeypatch):
    """However long a video is, no more of it is in memory than a batch."""
    film(tmp_path / "own" / "a.avi", frames=20)
    read, saved, ahead = 0, 0, []
    frames, save = VideoFile.frames, labelling.save_prediction

    def counted_frames(video):
        nonlocal read
        for frame in frames(video):
            read += 1
            ahead.append(read - saved)
            yield frame

    def counted_save(*args):
        nonlocal saved
        saved += 1
        save(*args)

    monkeypatch.setattr(VideoFile, "frames", counted_frames)
    monkeypatch.setattr(labelling, "save_prediction", counted_save)
    label(network(tmp_path), tmp_path / "own", tmp_path / "out", batch_size=4)
    assert (read, saved, max(ahead)) == (20, 20, 4)


def test_of_a_video_that_breaks_off_the_frames_before_are_kept(tmp_path, monkeypatch):
    film(tmp_path / "own" / "a.avi", frames=10)
    (tmp_path / "own" / "b.mp4").write_bytes(b"no video")
    frames = VideoFile.frames
    monkeypatch.setattr(VideoFile, "frames", lambda video: itertools.islice(frames(video), 6))
    summary = label(network(tmp_path), tmp_path / "own", tmp_path / "out", batch_size=4)
    assert (summary.videos, summary.frames) == (1, 6)
    assert summary.failed[0] == f"{tmp_path / 'own' / 'b.mp4'}: not a readable video"
    assert summary.failed[1].startswith(f"{tmp_path / 'own' / 'a.avi'}: only 6 of 10 frames can be read")
    assert len(written(tmp_path / "out" / "train_ids")) == 6
    assert written(tmp_path / "out" / "overlay") == ["a.avi"]


def test_a_video_that_is_not_written_whole_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("cv2.VideoWriter.release", lambda writer: None)  # as on a disk that is full: no word of it
    with pytest.raises(OSError, match=r"a\.mp4: could not be written whole .* is the disk full"):
        film(tmp_path / "a.mp4")
    assert written(tmp_path) == []


# ---- what lies there -----------------------------------------------------------------------------------------------


def test_pictures_are_found_below_a_folder_and_hidden_files_are_not(tmp_path, caplog):
    for name in ("b.png", "deep/er/A.JPG", "._b.png", "notes.txt", "film.MP4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_pictures(tmp_path)
    assert [found.names[path].as_posix() for path in found.pictures] == ["b.png", "deep/er/A.JPG"]
    assert found.videos == [tmp_path / "film.MP4"]
    (said,) = caplog.messages
    assert said == f"1 files are neither pictures nor videos and are left out, e.g. {tmp_path / 'notes.txt'}"
    assert find_pictures(tmp_path / "b.png").pictures == [tmp_path / "b.png"]
    assert find_pictures(tmp_path / "notes.txt").pictures == [tmp_path / "notes.txt"]  # whose name says nothing
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{nothing}: no picture there"):
            find_pictures(tmp_path / nothing)


def test_of_several_places_each_file_is_found_once(tmp_path):
    for name in ("cam/0.png", "cam/1.png", "film.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    alone, folder, film = tmp_path / "cam" / "1.png", tmp_path / "cam", tmp_path / "film.avi"
    found = find_pictures(alone, tmp_path, folder, film)
    assert found.pictures == [alone, folder / "0.png"]
    assert found.videos == [film]
    assert [found.names[path].as_posix() for path in (*found.pictures, film)] == ["1.png", "cam/0.png", "film.avi"]
