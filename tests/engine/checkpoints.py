"""Checkpoints of networks that were never trained, for tests of what is done with trained ones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dida.command import run_evaluation
from dida.config import Config, changed, to_dict
from dida.data.classes import CITYSCAPES_CLASSES, ClassSet
from dida.models.segmentor import Segmentor
from dida.options import read_command_line
from dida.options.evaluation import EvalConfig
from dida.state import FORMAT

DIM = 16


def tiny_config(data: Path, **options: Any) -> Config:
    """A small network on pictures below `data`, which are scored at 64x32."""
    tiny = {"backbone": "mit_b0", "embed_dim": DIM, "tgt_size": "64x32", "workers": 0, "seed": 7}
    return changed(Config(), data_root=data, **tiny | options)


def write_checkpoint(
    path: Path, of: Config, /, *, step: int = 400, class_set: ClassSet = CITYSCAPES_CLASSES, **replaced: Any
) -> Path:
    """A checkpoint of random weights, with what is read of it outside training; `replaced` are other contents."""
    content = {"format": FORMAT, "step": step, "config": to_dict(of), "classes": class_set.to_dict()}
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        content[name] = Segmentor("mit_b0", len(class_set), DIM, 0.0).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | replaced, path)
    return path


def evaluate(*args: object) -> None:
    """What eval.py does with these arguments, in this process."""
    run_evaluation(read_command_line(EvalConfig, [str(arg) for arg in args], "eval.py"))


def refusal(*args: object) -> str:
    """What eval.py says when it refuses; it must not be a traceback."""
    with pytest.raises(SystemExit) as ended:
        evaluate(*args)
    assert isinstance(ended.value.code, str)  # sys.exit prints it and exits with 1
    assert ended.value.code.startswith("eval.py: ")
    assert "Traceback" not in ended.value.code
    return ended.value.code
