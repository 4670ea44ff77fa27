"""Numbers of steps: they leave the device all at once, so that no step waits for it."""

import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dida.batch import Trace
from dida.data.loader import Ids
from dida.errors import NonFinite
from dida.machine.distributed import ALONE, World
from dida.machine.files import write_json
from dida.run.terms import LOSS

GRADIENT, WEIGHTS = "gradient_norm", "weight_norm"  # names of the norms among them


class Meter:
    """Collects what steps leave behind. `add` never waits for the device; `flush` fetches everything at once."""

    def __init__(self, folder: Path, world: World = ALONE) -> None:
        """`folder`: of the run, where the samples of a step that is not finite are written down.

        The losses of several processes are averaged; each must flush after the same steps.
        """
        self._folder, self._world = folder, world
        self._steps: list[tuple[int, Ids]] = []
        self._values: list[dict[str, Tensor]] = []  # per step, scalars on the device
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, step: int, trace: Trace, ids: Ids, *, waited: float) -> None:
        """Take the losses and norms (and coverage of pseudo-labels) of step `step`, made from the samples `ids`.

        `waited`: seconds that the loop waited for that batch.
        """
        values = {LOSS + name: loss for name, loss in trace.losses.items()}
        if trace.target is not None:
            values["pseudo_coverage"] = trace.target.pseudo.coverage
        values |= {GRADIENT: trace.gradient_norm, WEIGHTS: trace.weight_norm}
        self._steps.append((step, ids))
        self._values.append(values)
        self._waited += waited

    def __len__(self) -> int:
        """Steps since the last flush."""
        return len(self._steps)

    def leave_out(self, seconds: float) -> None:
        """Time that steps did not take: the rates of the next flush are without it."""
        self._since += seconds

    def flush(self, *, lr: Sequence[float], bank_fill: Tensor) -> dict[str, float]:
        """Means over the steps since the last flush, and rates; the meter is empty afterwards.

        `lr`: learning rates, the encoder's first and the head's last. `bank_fill`: scalar, on the device. One transfer
        to the host. Raises NonFinite if a loss, the gradient or the weights of any step are not finite, and ValueError
        if there was no step.
        """
        if not self._steps:
            raise ValueError("nothing to flush: no step was added")
        names = list(self._values[0])
        flat = [values[name].float() for values in self._values for name in names]
        *rows, fill = self._world.mean(torch.stack([*flat, bank_fill.float()])).tolist()
        elapsed = time.perf_counter() - self._since  # after the transfer, which waits until the last step is done
        table = [rows[i : i + len(names)] for i in range(0, len(rows), len(names))]
        self._require_finite(names, table)
        scalars = {name: math.fsum(row[i] for row in table) / len(table) for i, name in enumerate(names)}
        scalars |= {
            "lr": float(lr[0]),
            "lr_head": float(lr[-1]),
            "steps_per_second": len(table) / elapsed,
            "data_wait": min(self._waited / elapsed, 1.0),
            "memory_gib": peak_memory(bank_fill.device) / 2**30,
            "bank_fill": fill,
        }
        self._steps, self._values, self._waited, self._since = [], [], 0.0, time.perf_counter()
        return scalars

    def _require_finite(self, names: list[str], table: list[list[float]]) -> None:
        for (step, ids), row in zip(self._steps, table, strict=True):
            values = dict(zip(names, row, strict=True))
            bad = [name for name in names if not math.isfinite(values[name])]
            if not bad:
                continue
            path = self._folder / f"nonfinite_step_{step}.json"
            samples = {domain: self._world.gather(indices).tolist() for domain, indices in ids._asdict().items()}
            said = {name: str(value) for name, value in values.items()}  # NaN is no JSON number
            with self._world.together():
                if self._world.leads:
                    write_json(path, {"step": step, "values": said, "samples": samples})
            listed = ", ".join(f"{name} {value}" for name, value in said.items())
            raise NonFinite(f"{_blame(bad, step)} ({listed}); its samples are in {path}")


def _blame(bad: list[str], step: int) -> str:
    """What is at fault for the first numbers that are not finite: of a step, losses come first and weights last."""
    losses = [name.removeprefix(LOSS) for name in bad if name not in (GRADIENT, WEIGHTS)]
    if losses:
        return f"loss {' and '.join(losses)} not finite at step {step}"
    if GRADIENT in bad:
        return f"gradient not finite at step {step}, although its losses are"
    return f"weights not finite at step {step}, after an update that was too large for them, see --lr and --warmup"


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated by PyTorch on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
