"""Every option of scoring and labelling. Only the standard library and tyro are imported here, as in config.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from dida.options import Range, parse_size

SMALLEST_WINDOW = 32  # as the smallest --crop; a picture has a hundred thousand windows of fewer pixels


@dataclass(frozen=True)
class LookConfig:
    """Which network looks at pictures, and how."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, whose newest checkpoint is taken; a checkpoint; a file that DAFormer, DIDA or SegFormer published; or
    user/network on the Hugging Face hub."""
    network: Literal["student", "teacher"] = "student"
    """Whose label maps are saved or drawn."""
    size: str | None = None
    """WxH in pixels that an image is scaled into, its ratio kept; by default --tgt-size of the run."""
    window: Annotated[int | None, Range(0, 1 << 14)] = None
    """Side of a sliding window in pixels of the scaled image; 0 looks at the whole image at once, which is the default
    but for a published network whose paper has windows."""
    stride: Annotated[int, Range(0, 1 << 14)] = 0
    """Pixels from one window to the next; 0 is half a window, or the stride of that paper."""
    flip: bool = False
    """Average with what the network says of the mirror image."""
    out: Path | None = None
    """Folder for labelled pictures; by default images/ in the run folder, or beside the checkpoint that was named."""
    confidence: bool = False
    """Of labelled pictures: write confidence/ as well, the probability of the class that was taken, 0 to 255."""
    batch_size: Annotated[int, Range(1, 4096)] = 4
    """Pictures of one size, or frames of a video, that are labelled at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Annotated[int | None, Range(0, 256)] = None
    """Processes that load images; by default as many as in the run."""
    debug: bool = False
    """Show the traceback of an error, not its message alone."""

    def check(self) -> None:
        """Raises ValueError for values that mean nothing."""
        if self.window and self.window < SMALLEST_WINDOW:
            raise ValueError(
                f"--window {self.window}: expected 0, or at least {SMALLEST_WINDOW} pixels, which encoders see as one"
            )
        if self.size is not None:
            parse_size(self.size, option="--size")


@dataclass(frozen=True)
class LabelConfig(LookConfig):
    """Let a trained network label your own pictures and videos: overlays to look at, label maps, a legend.

    No label is read. Folders are mirrored below --out; a picture that cannot be read ends nothing and is named.
    """

    EVERYDAY: ClassVar = (
        "run", "pictures", "out", "confidence", "network", "size", "window", "flip", "device",
    )  # fmt: skip

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")] = field(kw_only=True)
    """Pictures, videos (.mp4, .avi), and folders of them."""

    def check(self) -> None:
        """As `LookConfig`; raises ValueError where no picture is named."""
        super().check()
        if not self.pictures:
            raise ValueError("which pictures? Name pictures, videos or folders of them behind RUN")


@dataclass(frozen=True)
class EvalConfig(LookConfig):
    """Score a trained network on labelled images, or let it label your own pictures (--images).

    Student and teacher are both scored, at the labels' own resolution; published numbers are those of the student.
    """

    EVERYDAY: ClassVar = (
        "run", "tgt", "split", "json", "images", "out", "confidence", "size", "window", "flip", "network", "device",
    )  # fmt: skip

    tgt: str | None = None
    """Domain to score on; by default the target of the run."""
    data_root: Path | None = None
    """Folder that holds the data sets; by default that of the run."""
    split: Literal["val", "test", "train"] = "val"
    """Part of the domain to score on; its labels are needed."""
    json: Path | None = None
    """File to write all numbers to."""
    save_predictions: Path | None = None
    """Folder for predicted label maps: train_ids/, label_ids/ (as the Cityscapes server takes them) and colour/."""
    alone: bool = False
    """Score the network of --network alone, in half of the time."""
    images: Path | None = None
    """Picture, video (.mp4, .avi), or folder of them, to be labelled instead of scoring; no label is read."""

    def check(self) -> None:
        """As `LookConfig`; raises ValueError for options that exclude each other."""
        super().check()
        if self.images is not None and (self.json is not None or self.save_predictions is not None):
            raise ValueError("--json and --save-predictions are for scores; --images has no labels and writes to --out")
        if self.images is None and self.out is not None:
            raise ValueError("--out is where --images go; did you mean --save-predictions?")
        if self.images is None and self.confidence:
            raise ValueError("--confidence is written for --images, and none were named")
        for_scores = {"--tgt": self.tgt, "--data-root": self.data_root, "--split": self.split != "val" and self.split}
        if self.images is not None and (given := [option for option, value in for_scores.items() if value]):
            raise ValueError(f"{given[0]} says what is scored; --images are labelled, without labels of their own")
        if self.images is None and self.batch_size != LookConfig.batch_size:
            raise ValueError("--batch-size is of --images; scoring looks at one picture at a time")
        if self.images is not None and self.alone:
            raise ValueError("--alone is for scores; --images are labelled by --network alone as it is")
