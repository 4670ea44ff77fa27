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
from dida.files import write_json

LOSS = "loss/"  # prefix of loss names among the scalars


class NonFiniteLoss(RuntimeError):
    """A loss became infinite or NaN. The message names the term, the step and the file with the step's samples."""


class Meter:
    """Collects what steps leave behind. `add` never waits for the device; `flush` fetches everything at once."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the run, where the samples of a step with a non-finite loss are written down."""
        self._folder = folder
        self._steps: list[tuple[int, Ids]] = []
        self._values: list[dict[str, Tensor]] = []  # per step, scalars on the device
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, step: int, trace: Trace, ids: Ids, *, waited: float) -> None:
        """Take the losses (and coverage of pseudo-labels) of step `step`, made from the samples `ids`.

        `waited`: seconds that the loop waited for that batch.
        """
        values = {LOSS + name: loss for name, loss in trace.losses.items()}
        if trace.target is not None:
            values["pseudo_coverage"] = trace.target.pseudo.coverage
        self._steps.append((step, ids))
        self._values.append(values)
        self._waited += waited

    def flush(self, *, lr: Sequence[float | Tensor], bank_fill: Tensor) -> dict[str, float]:
        """Means over the steps since the last flush, and rates; the meter is empty afterwards.

        `lr`: learning rates, the encoder's first and the head's last. `bank_fill`: scalar, on the device. One transfer
        to the host. Raises NonFiniteLoss if any loss of any step is not finite, and ValueError if there was no step.
        """
        if not self._steps:
            raise ValueError("nothing to flush: no step was added")
        names = list(self._values[0])
        flat = [values[name].float() for values in self._values for name in names]
        *rows, fill = torch.stack([*flat, bank_fill.float()]).tolist()
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
            bad = [name.removeprefix(LOSS) for name, value in zip(names, row, strict=True) if not math.isfinite(value)]
            if not bad:
                continue
            path = self._folder / f"nonfinite_step_{step}.json"
            samples = {domain: indices.tolist() for domain, indices in ids._asdict().items()}
            values = {name: str(value) for name, value in zip(names, row, strict=True)}  # NaN is no JSON number
            write_json(path, {"step": step, "values": values, "samples": samples})
            raise NonFiniteLoss(
                f"loss {' and '.join(bad)} not finite at step {step}: "
                + ", ".join(f"{name} {value}" for name, value in values.items())
                + f"; its samples are in {path}"
            )


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated by PyTorch on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
