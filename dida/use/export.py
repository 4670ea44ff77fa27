"""A trained network as a program for others: ONNX and torch.export, held to the network by what they label.

A program takes a batch of pictures of any size and gives labels, or scores, of that size. Windows, flips and the
scaling to the size that the network was trained for stay outside of it.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError as RulesForSizes  # what torch.export raises for code that has them
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode

from dida.batch import MEAN, STD
from dida.data.image_file import read_image
from dida.data.pictures import of_one_shape
from dida.data.toy.benchmark import Counts, draw_picture, planned_pictures
from dida.data.transforms import Normalise, scaled_image
from dida.machine.files import write_bytes
from dida.use.evaluate import evaluating
from dida.use.trained import Trained

# Pixels of a picture, height and width: below, stages would have one row or column, which makes another program.
SIDE = (64, 1 << 14)
BATCH = 4  # pictures of one size that are checked together, at most
INPUT, OUTPUTS = "pictures", {True: "labels", False: "scores"}
# Scores of two programs differ by rounding, which decides between classes of (almost) equal score alone.
TIED = 1e-3  # of the largest score of the picture

Run = Callable[[np.ndarray], np.ndarray]  # a batch of pictures -> labels or scores


class Deployed(nn.Module):
    """[B, 3, H, W] uint8 RGB -> [B, H, W] uint8 labels. Without `normalise` it takes float32, less ImageNet's mean and
    over its deviation; without `argmax` it gives scores [B, C, H, W] float32."""

    def __init__(self, network: nn.Module, *, normalise: bool = True, argmax: bool = True):
        super().__init__()
        self.network = network
        self.normalise = Normalise() if normalise else nn.Identity()
        self.argmax = argmax

    def forward(self, pictures: Tensor) -> Tensor:
        scores = self.network(self.normalise(pictures)).logits
        return scores.argmax(1).to(torch.uint8) if self.argmax else scores

    def said(self) -> str:
        """What goes in and what comes out, in a line."""
        taken = "uint8 RGB, normalised inside"
        if not isinstance(self.normalise, Normalise):
            taken = "float32 RGB, less ImageNet's mean and over its deviation"
        given = "[B, H, W] uint8" if self.argmax else "[B, C, H, W] float32"
        return f"{INPUT} [B, 3, H, W] {taken}, of {SIDE[0]} or more pixels a side; {OUTPUTS[self.argmax]} {given}"


class Agreement(NamedTuple):
    """How a written program labelled pictures, beside the network."""

    pictures: int
    sizes: int  # different ones among them
    pixels: int
    tied: int  # pixels with another label, where the network itself is undecided
    wrong: int  # pixels with another label elsewhere
    largest: float | None  # difference of a score, as a share of the picture's largest; None: labels alone came out

    def __str__(self) -> str:
        differing = "every pixel is labelled as the network does it"
        if self.tied or self.wrong:
            differing = (
                f"{self.tied + self.wrong} of {self.pixels} pixels have another label, {self.wrong} without a tie"
            )
        scores = "" if self.largest is None else f", scores within {self.largest:.1e} of the largest"
        return f"{self.pictures} pictures of {self.sizes} sizes: {differing}{scores}"


def write_torch(program: Deployed, path: Path) -> None:
    """A program of torch.export, for `torch.export.load`.

    Raises OSError, and ValueError for a backbone that sees pictures by rules of their size.
    """
    content = io.BytesIO()
    with torch.no_grad():
        torch.export.save(_traced(program), content)
    write_bytes(path, content.getvalue())


def write_onnx(program: Deployed, path: Path, trained: Trained) -> None:
    """One file; what a program needs to know beside it (classes, colours, size) is in its metadata.

    Raises ImportError where onnx and onnxscript are not installed, and as `write_torch`.
    """
    with torch.no_grad():
        written = torch.onnx.export(
            _traced(program), input_names=[INPUT], output_names=[OUTPUTS[program.argmax]], dynamo=True, verbose=False
        )
    assert written is not None  # it is None where a path is passed
    model = written.model_proto
    for key, value in metadata(program, trained).items():
        model.metadata_props.add(key=key, value=value)
    write_bytes(path, model.SerializeToString())


def metadata(program: Deployed, trained: Trained) -> dict[str, str]:
    """As text, which is all that ONNX keeps; lists as JSON."""
    classes = trained.class_set
    return {
        "classes": json.dumps(classes.names),
        "colours": json.dumps(classes.colours),
        "size": trained.config.data.tgt_size,
        "enlarge": json.dumps(trained.config.data.enlarge),
        "normalised_inside": json.dumps(isinstance(program.normalise, Normalise)),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
    }


def _traced(program: Deployed) -> torch.export.ExportedProgram:
    """For batches and sizes of any number; traced with numbers that are no special case of anything."""
    normalised = not isinstance(program.normalise, Normalise)
    example = torch.zeros(2, 3, 96, 160, dtype=torch.float32 if normalised else torch.uint8)
    dim = torch.export.Dim
    low, high = SIDE
    shapes = {0: dim("batch", min=1), 2: dim("height", min=low, max=high), 3: dim("width", min=low, max=high)}
    if any(_pads_by_size(module) for module in program.modules()):  # tracing would not come to an end
        raise ValueError(f"the backbone pads by the size of its picture, as TensorFlow does; {_NO_PROGRAM}")
    try:
        return torch.export.export(program.eval().cpu(), (example,), dynamic_shapes={"pictures": shapes})
    except (RulesForSizes, ConstraintViolationError, GuardOnDataDependentSymNode) as error:
        why = shorten(str(error), 200, placeholder=" ...")
        raise ValueError(f"PyTorch cannot trace the backbone for any size ({why}); {_NO_PROGRAM}") from error


_NO_PROGRAM = "no such program can be made of it. --format safetensors writes what `dida.load` reads"


def _pads_by_size(module: nn.Module) -> bool:
    """Whether it is one of timm's Conv2dSame, MaxPool2dSame, ...; some say `same_pad` where they need no such rule."""
    return type(module).__name__.endswith("Same") and getattr(module, "same_pad", True)


def run_torch(path: Path) -> Run:
    """What `write_torch` wrote, read again."""
    program = torch.export.load(path).module()
    return lambda pictures: program(torch.from_numpy(pictures)).numpy()


def run_onnx(path: Path) -> Run:
    """What `write_onnx` wrote, on a CPU. Raises ImportError where onnxruntime is not installed."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {INPUT: pictures})[0]


def compare(
    run: Run, program: Deployed, pictures: Iterable[np.ndarray], advance: Callable[[int], None] = lambda count: None
) -> Agreement:
    """Both on the same pictures [H, W, 3] uint8, those of one size that follow each other as a batch.

    `advance` is told how many more are done.
    """
    normalise, shapes = Normalise(), set()
    count = pixels = tied = wrong = 0
    largest = 0.0
    with evaluating(program):
        for batch in _batches(pictures):
            image = torch.from_numpy(batch)
            expected = program.network(normalise(image)).logits
            given = image if isinstance(program.normalise, Normalise) else normalise(image)
            found = torch.from_numpy(run(given.numpy()))
            scale = expected.abs().amax((1, 2, 3), keepdim=True)
            if not program.argmax:
                largest = max(largest, float(((found - expected).abs() / scale).max()))
                found = found.argmax(1)
            best, second = expected.topk(2, dim=1).values.unbind(1)
            differs = found != expected.argmax(1)
            undecided = best - second <= TIED * scale[:, 0]
            tied += int((differs & undecided).sum())
            wrong += int((differs & ~undecided).sum())
            count, pixels = count + len(batch), pixels + differs.numel()
            shapes.add(batch.shape[2:])
            advance(len(batch))
    return Agreement(count, len(shapes), pixels, tied, wrong, None if program.argmax else largest)


def _batches(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """[B, 3, H, W]."""
    return (np.ascontiguousarray(np.stack(same).transpose(0, 3, 1, 2)) for same in of_one_shape(pictures, BATCH))


def own_pictures(paths: Iterable[Path], size: tuple[int, int], *, enlarge: bool) -> Iterator[np.ndarray]:
    """Files, scaled to fit into `size` as the network sees them, and to what a program takes. Raises ImageFileError.

    `enlarge`: whether smaller ones were, when the network was trained.
    """
    return (_taken(scaled_image(read_image(path), size, enlarge=enlarge)) for path in paths)


def _taken(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return cv2.resize(picture, (max(width, SIDE[0]), max(height, SIDE[0])))


def drawn_pictures(count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Streets of the toy at that size, upright, half as large and odd, so that no program can depend on one."""
    width, height = size
    sizes = [size, (height, width), (width // 2 + 1, height // 2 + 1), (width * 3 // 4, height // 2 + 7)]
    share = -(-count // len(sizes))
    for number, planned in enumerate(planned_pictures(Counts(source=count))[:count]):
        image, _ = draw_picture(planned)
        yield _taken(cv2.resize(image, sizes[number // share]))
