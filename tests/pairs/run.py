"""One pair of domains and one method, from the command line to the last line."""

import contextlib
import io
import shlex
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from timm.models._features import FeatureInfo
from torch import Tensor, nn

from dida import loop, recipes
from dida.assemble import assemble
from dida.command import run_evaluation
from dida.config import changed
from dida.options import read_command_line
from dida.options.evaluation import EvalConfig
from dida.run.overview import Need

SMALL = {"crop": 32, "batch_size": 2, "workers": 0, "device": "cpu", "weights": "none", "embed_dim": 16}
SMALL |= {"head": "segformer"}  # a third of the modules of the other


class Case(NamedTuple):
    """A command line."""

    src: str
    tgt: str
    method: str
    steps: int = 20

    def arguments(self, root: Path, out: Path) -> list[str]:
        source = [] if self.method == "oracle" else ["--src", self.src]
        places = ["--data-root", str(root), "--out", str(out)]
        return [*source, "--tgt", self.tgt, "--method", self.method, "--steps", str(self.steps), *places]


class SmallBackbone(nn.Module):
    """Four convolutions, whose maps have the strides that the head needs."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        strides = (4, 2, 2, 2)
        self.stages = nn.ModuleList(nn.Conv2d(width if i else 3, width, 3, s, 1) for i, s in enumerate(strides))
        info = [{"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i in range(4)]
        self.feature_info = FeatureInfo(info, out_indices=(0, 1, 2, 3))

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            image = stage(image).relu()
            maps.append(image)
        return maps


@contextlib.contextmanager
def small_networks():
    """Networks take no time while the block lasts, whatever backbone is asked for."""
    with (
        mock.patch("dida.models.segmentor.build_backbone", side_effect=lambda *_: SmallBackbone()),
        mock.patch("dida.run.overview._SIDE", 32),  # of the matrices that this machine is tried with
        mock.patch("dida.run.overview.step_need", return_value=Need(flops=1e6, memory=1 << 20)),
    ):
        yield


def run_case(case: Case, root: Path, out: Path) -> str:
    """Train, and do what the last line says. The last line; raises whatever went wrong, SystemExit included."""
    said = io.StringIO()
    with small_networks(), contextlib.redirect_stdout(said), torch.random.fork_rng():
        config = changed(recipes.from_command_line(case.arguments(root, out)), **SMALL, cache=root.parent / "cache")
        loop.train(config, assemble(config))
        last = said.getvalue().splitlines()[-1].strip()
        program, script, *arguments = shlex.split(last)
        assert (program, script) == ("python", "eval.py"), last
        small = [*arguments, "--size", "64x64", "--workers", "0"]
        run_evaluation(read_command_line(EvalConfig, small, "eval.py"))
    return last
