"""Twenty steps of every method on made pictures, from the files on disk to the last weight, written down bit for bit.

    python -m tests.golden.curves NAME ...   write these curves anew: only where results are meant to change, and then
                                             in the commit that changes them, whose message says why

A refactor leaves every bit as it was. The bits belong to a processor, a thread and a torch: `machine` says which. On
another one the test compares the first steps' losses instead (see test_golden_curves.py).
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dida import recipes
from dida.assemble import assemble
from dida.data.loader import batches
from dida.data.toy import Counts, generate
from dida.models.segmentor import Segmentor
from dida.step import train_step

FILE = Path(__file__).with_name("curves.json")
STEPS = 20
SMALL = {
    "src": "toy-gta5", "tgt": "toy-cityscapes", "src_size": "512x256", "tgt_size": "128x64", "crop": 64,
    "batch_size": 2, "workers": 0, "device": "cpu", "embed_dim": 32, "steps": STEPS, "lr": 1e-3, "warmup": 4,
    "bank_size": 40, "bank_start": 8, "bank_fill": 4, "bank_every": 3, "threshold": 0.2, "rare_class_pixels": 5,
    "feature_weight": 0.005, "recipe": "paper", "phi": 0.7, "instance_weights": "balanced", "instance_weight": 0.1,
}  # fmt: skip
CURVES: dict[str, dict[str, Any]] = {
    "source": {"method": "source", "source_colour": "plain"},
    "source-distorted": {"method": "source"},
    "oracle": {"method": "oracle", "src": "toy-cityscapes-oracle", "source_colour": "plain"},
    "dacs": {"method": "dacs", "teacher_momentum": 0.99, "ignore_bottom": 64},
    "daformer": {"method": "daformer"},
    "dida": {"method": "dida", "instance_weights": "all", "instance_weight": 1.0},
    "dida-toy": {"method": "dida", "instance_weights": "balanced", "instance_weight": 0.1},
    "dida-prior": {"method": "dida", "instance_prior": "student", "instance_weights": "all", "instance_weight": 0.3},
    "dida-prior-both": {
        "method": "dida", "instance_prior": "both", "instance_weights": "root", "regenerate_instance": "smooth",
    },
    "dida-reversed": {"method": "dida", "regenerate_semantic": "scale", "regenerate_instance": "smooth"},
    "dida-stride4": {"method": "dida", "instance_loss": "stride4", "regenerate_instance": "none"},
    "dida-other-bank": {"method": "dida", "sampling": "ils", "selecting": "km", "clusters": 2, "bank_init": "random"},
    "dida-other-views": {
        "method": "dida", "weak_view": "photometric", "mix_classes": "image", "pseudo_weight": "pixel",
        "confidence": "regenerated", "teacher_norm": "averaged", "selecting": "rs", "boundary_classes": 3,
    },
}  # fmt: skip


def machine() -> dict[str, str]:
    """What the last bit of a float depends on besides the source."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"torch": torch.__version__, "cpu": processor, "instructions": torch.backends.cpu.get_cpu_capability()}


def make_files(folder: Path) -> None:
    """Some pictures of the toy, and start weights of the encoder, so that there is a feature distance."""
    generate(folder, counts=Counts(source=6, source_val=1, target=6, val=1, test=1))
    torch.manual_seed(7)
    torch.save(Segmentor("mit_b0", 19, 32).backbone.state_dict(), folder / "mit_b0.pth")


def curve(name: str, folder: Path) -> dict[str, Any]:
    """Losses of every step as hexadecimal floats, and a hash of each part of the state after the last."""
    options = SMALL | CURVES[name] | {"data_root": folder, "weights": folder / "mit_b0.pth"}
    arguments = [part for option, value in options.items() for part in ("--" + option.replace("_", "-"), str(value))]
    config = recipes.from_command_line(arguments)
    parts = assemble(config)
    state = parts.state
    losses: dict[str, list[str]] = {}
    stream = batches(
        parts.pairs, batch_size=config.data.batch_size, start=0, stop=STEPS, workers=0, device=parts.device
    )
    for batch, _ in stream:
        for term, loss in train_step(state, batch, parts.method).losses.items():
            losses.setdefault(term, []).append(float(loss).hex())
    modules = {"student": state.student, "teacher": state.teacher, "bank": state.bank}
    return {"losses": losses} | {part: hashed(module) for part, module in modules.items()}


def hashed(module: nn.Module) -> str:
    """SHA-256 over the bytes of a module's parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def main(names: list[str]) -> str | None:
    """Write the curves of these names, of one machine with the others. Returns what is wrong."""
    if not names or not set(names) <= set(CURVES):
        return f"name the curves to write: {', '.join(CURVES)}"
    golden = json.loads(FILE.read_text())
    if golden["machine"] != machine() and set(names) != set(CURVES):
        return f"the other curves are of {golden['machine']}, this is {machine()}: write all of them, or none"
    torch.set_num_threads(1)  # more would sum in another order
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder))
        written = {name: curve(name, Path(folder)) for name in names}
    curves = {name: written.get(name, golden["curves"].get(name)) for name in CURVES}
    FILE.write_text(json.dumps({"machine": machine(), "curves": curves}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
