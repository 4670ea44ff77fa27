"""Video files: frames in order, one at a time in memory, and videos that are whole or not there."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from dida.data.image_file import ImageFileError

_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}  # by the ending of the file that is written; OpenCV always has these two
_USUAL_RATE = 25.0  # frames a second, where a file does not say
_MOST = 2**16 - 1  # that fits into MPEG-4's half of a fraction
# Headers say a frame or two more than there are, after a cut for instance; more than this share is a damaged file.
_MAY_BE_MISSING = 0.01


class VideoFile:
    """A video that can be read. `with VideoFile(path) as video: for frame in video.frames(): ...`"""

    def __init__(self, path: Path) -> None:
        """Raises ImageFileError for a file that is no video."""
        self.path = path
        self._capture = cv2.VideoCapture(str(path)) if path.is_file() else None
        if self._capture is None or not self._capture.isOpened():
            raise ImageFileError(f"{path}: not a readable video")
        self.rate = _rate_to_write(self._capture.get(cv2.CAP_PROP_FPS))  # frames a second
        self.count = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)  # that the header promises
        self.least = max(math.ceil(self.count * (1 - _MAY_BE_MISSING)) - 2, 1)  # that a whole one has

    def frames(self) -> Iterator[np.ndarray]:
        """[H, W, 3] uint8 RGB, upright, in order, as many as can be read."""
        assert self._capture is not None  # or the video could not be made
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *error: object) -> None:
        assert self._capture is not None
        self._capture.release()


@contextmanager
def whole_video(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends a frame [H, W, 3] uint8 RGB to a video, which takes its name when the block ends well.

    .mp4 or .avi, with the folders above it; nothing without a frame. Frames of an odd width or height get one more
    column or row, which these formats need. Raises OSError if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending says the format. Of this process, because two may write the same file.
    partial = path.with_name(f".{path.stem[:40]}.{os.getpid()}.partial{path.suffix.lower()}")
    writer: cv2.VideoWriter | None = None
    written = 0

    def write(frame: np.ndarray) -> None:
        nonlocal writer, written
        height, width = frame.shape[:2]
        even = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if writer is None:
            codec = cv2.VideoWriter.fourcc(*_CODECS[path.suffix.lower()])
            writer = cv2.VideoWriter(str(partial), codec, rate, (even.shape[1], even.shape[0]))
            if not writer.isOpened():
                raise OSError(f"{path}: cannot be written as a video")
        writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        written += 1

    try:
        yield write
        if writer is not None:
            writer.release()
            _require_whole(partial, written, path)
            partial.replace(path)
    finally:
        if writer is not None:
            writer.release()
        partial.unlink(missing_ok=True)


def _rate_to_write(rate: float) -> float:
    """The rate of a video as a file can have it, or what is usual where its header says nothing sensible.

    MPEG-4 takes fractions whose numerator has 16 bits, and OpenCV makes one with a power of ten below the line.
    """
    if not (math.isfinite(rate) and 0.001 <= rate <= _MOST):
        return _USUAL_RATE
    return next(rounded for digits in (3, 2, 1, 0) if (rounded := round(rate, digits)) * 10**digits <= _MOST)


def _require_whole(partial: Path, frames: int, path: Path) -> None:
    """Raise OSError unless a video holds that many frames: OpenCV does not say that a disk is full."""
    capture = cv2.VideoCapture(str(partial))
    there = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
    capture.release()
    if there != frames:
        raise OSError(
            f"{path}: could not be written whole ({max(int(there), 0)} of {frames} frames); is the disk full?"
        )
