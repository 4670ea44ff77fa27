"""The options of export. Only the standard library and tyro are imported here, as in config.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dida.options import Range

ENDINGS = {"torch": ".pt2", "onnx": ".onnx", "safetensors": ""}  # of a folder none


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained network for programs that have neither this package nor its code, and check what was written.

    onnx and torch take a batch of pictures of any size and label it; safetensors is the folder that dida.load and the
    Hugging Face hub take.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, checkpoint, published file or user/network on the hub, as for eval."""
    format: Literal["onnx", "torch", "safetensors"] = "onnx"
    """onnx; torch, a program of torch.export; or safetensors, a folder of weights, settings and a model card."""
    out: Path | None = None
    """File (for safetensors the folder) to write; by default network.onnx, network.pt2 or shared/ in the
    run folder, or beside the file that was named."""
    network: Literal["student", "teacher"] = "student"
    """Whose weights."""
    normalise: bool = True
    """Take pictures as [B, 3, H, W] uint8 RGB; off: as float32, less ImageNet's mean and over its deviation."""
    argmax: bool = True
    """Give labels [B, H, W] uint8; off: class scores [B, C, H, W] float32."""
    images: Path | None = None
    """Folder of pictures to check it on; by default streets that are drawn for it."""
    checks: Annotated[int, Range(1, 10_000)] = 20
    """Pictures that the written file must label as the network does."""
    debug: bool = False
    """Show the traceback of an error, not its message alone."""

    def check(self) -> None:
        """Raises ValueError for options that exclude each other."""
        if self.format == "safetensors" and not (self.normalise and self.argmax):
            raise ValueError("--no-normalise and --no-argmax are about programs; --format safetensors writes weights")
