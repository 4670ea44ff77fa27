"""Pictures and videos without labels, labelled by a trained network: overlays for people, label maps for programs.

    OUT/overlay/NAME.png                          the picture below the colours of its classes
    OUT/train_ids, label_ids, colour/NAME.png     see `save_prediction`
    OUT/confidence/NAME.png                       on request: the probability of that class, 0 .. 255
    OUT/legend.png

NAME is the place of a file below the folder that was named, so trees are mirrored. A video NAME.mp4 becomes
OUT/overlay/NAME.mp4 and a label map for each frame, OUT/train_ids/NAME.mp4/000000.png and so on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from dida.data.classes import ClassSet
from dida.data.drawing import legend, overlay
from dida.data.image_file import ImageFileError, save_png
from dida.data.pictures import Pictures, SeenPicture, find_pictures, of_one_shape, seen_picture
from dida.data.video_file import VideoFile, whole_video
from dida.data.workers import ReadAhead
from dida.machine.progress import Progress
from dida.use.evaluate import Inference
from dida.use.predictions import FOLDERS, require_distinct, save_prediction
from dida.use.trained import Labelled, Labeller, Trained

OUTPUTS = ("overlay", "confidence", "legend.png", *FOLDERS)


@dataclass(frozen=True)
class Summary:
    """What came of a labelling."""

    pictures: int
    videos: int
    frames: int  # of the videos
    failed: tuple[str, ...]  # of each file that could not be read, or not to its end: its name and why

    def __str__(self) -> str:
        parts = [_counted(self.pictures, "picture")] if self.pictures or not self.videos else []
        if self.videos:
            parts.append(f"{_counted(self.frames, 'frame')} of {_counted(self.videos, 'video')}")
        return " and ".join(parts) + " labelled"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def label_pictures(
    trained: Trained,
    images: Sequence[Path],
    out: Path,
    *,
    network: str,
    size: tuple[int, int],
    inference: Inference,
    batch_size: int = 1,
    workers: int = 0,
    confidence: bool = False,
) -> Summary:
    """Label pictures and videos, and all below folders, each at its own size. One that cannot be read ends nothing.

    `size` (width, height): what the network sees is scaled to fit into it. `batch_size`: pictures of one size, or
    frames, that it sees at once. Raises FileNotFoundError where there is nothing to label, ValueError for two pictures
    of one name, OSError for what cannot be written.
    """
    found = find_pictures(*images, but=[out / name for name in OUTPUTS])  # of an earlier time
    require_distinct(found.pictures, (found.names[path].with_suffix("") for path in found.pictures))
    require_distinct(found.videos, (found.names[path] for path in found.videos))
    failed: list[str] = []
    videos = _opened(found.videos, failed)
    pictures = Pictures(found.pictures, size, enlarge=trained.config.data.enlarge)
    with (
        trained.labeller(network, size, inference) as label,
        ReadAhead(
            pictures, range(len(pictures)), batch_size=None, workers=min(workers, len(pictures)), pin_memory=False
        ) as read,
        Progress(len(pictures) + sum(videos.values()), "labelling", "picture") as progress,
    ):
        job = _Job(label, batch_size, out, trained.class_set, confidence, progress.advance)
        labelled = job.label_all(_readable(read, failed), found.names)
        done = {path: job.label_video(path, found.names[path], failed) for path in videos}
    save_png(out / "legend.png", legend(trained.class_set))
    return Summary(labelled, len(done), sum(done.values()), tuple(failed))


@dataclass(frozen=True)
class _Job:
    """A network and where its answers go."""

    label: Labeller
    batch_size: int
    out: Path
    class_set: ClassSet
    confidence: bool
    advance: Callable[[], None]  # one more is done

    def label_all(self, pictures: Iterable[SeenPicture], names: Mapping[Path, Path]) -> int:
        """Label pictures; their number."""
        count = 0
        for picture, said in self._answers(pictures):
            name = names[Path(picture.path)].with_suffix("")
            save_png(self.out / "overlay" / f"{name}.png", self._saved(name, picture, said))
            count += 1
        return count

    def label_video(self, path: Path, name: Path, failed: list[str]) -> int:
        """Label a video frame by frame; the number of frames. What is said of one that breaks off joins `failed`."""
        count = 0
        with VideoFile(path) as video, whole_video(self.out / "overlay" / name, video.rate) as write:
            enlarge = self.label.enlarge
            frames = (seen_picture(frame, self.label.size, enlarge=enlarge, path=path) for frame in video.frames())
            for picture, said in self._answers(frames):
                write(self._saved(name / f"{count:06d}", picture, said))
                count += 1
            if count < video.least:
                failed.append(f"{path}: only {count} of {video.count} frames can be read; is the file cut off?")
        return count

    def _answers(self, pictures: Iterable[SeenPicture]) -> Iterator[tuple[SeenPicture, Labelled]]:
        """Every picture with what the network says of it, in order; neighbours of one size are asked about together."""
        return chain.from_iterable(
            map(self._answer, of_one_shape(pictures, self.batch_size, lambda picture: picture.native.shape))
        )

    def _answer(self, pictures: list[SeenPicture]) -> Iterator[tuple[SeenPicture, Labelled]]:
        height, width = pictures[0].native.shape[:2]
        scaled = torch.stack([picture.scaled for picture in pictures])
        yield from zip(pictures, self.label.many(scaled, (height, width)), strict=True)

    def _saved(self, name: Path, picture: SeenPicture, said: Labelled) -> np.ndarray:
        """The overlay [H, W, 3] uint8 RGB; everything else is written."""
        save_prediction(self.out, name, said.train_ids, self.class_set)
        if self.confidence:
            save_png(self.out / "confidence" / f"{name}.png", np.rint(255 * said.confidence).astype(np.uint8))
        self.advance()
        return overlay(picture.native.numpy(), said.train_ids, self.class_set)


def _opened(paths: Iterable[Path], failed: list[str]) -> dict[Path, int]:
    """Videos that can be read, with the number of frames that they promise; what is said of others joins `failed`."""
    found = {}
    for path in paths:
        try:
            with VideoFile(path) as video:
                found[path] = video.count
        except ImageFileError as error:
            failed.append(str(error))
    return found


def _readable(pictures: Iterator[SeenPicture], failed: list[str]) -> Iterator[SeenPicture]:
    """The pictures that can be read; what is said of others joins `failed`."""
    while True:
        try:
            picture = next(pictures)
        except ImageFileError as error:
            failed.append(str(error))
        except StopIteration:
            return
        else:
            yield picture
