"""How much memory the instance branch takes as the bank grows, and at which K a 24 GB card is full.

    python bench/bank_memory.py [--device cpu|cuda] [--json FILE] [--plot FILE]

The branch is class_similarity of the teacher and instance_loss of the student with its gradient, for two crops of
512 x 512. Three ways to compute it:

    paper    Eq. (4) - (9) as they stand, at every pixel: [N, K] tensors, N = 524 288
    stride4  the same equations at the nodes of the feature grid only, M = N / 16, with z averaged down to it:
             what one does to get by without kernels. It is another loss, of other pixels
    ours     the kernels, at every pixel

With a GPU the peak is what PyTorch's allocator reports. Without one it is counted: host code runs on tensors that have
shapes and lifetimes but no memory. The rest of a training step (MiT-B5 student, teacher, ImageNet encoder, AdamW) is
always counted so, once, by running the step with the branch taken out. Not counted: the CUDA context and the workspaces
of cuBLAS and cuDNN, about 0.5 GB.
"""

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # python bench/bank_memory.py
    from by_path import start_again

    start_again(__file__)

import torch
import torch.nn.functional as F
from torch import Tensor

import dida_kernels
from bench import record
from bench.arguments import output_file
from bench.compiled import launches
from bench.counted_step import build_step, count_second_step, without_branch
from bench.meter import CUDA_BLOCK, TensorMeter
from bench.step_counts import as_on_a_gpu
from tests import cases
from tests.cases import MAIN, Scene, resized

BANK_SIZES = (50, 100, 200, 300, 500, 1000, 3000, 10_000, 30_000, 100_000)
CARD = 24 << 30  # bytes of an RTX 3090 or 4090
FORMS = ("paper", "stride4", "ours")
CAPABILITY = 86  # of the fake GPU: that card's
MIB = 1 << 20


class Branch(NamedTuple):
    """The two calls of a step; what they need on top of their inputs, bytes at the peak."""

    gather: int | None
    loss: int | None

    @property
    def peak(self) -> int | None:
        return None if None in self else max(self.gather, self.loss)


class Rest(NamedTuple):
    """The rest of a training step: bytes alive where the branch's two calls stand, and its own peak."""

    at_gather: int
    at_loss: int
    peak: int


class Inputs(NamedTuple):
    student_BDhw: Tensor
    teacher_BDhw: Tensor
    z_BCHW: Tensor
    weight_BHW: Tensor
    bank_KD: Tensor
    label_K: Tensor


# ---- the branch ----------------------------------------------------------------------------------------------------


def teacher_phase(form: str, x: Inputs, temperature: float) -> Tensor:
    """class_similarity."""
    size = x.z_BCHW.shape[2:] if form != "stride4" else x.teacher_BDhw.shape[2:]
    op = dida_kernels.class_similarity if form == "ours" else dida_kernels.class_similarity.reference
    arguments = (x.teacher_BDhw, x.bank_KD, x.label_K)
    return op(*arguments, classes=x.z_BCHW.shape[1], temperature=temperature, size=tuple(size))


def student_phase(form: str, x: Inputs, temperature: float) -> Tensor:
    """instance_loss, still without its backward."""
    z, weight = x.z_BCHW, x.weight_BHW
    if form == "stride4":
        z = F.adaptive_avg_pool2d(z, x.student_BDhw.shape[2:])
        weight = (F.adaptive_avg_pool2d(weight, x.student_BDhw.shape[2:]) == 1).to(weight.dtype)
    op = dida_kernels.instance_loss if form == "ours" else dida_kernels.instance_loss.reference
    return op(x.student_BDhw, x.teacher_BDhw, z, weight, x.bank_KD, x.label_K, temperature=temperature)


def count_branch(form: str, scene: Scene, dtype: torch.dtype = torch.float32) -> Branch:
    """Without a GPU: both phases on tensors without memory.

    Kernels need a fake GPU to be chosen. Equations run on the meta device, where PyTorch's own backward engine runs.
    """
    if form == "ours":
        with launches.recording(CAPABILITY) as taken:
            x = make_inputs(scene, dtype, "cuda")
            return count_phases(form, x, scene.temperature, taken.meter, launches.backward)
    with launches.recording(CAPABILITY):
        shapes = make_inputs(scene, dtype, "cuda")
    x = Inputs(*(torch.empty(t.shape, dtype=t.dtype, device="meta") for t in shapes))
    with TensorMeter(block=CUDA_BLOCK) as meter:
        x.student_BDhw.requires_grad_()
        return count_phases(form, x, scene.temperature, meter, Tensor.backward)


def count_phases(
    form: str, x: Inputs, temperature: float, meter: TensorMeter, backward: Callable[[Tensor], Any]
) -> Branch:
    meter.know(x)
    with meter.extra() as of_gather, torch.no_grad():
        teacher_phase(form, x, temperature)
    with meter.extra() as of_loss:
        gradient = backward(student_phase(form, x, temperature))
    del gradient
    return Branch(of_gather(), of_loss())


def measure_branch(form: str, scene: Scene, dtype: torch.dtype = torch.float32) -> Branch:
    """On a GPU: what the allocator reports. None where it ran out of memory."""
    x = make_inputs(scene, dtype, "cuda")

    def peak(run: Callable[[], Any]) -> int | None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            run()
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated() - before

    with torch.no_grad():
        of_gather = peak(lambda: teacher_phase(form, x, scene.temperature))
    return Branch(of_gather, peak(lambda: student_phase(form, x, scene.temperature).backward()))


def make_inputs(scene: Scene, dtype: torch.dtype, device: str) -> Inputs:
    x = Inputs(*cases.call("instance_loss", scene, dtype=dtype, device=device).args)
    x.student_BDhw.requires_grad_()
    return x


# ---- the rest of the step ------------------------------------------------------------------------------------------


def count_rest(scene: Scene, backbone: str = "mit_b5") -> Rest:
    """The project's own training step on meta tensors, its branch replaced by two readings of the meter."""
    state, method = build_step(scene, backbone)
    meter, alive = TensorMeter(block=CUDA_BLOCK), {}
    method = without_branch(method, lambda where: alive.update({where: meter.live}))
    with as_on_a_gpu(meter):
        count_second_step(state, method, scene, meter)
    return Rest(alive["gather"], alive["loss"], meter.peak)


# ---- the answer ----------------------------------------------------------------------------------------------------


def bank_bytes(scene: Scene) -> int:
    """Features in float32 and int64 labels."""
    return scene.K * (4 * scene.D + 8)


def step_peak(rest: Rest, branch: Branch, bank: int) -> int | None:
    """The branch's calls stand at two places of the step; the peak is the highest of three."""
    if branch.peak is None:
        return None
    return bank + max(rest.peak, rest.at_gather + branch.gather, rest.at_loss + branch.loss)


def crossing(slots: list[int], peaks: list[int | None], limit: int) -> float | None:
    """The K at which the peak reaches `limit`, between the two counted K around it; None if it never does."""
    known = [(k, peak) for k, peak in zip(slots, peaks, strict=True) if peak is not None]
    if known[0][1] >= limit:
        return known[0][0]
    for (k0, peak0), (k1, peak1) in pairwise(known):
        if peak1 >= limit:
            return k0 + (limit - peak0) / (peak1 - peak0) * (k1 - k0)
    return None


def slope(slots: list[int], peaks: list[int | None]) -> float:
    """Bytes per slot, between the last two K that are known."""
    (k0, peak0), (k1, peak1) = [(k, p) for k, p in zip(slots, peaks, strict=True) if p is not None][-2:]
    return (peak1 - peak0) / (k1 - k0)


def survey_memory(device: str, slots: tuple[int, ...] = BANK_SIZES, scene: Scene = MAIN) -> dict[str, Any]:
    """Everything that the table and the plot show."""
    branch_of = measure_branch if device == "cuda" else count_branch
    rest = count_rest(scene)
    rows = []
    for slots_K in slots:
        at = resized(scene, K=slots_K)
        for form in FORMS:
            branch = branch_of(form, at)
            peak = step_peak(rest, branch, bank_bytes(at))
            rows.append({"K": slots_K, "form": form, **branch._asdict(), "branch": branch.peak, "step": peak})
    return {"card": CARD, "rest": rest._asdict(), "rows": rows, "forms": by_form(rows)}


def by_form(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Per form: the K at which the card is full, by the branch alone and by the whole step, and bytes per slot."""
    result = {}
    for form in FORMS:
        mine = [row for row in rows if row["form"] == form]
        slots = [row["K"] for row in mine]
        result[form] = {
            "step_full_at_K": crossing(slots, [row["step"] for row in mine], CARD),
            "branch_full_at_K": crossing(slots, [row["branch"] for row in mine], CARD),
            "bytes_per_slot": slope(slots, [row["branch"] for row in mine]),
        }
    return result


def count_loss(scene: Scene = MAIN) -> dict[str, dict[str, int]]:
    """instance_loss forward and backward: bytes moved at the benches' size, and peaks there and with the largest bank.

    The equations in float32, and ours for each dtype of the embeddings.
    """
    with launches.recording(CAPABILITY):
        shapes = make_inputs(scene, torch.float32, "cuda")
    x = Inputs(*(torch.empty(t.shape, dtype=t.dtype, device="meta") for t in shapes))
    x.student_BDhw.requires_grad_()
    with TensorMeter() as meter:
        student_phase("paper", x, scene.temperature).backward()
    moved = {("paper", torch.float32): meter.moved}
    for dtype in (torch.float32, torch.bfloat16):
        moved["ours", dtype] = launches.record_call("instance_loss", scene, dtype, CAPABILITY).moved
    return {
        f"{form} {str(dtype).removeprefix('torch.')}": {
            "moved": moved[form, dtype],
            "peak": count_branch(form, scene, dtype).loss,
            "peak_at_largest_K": count_branch(form, resized(scene, K=BANK_SIZES[-1]), dtype).loss,
        }
        for form, dtype in moved
    }


def memory_report(result: dict[str, Any]) -> str:
    """The report in markdown; every number in it comes from `result`."""
    rows = result["rows"]
    by_K: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_K.setdefault(row["K"], {})[row["form"]] = row
    head = ["K", *(f"{form} branch, MiB" for form in FORMS), *(f"{form} step, MiB" for form in FORMS)]
    body = [
        [f"{k:,}", *(_mib(of[form]["branch"]) for form in FORMS), *(_mib(of[form]["step"]) for form in FORMS)]
        for k, of in by_K.items()
    ]
    ends = [
        [form, _slots(of["step_full_at_K"]), _slots(of["branch_full_at_K"]), f"{of['bytes_per_slot'] / MIB:.4f}"]
        for form, of in result["forms"].items()
    ]
    rest, last = result["rest"], rows[-1]["K"]
    how = "measured by the CUDA allocator" if result["header"]["device"] == "cuda" else "counted, nothing ran"
    return "\n\n".join(
        [
            "# Memory of the instance branch",
            f"Peak on top of its inputs, two crops of 512 x 512, float32; {how}. Forms: see bench/bank_memory.py.",
            record.render_header(result["header"]),
            record.table(head, body),
            f"The rest of the step holds {_mib(rest['at_gather'])} MiB where the teacher phase stands and "
            f"{_mib(rest['at_loss'])} MiB where the loss stands. Without the branch it peaks at {_mib(rest['peak'])}.",
            f"A card of {_mib(result['card'])} MiB is full at (up to K = {last:,}):",
            record.table(["form", "whole step, K", "branch alone, K", "MiB per slot"], ends),
            "instance_loss alone, forward and backward, by the dtype of the embeddings (counted):",
            record.table(
                [
                    "form",
                    f"moved at K = {MAIN.K}, GB",
                    f"peak at K = {MAIN.K}, MB",
                    f"peak at K = {BANK_SIZES[-1]:,}, MB",
                ],
                [
                    [
                        name,
                        f"{of['moved'] / 1e9:.2f}",
                        *(f"{of[at] / 1e6:,.0f}" for at in ("peak", "peak_at_largest_K")),
                    ]
                    for name, of in result["loss"].items()
                ],
            ),
        ]
    )


def plot_memory(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for form, colour in zip(FORMS, ("tab:red", "tab:orange", "tab:blue"), strict=True):
        mine = [row for row in result["rows"] if row["form"] == form and row["step"] is not None]
        axes.plot([r["K"] for r in mine], [r["step"] / 2**30 for r in mine], "o-", color=colour, label=form)
    axes.axhline(result["card"] / 2**30, color="black", linewidth=1)
    axes.annotate("24 GiB card", (BANK_SIZES[0], result["card"] / 2**30 * 1.08))
    axes.axhline(result["rest"]["peak"] / 2**30, color="grey", linewidth=1, linestyle="--")
    axes.annotate(
        "step without the instance branch", (BANK_SIZES[0], result["rest"]["peak"] / 2**30 * 0.82), color="grey"
    )
    axes.set(xscale="log", yscale="log", xlabel="slots K of the bank", ylabel="peak memory of a training step, GiB")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _mib(found: int | None) -> str:
    return "does not fit" if found is None else f"{found / MIB:,.0f}"


def _slots(found: float | None) -> str:
    return "never" if found is None else f"{found:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=output_file)
    parser.add_argument("--plot", type=output_file)
    options = parser.parse_args()
    kind = "cuda" if options.device == "cuda" else "counted"
    folder = record.RESULTS_FOLDER / record.machine_name(kind)
    result = {"header": record.header(kind), **survey_memory(options.device), "loss": count_loss()}
    record.write(options.json or folder / "bank_memory.json", result)
    record.write(folder / "bank_memory.md", memory_report(result) + "\n")
    plot_memory(result, options.plot or folder / "bank_memory.png")
    print(memory_report(result))


if __name__ == "__main__":
    main()
