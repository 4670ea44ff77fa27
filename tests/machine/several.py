"""A network and data so small that runs of several processes cost seconds."""

from pathlib import Path
from typing import Any

import torch
from timm.models import register_model
from torch import nn

from dida import recipes
from dida.config import Config
from dida.data.toy import Counts, generate
from dida.models.mit import MixVisionTransformer
from dida.models.segmentor import Segmentor
from tests.golden.curves import SMALL

STEPS = 20
TINY = SMALL | {"batch_size": 4, "crop": 32, "backbone": "mit_tiny", "embed_dim": 8, "steps": STEPS}


@register_model
def mit_tiny(pretrained: bool = False, *, drop_path_rate: float = 0.0, **others: Any) -> nn.Module:
    """A block a stage."""
    return MixVisionTransformer((8, 16, 20, 32), (1, 1, 1, 1), drop_path_rate=drop_path_rate)


def make_files(folder: Path) -> Path:
    """Some pictures of the toy, and weights of an encoder."""
    generate(folder, counts=Counts(source=6, source_val=1, target=6, val=5, test=1))
    torch.manual_seed(7)
    torch.save(Segmentor("mit_tiny", 19, 8).backbone.state_dict(), folder / "encoder.pth")
    return folder


def config_of(files: Path, **options: Any) -> Config:
    """What a command line with these options says, over those of a tiny run."""
    options = TINY | {"data_root": files, "weights": files / "encoder.pth"} | options
    arguments = [part for option, value in options.items() for part in ("--" + option.replace("_", "-"), str(value))]
    return recipes.from_command_line(arguments)
