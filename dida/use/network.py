"""A trained network in a program of one's own: `dida.load("runs/...")("street.png")`."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from torch import Tensor, nn

from dida.data.classes import ClassSet
from dida.data.image_file import read_image, require_8_bits
from dida.data.pictures import of_one_shape
from dida.data.transforms import Normalise, scaled_image
from dida.machine.device import find_device
from dida.options import parse_size
from dida.use.evaluate import Inference, class_scores, enlarged, evaluating
from dida.use.sharing import require_nothing_of_others, save_shared
from dida.use.trained import Trained, load_trained

AnyPicture = str | os.PathLike[str] | np.ndarray | Tensor | Image.Image
Output = Literal["labels", "probabilities", "confidence", "colours"]
Answer = np.ndarray | tuple[np.ndarray, ...]  # one array, or one for each of several outputs
Precision = Literal["fp32", "bf16"]


class Network(nn.Module, PyTorchModelHubMixin):
    """Answers what is where in a picture. `load` makes one.

        labels = network("street.png")                              [H, W] uint8: places in `network.classes`
        labels, sure = network(picture, "labels", "confidence")     several answers of one look
        many = network(["a.png", "b.jpg"])                          a list of answers

    `save_pretrained(FOLDER)` and `push_to_hub("user/name")` write what `load` reads again: weights as safetensors, the
    classes, the run's settings without its paths, and a model card. `to(device)` moves it.
    """

    def __init__(
        self,
        trained: Trained,
        network: str,
        *,
        size: tuple[int, int],
        inference: Inference,
        precision: Precision = "fp32",
        batch_size: int = 4,
    ):
        """Raises ValueError for a network that is not there."""
        super().__init__()
        self.model = trained.require(network).eval()
        self.normalise = Normalise().to(next(self.model.parameters()).device)
        self.name = network  # student or teacher
        self.size = size  # (width, height) that pictures are scaled to fit into, their ratio kept
        self.inference = inference
        self.precision = precision
        self.batch_size = batch_size
        self.origin = replace(trained, networks={})  # all that is known of it besides its weights

    @property
    def class_set(self) -> ClassSet:
        """Names, colours and raw ids of the classes."""
        return self.origin.class_set

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; a label is a place in this tuple."""
        return self.class_set.names

    def __call__(self, picture: AnyPicture | Sequence[AnyPicture], *outputs: Output) -> Any:
        """What the network says of a picture, at the picture's own size; of a list or a batch, a list of answers.

        Args:
            picture: the path of a file, whose EXIF orientation is obeyed; an image of Pillow; an array [H, W, 3] or
                [B, H, W, 3], or a tensor [3, H, W] or [B, 3, H, W], of uint8 RGB; or a list of any of these.
            outputs: "labels" [H, W] uint8, the default; "probabilities" [C, H, W] float32; "confidence" [H, W] float32,
                the probability of the label; "colours" [H, W, 3] uint8 RGB. Of several a tuple comes back.

        Returns:
            NumPy arrays. Pictures of one size that follow each other are looked at together, `batch_size` at a time.

        Raises:
            ValueError: an output or a picture of another kind. ImageFileError (one as well): a file that is no picture.
        """
        return super().__call__(picture, *outputs)

    def forward(self, picture: AnyPicture | Sequence[AnyPicture], *outputs: Output) -> Any:
        """See `__call__`."""
        wanted = outputs or ("labels",)
        if unknown := [name for name in wanted if name not in _OUTPUTS]:
            raise ValueError(f"no output is called {unknown[0]!r}; there are {', '.join(_OUTPUTS)}")
        several = _unbatched(picture)
        if several is None:
            (answer,) = self._answers([as_rgb(picture)], wanted)
            return answer
        # A chain, because the variable of a loop would keep one batch while the next is read.
        answered = map(partial(self._answers, wanted=wanted), of_one_shape(map(as_rgb, several), self.batch_size))
        return list(chain.from_iterable(answered))

    def _answers(self, pictures: list[np.ndarray], wanted: tuple[Output, ...]) -> list[Answer]:
        """Of pictures of one size."""
        with evaluating(self.model), self._autocast():
            enlarge = self.origin.config.data.enlarge
            scaled = np.stack([scaled_image(picture, self.size, enlarge=enlarge) for picture in pictures])
            image = self.normalise(torch.from_numpy(scaled).to(self.normalise.mean.device).permute(0, 3, 1, 2))
            shape = pictures[0].shape[:2]
            # Enlarged one by one: at the size of a camera scores are large.
            seen = (
                enlarged(scores[None].float(), shape)[0] for scores in class_scores(self.model, image, self.inference)
            )
            made = [[_OUTPUTS[name](scores, self.class_set) for name in wanted] for scores in seen]
        return [arrays[0] if len(wanted) == 1 else tuple(arrays) for arrays in made]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.normalise.mean.device.type, torch.bfloat16)

    # ---- what PyTorchModelHubMixin calls ---------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Weights, config and model card, for `load`; `options` are those of the hub's mixin.

        Raises ValueError for a folder where that would write over what was not written so, and OSError.
        """
        require_nothing_of_others(Path(save_directory))  # now: the mixin removes a config.json first of all
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_shared(save_directory, self.origin, self.name, self.model, self.size, self.inference)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Network":
        at = {name: options.pop(name) for name in _OF_THE_HUB if options.get(name)}
        return load(model_id, **{k: v for k, v in options.items() if k not in _OF_THE_HUB}, hub=at)


_OF_THE_HUB = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def load(
    source: str | os.PathLike[str],
    *,
    network: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    size: str | None = None,
    window: int | None = None,
    stride: int = 0,
    flip: bool = False,
    batch_size: int = 4,
    revision: str | None = None,
    hub: dict[str, Any] | None = None,
) -> Network:
    """A network to be called with pictures.

    Args:
        source: a run folder, whose newest checkpoint is taken; a checkpoint; a folder that `save_pretrained` wrote; a
            file or folder of DAFormer, DIDA or SegFormer; or user/name, a repository of the Hugging Face hub.
        network: "student" or "teacher"; by default the student, or the only one there is.
        device: auto, cpu, cuda or cuda:N. auto is the GPU if there is one.
        precision: fp32, or bf16 (autocast).
        size: "WxH" that pictures are scaled to fit into, their ratio kept; by default that of the run's target.
        window: side of a sliding window in pixels of the scaled picture; 0 is the whole picture at once, the default
            but for a published network whose paper has windows.
        stride: pixels from one window to the next; 0 is half a window, or the stride of that paper.
        flip: average with what the network says of the mirror image.
        batch_size: pictures of one size that are looked at together, where several are given.
        revision: a branch, tag or commit of a repository of the hub.
        hub: what else `huggingface_hub.hf_hub_download` takes, such as a token.

    Raises:
        FileNotFoundError: nothing there, here or on the hub. ValueError: something else, or an argument without sense.
    """
    for name, text in {"device": device, "size": size, "network": network}.items():
        if not isinstance(text, str) and (text is not None or name == "device"):
            raise TypeError(f"{name}: expected text, got {text!r}")
    if precision not in ("fp32", "bf16") or batch_size < 1:
        raise ValueError(
            f"expected precision fp32 or bf16 and a batch_size of 1 or more, got {precision}, {batch_size}"
        )
    at = {"revision": revision} if revision else {}
    trained = load_trained(os.fspath(source), find_device(device), **at, **(hub or {}))
    return Network(
        trained,
        network or next(iter(trained.networks)),
        size=parse_size(size or trained.config.data.tgt_size, option="size"),
        inference=trained.asked(window, stride, flip=flip),
        precision=precision,
        batch_size=batch_size,
    )


def _labels(scores: Tensor, class_set: ClassSet) -> np.ndarray:
    return scores.argmax(0).to(torch.uint8).cpu().numpy()


# Of the scores [C, H, W] of one picture.
_OUTPUTS = {
    "labels": _labels,
    "probabilities": lambda scores, class_set: scores.softmax(0).cpu().numpy(),
    "confidence": lambda scores, class_set: scores.softmax(0).amax(0).cpu().numpy(),
    "colours": lambda scores, class_set: class_set.colourise(_labels(scores, class_set)),
}


def _unbatched(pictures: Any) -> Sequence[Any] | None:
    """The pictures in a list or a batch; None for a single one."""
    if isinstance(pictures, list | tuple):
        return pictures
    return list(pictures) if isinstance(pictures, np.ndarray | Tensor) and pictures.ndim == 4 else None


def as_rgb(picture: Any) -> np.ndarray:
    """[H, W, 3] uint8 RGB of anything that is an `AnyPicture`. Raises ValueError, such as ImageFileError."""
    if isinstance(picture, str | os.PathLike):
        return read_image(Path(picture).expanduser())
    if isinstance(picture, Image.Image):
        require_8_bits(picture.mode, "a picture of Pillow")
        picture = np.asarray(picture.convert("RGB"))
    if isinstance(picture, Tensor) and picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[0] == 3:
        picture = picture.permute(1, 2, 0).cpu().numpy()
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3:
        if picture.size == 0:
            raise ValueError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels has nothing in it")
        return picture
    found = (
        f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, np.ndarray | Tensor) else type(picture).__name__
    )
    raise ValueError(
        f"expected a path, an image of Pillow, an array [H, W, 3] or a tensor [3, H, W] of uint8 RGB, got {found}; "
        "normalising is done here"
    )
