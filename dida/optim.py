"""AdamW as DAFormer uses it: the head learns faster, norms of the encoder do not decay, warm-up times linear decay."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
WARMUP_FLOOR = 1e-6  # share of the learning rate at step 0


def build_optimizer(model: nn.Module, *, lr: float, head_lr_factor: float, weight_decay: float) -> AdamW:
    """Three groups: encoder, encoder norms (no decay), head (`head_lr_factor` times the rate, decayed throughout)."""
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    groups: dict[str, list[nn.Parameter]] = {"encoder": [], "norm": [], "head": []}
    for name, parameter in model.named_parameters():
        group = "head" if name.startswith("decode_head.") else "norm" if id(parameter) in norms else "encoder"
        groups[group].append(parameter)
    return AdamW(
        [
            {"params": groups["encoder"], "lr": lr, "weight_decay": weight_decay, "name": "encoder"},
            {"params": groups["norm"], "lr": lr, "weight_decay": 0.0, "name": "norm"},
            {"params": groups["head"], "lr": lr * head_lr_factor, "weight_decay": weight_decay, "name": "head"},
        ],
        betas=(0.9, 0.999),
        fused=next(model.parameters()).is_cuda or None,  # None: as PyTorch chooses
    )


def build_schedule(optimizer: AdamW, *, steps: int, warmup: int) -> LambdaLR:
    """lr(i) = lr (1 - i / steps) w(i), with w rising linearly from almost 0 to 1 over the first `warmup` steps."""

    def factor(i: int) -> float:
        rising = 1 - (1 - i / warmup) * (1 - WARMUP_FLOOR) if i < warmup else 1.0
        return (1 - i / steps) * rising

    return LambdaLR(optimizer, factor)


def rates_at(schedule: LRScheduler, step: int) -> list[float]:
    """The learning rate of every group of parameters in step `step`."""
    assert isinstance(schedule, LambdaLR)
    return [float(base) * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]


def rates_of_now(optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Give the optimizer the rates of the step that the schedule is at: an extended run was saved with others."""
    for group, rate in zip(optimizer.param_groups, rates_at(schedule, schedule.last_epoch), strict=True):
        group["lr"] = rate


def gradient_norm(model: nn.Module) -> Tensor:
    """[] Euclidean norm of the gradient of all parameters, on the device. Not finite where a number of it is not."""
    return get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


@dataclass(frozen=True)
class ClipGradient:
    """Scale the gradient of all parameters together, in place, so that its Euclidean norm is `limit` at most.

    Returns the norm that it had, as `gradient_norm` does; one that is not finite stays so and ends the run.
    """

    limit: float

    def __call__(self, model: nn.Module) -> Tensor:
        norm = gradient_norm(model)
        clip_grads_with_norm_(model.parameters(), self.limit, norm)
        return norm


def weight_norm(model: nn.Module) -> Tensor:
    """[] Euclidean norm of all parameters, on the device. Not finite where one of them is not."""
    return get_total_norm([p.detach() for p in model.parameters()])
