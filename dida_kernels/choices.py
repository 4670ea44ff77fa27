"""Which backend every op takes on a device, and why no faster one: what a run logs and `python -m dida.doctor` prints.

Backends choose by their inputs, so there is an example of each op with the kinds and ratios that training has.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from dida_kernels.dispatch import NOT_IMPLEMENTED, OPS, ORDER, asked_for

WIDTH = 24  # of the left column


class Choice(NamedTuple):
    """What runs, and for each faster backend the reason why it does not."""

    backend: str
    passed_over: dict[str, str]


class Example(NamedTuple):
    """`op(*args, **options)`."""

    args: tuple[Any, ...]
    options: dict[str, Any]


def examples(device: torch.device, *, classes: int) -> dict[str, Example]:
    """Inputs of every op on a device, float32 as in training: 2 images of 32x32 pixels, 256 channels, 300 slots."""
    B, D, K, h, H = 2, 256, 300, 8, 32
    label_K = torch.arange(K, device=device) % classes
    bank_KD = torch.ones(K, D, device=device)
    embed_BDhw = torch.ones(B, D, h, h, device=device)
    embed_ND = torch.ones(B * H * H, D, device=device)
    semantic_NC = torch.full((B * H * H, classes), 1 / classes, device=device)
    z_BCHW = semantic_NC.unflatten(0, (B, H, H)).permute(0, 3, 1, 2)
    label_BHW = torch.zeros(B, H, H, dtype=torch.int64, device=device)
    mask_BHW = torch.ones(B, H, H, dtype=torch.bool, device=device)
    weight_BHW = torch.ones(B, H, H, device=device)
    class_count = {"classes": classes}
    temperature = {"temperature": 0.1}
    return {
        "bank_similarity": Example((embed_ND, bank_KD), temperature),
        "instance_loss": Example((embed_BDhw, embed_BDhw, z_BCHW, weight_BHW, bank_KD, label_K), temperature),
        "scatter": Example((semantic_NC, label_K), {}),
        "gather": Example((torch.full((B * H * H, K), 1 / K, device=device), label_K), class_count),
        "class_similarity": Example((embed_BDhw, bank_KD, label_K), class_count | temperature | {"size": (H, H)}),
        "boundary_mask": Example((label_BHW,), class_count),
        "bank_update": Example((bank_KD, label_K, embed_BDhw, label_BHW, mask_BHW), class_count | {"momentum": 0.9}),
    }


def chosen_backends(device: torch.device, *, classes: int) -> dict[str, Choice]:
    """The choice of every op on inputs like those of training with so many classes, here and now.

    Raises RuntimeError inside a `backend` block that an op cannot honour.
    """
    choices = {}
    for name, example in examples(device, classes=classes).items():
        op, (args, options) = OPS[name], example
        backend = op.choose(*args, **options)
        reasons = ((faster, op.why_not(faster, *args, **options)) for faster in ORDER[: ORDER.index(backend)])
        choices[name] = Choice(backend, {faster: why or f"{asked_for()} was asked for" for faster, why in reasons})
    return choices


def choice_lines(device: torch.device, *, classes: int) -> Iterator[str]:
    """`chosen_backends` for people: a line for each op, then one for each reason, as most ops share theirs."""
    choices = chosen_backends(device, classes=classes)
    shared: dict[str, list[str]] = {}
    for name, (backend, passed_over) in choices.items():
        yield f"{name:{WIDTH}} {backend} on {device}"
        for faster, why in passed_over.items():
            if why != NOT_IMPLEMENTED:
                shared.setdefault(f"not {faster} on {device}: {why}", []).append(name)
    for reason, names in shared.items():
        yield reason if len(names) == len(choices) else f"{reason} ({', '.join(names)})"


def report() -> dict[str, dict[str, str]]:
    """For each op and backend "yes", or the reason why it is not there on this machine, whatever the inputs."""
    return {name: {b: op.why_missing(b) or "yes" for b in ORDER} for name, op in sorted(OPS.items())}
