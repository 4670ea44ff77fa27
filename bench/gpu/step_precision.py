"""Is a step in TF32 and in bfloat16 still the step? One from the same state in each precision, against float32.

Per precision: how far each loss is off, and the cosine between its gradient and that of float32. Precision and
compilation are the engine's own options. Nothing is trained: weights and averages are put back.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu.program import begin, stage_parser
from bench.gpu.step_parts import WORKLOADS, batch_on, contenders_of, precisions_on, settings_of
from bench.step import Contender, computing
from dida.batch import Batch
from dida.precision import Precision, products_in
from dida.step import train_step

# Of a loss, relative, and of the cosine below 1: what a step may be off in each precision.
LIMITS: dict[Precision, tuple[float, float]] = {"fp32": (1e-4, 1e-5), "tf32": (0.002, 0.002), "bf16": (0.01, 0.02)}


def main(arguments: Sequence[str] | None = None) -> int:
    program, _ = begin(stage_parser(__doc__), arguments)
    workload, device = WORKLOADS[program.device], torch.device(program.device)
    contender = contenders_of(workload._replace(slots=workload.slots[:1]), device)[1]
    batch = batch_on(device, workload.crop)
    program.keep(setting=settings_of(workload), rows=[])
    exact = one_step(contender, batch, "fp32")
    for precision in precisions_on(device):
        row = compared(precision, exact, one_step(contender, batch, precision))
        program.keep(rows=[*program.found["rows"], row])
        print(row, flush=True)
    return 0 if all(row["holds"] for row in program.found["rows"]) else 1


def one_step(contender: Contender, batch: Batch, precision: Precision) -> tuple[dict[str, float], Tensor]:
    """Losses of a step and its whole gradient, [parameters] float32; the state is as it was behind it."""
    (contender,) = computing([contender], precision=precision)
    state, gradient = contender.state, []
    modules = (state.student, state.teacher, state.bank)
    kept = [{name: x.clone() for name, x in module.state_dict().items()} for module in modules]

    def take(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = (p for group in optimizer.param_groups for p in group["params"])
        gradient.append(torch.cat([p.grad.flatten() for p in weights]))

    hook = state.optimizer.register_step_pre_hook(take)
    with products_in(precision):
        losses = train_step(state, batch, contender.method).losses
    hook.remove()
    for module, weights in zip(modules, kept, strict=True):
        module.load_state_dict(weights)
    return {name: float(loss) for name, loss in losses.items()}, gradient[0]


def compared(
    precision: Precision, exact: tuple[dict[str, float], Tensor], found: tuple[dict[str, float], Tensor]
) -> dict[str, Any]:
    """A row: by how much the losses and the gradient of a step are off, and whether that is within the limits."""
    off = {name: abs(found[0][name] / loss - 1) for name, loss in exact[0].items() if loss}
    cosine = float(torch.nn.functional.cosine_similarity(exact[1].double(), found[1].double(), dim=0))
    of_a_loss, of_the_cosine = LIMITS[precision]
    return {
        "precision": precision,
        "losses": found[0],
        "off": off,
        "gradient_cosine": cosine,
        "gradient_norm": float(found[1].norm()),
        "holds": max(off.values()) <= of_a_loss and 1 - cosine <= of_the_cosine,
    }


if __name__ == "__main__":
    sys.exit(main())
