"""Time the whole training step, stage by stage: DAFormer, and DIDA with banks of several sizes.

    python bench/step.py                                              MiT-B5, 2 + 2 crops of 512 x 512, on a GPU
    python bench/step.py --device cpu --backbone mit_b0 --crop 64 --steps 10 --slots 20

Pictures of the toy, enlarged to the paper's scale, come through the loader that training uses. Methods take turns on
one student, teacher and optimizer, a block of steps each, so that whatever the clocks of the GPU do meets all of them
alike; each has its bank and its count of steps. The networks have random weights, which cost what trained ones cost;
the feature distance, which a run without ImageNet weights does without, is part of the step, as in the paper's.

    data           waiting for the batch, copying and normalising it
    source         forward and backward on the source, feature distance included
    teacher        weak view and forward of the teacher
    regeneration   z-hat and q-hat, the bank's word included (Sec. III-D), and the pseudo-labels
    mixed          ClassMix and strong view; forward and backward of the student, the loss's backward included
    instance loss  its forward, in which the kernels also make its gradient
    optimizer, EMA, bank

Nothing is added to the step itself: a stage ends where the next one's callable is called, and on a GPU an end is an
event in the stream, for which nobody waits. Precisions are those of train.py. Milliseconds are means over whole
intervals between updates of the bank.
"""

import argparse
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # python bench/step.py
    from by_path import start_again

    start_again(__file__)

import torch
from torch import nn

from bench import record
from bench.arguments import output_file, whole_number
from bench.meter import TensorMeter
from dida import recipes
from dida.assemble import build_method, build_pairs, build_state, build_student, choose_arithmetic
from dida.batch import Batch
from dida.config import Config, changed
from dida.data.classes import ClassSet
from dida.data.loader import batches
from dida.data.pairs import Pairs
from dida.data.toy import Counts, generate
from dida.method.passes import Method
from dida.precision import PRECISIONS, Arithmetic, Precision, products_in
from dida.state import TrainState
from dida.step import train_step

STAGES = ("data", "source", "teacher", "regeneration", "mixed", "instance loss", "optimizer", "EMA", "bank")
SCALE = "1024x512"  # of both domains' pictures, as the paper's target
TOY = Counts(source=32, source_val=1, target=32, val=1, test=1)
WARMUP = 5  # steps of every method before the first that counts
TURNS = 5  # in which the methods take turns


class Clock:
    """Milliseconds between marks. `mark(stage)` ends what runs and begins `stage`; `mark(None)` ends a step."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str | None, Any]] = []

    def mark(self, stage: str | None) -> None:
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((stage, now))

    def read(self) -> list[dict[str, float]]:
        """Milliseconds by stage of every step since the last reading. The GPU must have finished them."""
        marks, self._marks = self._marks, []
        steps = [dict.fromkeys(STAGES, 0.0)]
        for (stage, begin), (_, end) in pairwise(marks):
            if stage is None:
                steps.append(dict.fromkeys(STAGES, 0.0))
            else:
                steps[-1][stage] += begin.elapsed_time(end) if self._on_gpu else 1e3 * (end - begin)
        return steps


def watched(method: Method, clock: Clock) -> Method:
    """The same method, whose callables tell the clock when they are called."""

    def begins(stage: str, function: Callable[..., Any], after: str | None = None) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            clock.mark(stage)
            result = function(*args, **options)
            if after is not None:
                clock.mark(after)
            return result

        return call

    believe = dataclasses.replace(
        method.believe,
        weak_view=begins("teacher", method.believe.weak_view),
        regenerate=begins("regeneration", method.believe.regenerate),
    )
    passes = (
        dataclasses.replace(
            one,
            mixed_view=begins("mixed", one.mixed_view),
            instance_loss=begins("instance loss", one.instance_loss, after="mixed"),
        )
        for one in method.target_passes
    )
    return dataclasses.replace(
        method,
        believe=believe,
        target_passes=tuple(passes),
        update_teacher=begins("EMA", method.update_teacher),
        update_bank=begins("bank", method.update_bank),
    )


class Contender(NamedTuple):
    """One method in the comparison."""

    name: str
    slots: int  # K; 0: it has no bank
    config: Config
    state: TrainState
    method: Method
    class_set: ClassSet
    imagenet: nn.Module  # encoder of the feature distance, in float32

    def arithmetic(self) -> Arithmetic:
        return choose_arithmetic(self.config, next(self.imagenet.parameters()).device)


def bank_every(steps: int) -> int:
    """Steps between updates of the bank: the paper's, or fewer, so that `steps` hold a whole number of them."""
    return math.gcd(steps, Config().instance.bank_every)


def config_of(backbone: str, crop: int, steps: int, data_root: Path = Path("data")) -> Config:
    """The paper's options for pictures of the toy, the bank in use from the first step on."""
    return changed(
        Config(), src="toy-gta5", tgt="toy-cityscapes", src_size=SCALE, tgt_size=SCALE, data_root=data_root,
        rare_class_sampling=False, crop=crop, backbone=backbone, weights="none", bank_init="random",
        bank_every=bank_every(steps),
    )  # fmt: skip


def build_contenders(
    config: Config, slots: Sequence[int], class_set: ClassSet, pixels_C: torch.Tensor, device: torch.device
) -> list[Contender]:
    """DAFormer, then DIDA for every K; networks and optimizer are shared, each has its bank and its count of steps."""
    torch.manual_seed(config.run.seed)
    shared = build_state(config, class_set, pixels_C, device)
    imagenet = build_student(config, class_set).encoder().to(device)  # with random weights, which cost the same
    contenders = []
    for name, size in (("daformer", 0), *(("dida", k) for k in slots)):
        of_its_own = changed(recipes.METHODS[name](config), bank_size=size or config.instance.bank_size)
        bank = build_state(of_its_own, class_set, pixels_C, device, student=shared.student).bank
        state = dataclasses.replace(shared, bank=bank, step=config.instance.bank_start)
        method = build_method(of_its_own, class_set, imagenet=imagenet)
        contenders.append(Contender(name, size, of_its_own, state, method, class_set, imagenet))
    return contenders


def computing(contenders: Sequence[Contender], **speed: Any) -> list[Contender]:
    """The same with other options of train.py, --precision and its like, on the networks that they share."""
    changed_ones = [one._replace(config=changed(one.config, **speed)) for one in contenders]
    state = contenders[0].state
    working = changed_ones[0].arithmetic().working(state.student, state.teacher)
    imagenet = contenders[0].imagenet
    methods = [build_method(one.config, one.class_set, imagenet=imagenet) for one in changed_ones]
    return [
        one._replace(
            state=dataclasses.replace(one.state, working=working),
            method=dataclasses.replace(method, source_pass=methods[0].source_pass),  # one frozen encoder
        )
        for one, method in zip(changed_ones, methods, strict=True)
    ]


class Stretch(NamedTuple):
    """Some steps of one method in a row."""

    steps: list[dict[str, float]]  # milliseconds by stage
    seconds: float  # of all of them, by a clock that knows no stages


def take_steps(contender: Contender, stream: Iterator[tuple[Batch, Any]], steps: int, device: torch.device) -> Stretch:
    clock, state = Clock(device), contender.state
    method = watched(contender.method, clock)
    hook = state.optimizer.register_step_pre_hook(lambda *_: clock.mark("optimizer"))
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        clock.mark("data")
        batch, _ = next(stream)
        clock.mark("source")
        with products_in(contender.arithmetic().precision):
            train_step(state, batch, method)
        clock.mark(None)
    _wait(device)
    seconds = time.perf_counter() - start
    hook.remove()
    return Stretch(clock.read(), seconds)


def peak_of_step(contender: Contender, batch: Batch, device: torch.device) -> int:
    """Bytes of a step at its peak, all that stays included: of PyTorch's allocator on a GPU, counted on a CPU."""
    state = contender.state
    with products_in(contender.arithmetic().precision):
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            train_step(state, batch, contender.method)
            return torch.cuda.max_memory_allocated()
        with TensorMeter() as meter, torch.compiler.set_stance("force_eager"):  # which cannot be watched compiled
            modules = (state.student, state.teacher, state.bank, state.working.student, state.working.teacher)
            meter.know([list(module.state_dict().values()) for module in modules])
            meter.know(list(contender.method.source_pass.feature_distance.encoder.state_dict().values()))
            meter.know([list(moments.values()) for moments in state.optimizer.state.values()])
            meter.know(batch)
            train_step(state, batch, contender.method)
    return meter.peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- the comparison ------------------------------------------------------------------------------------------------


def survey_steps(
    contenders: list[Contender], pairs: Pairs, precisions: Sequence[Precision], steps: int, workers: int,
    device: torch.device,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per precision and method. The first contender is what the others are compared with."""
    batch_size = Config().data.batch_size
    block = -(-steps // TURNS)
    sizes = [min(block, steps - done) for done in range(0, steps, block)]
    needed = len(precisions) * len(contenders) * (WARMUP + steps + 1)
    stream = batches(pairs, batch_size=batch_size, start=0, stop=needed, workers=workers, device=device)
    rows = []
    for precision in precisions:
        contenders = computing(contenders, precision=precision)
        for contender in contenders:
            take_steps(contender, stream, WARMUP, device)
        blocks: list[list[Stretch]] = [[] for _ in contenders]
        for size in sizes:
            for contender, mine in zip(contenders, blocks, strict=True):
                mine.append(take_steps(contender, stream, size, device))
        for contender, mine in zip(contenders, blocks, strict=True):
            peak = peak_of_step(contender, next(stream)[0], device)
            rows.append(step_row(contender, mine, 2 * batch_size, peak))
        add_differences(rows[-len(contenders) :])
    return rows


def step_row(contender: Contender, blocks: list[Stretch], images: int, peak: int) -> dict[str, Any]:
    """`images`: crops in a step, of both domains."""
    steps = [step for block in blocks for step in block.steps]
    whole = [sum(step.values()) for step in steps]
    low, *_, high = statistics.quantiles(whole, n=5)
    seconds = sum(block.seconds for block in blocks) / len(steps)
    return {
        "method": contender.name,
        "K": contender.slots,
        "precision": contender.arithmetic().precision,
        "compiled": contender.config.speed.compile,
        "steps": len(steps),
        "images": images,
        "images_per_second": images / seconds,
        "step_ms": 1e3 * seconds,
        "turn_ms": [1e3 * block.seconds / len(block.steps) for block in blocks],  # of a step, turn by turn
        "low": low,  # the 20th and 80th percentile of single steps
        "high": high,
        "stages": {stage: statistics.fmean(step[stage] for step in steps) for stage in STAGES},
        "peak_bytes": peak,
    }


def add_differences(rows: list[dict[str, Any]]) -> None:
    """What each row costs more than the first one: bytes, and per cent of the time, each turn against the first one's
    turn beside it and the median of these, as hosts differ from minute to minute by more than methods do."""
    base = rows[0]
    for row in rows:
        turns = zip(row["turn_ms"], base["turn_ms"], strict=True)
        row["more_time_percent"] = statistics.median(100 * (mine / other - 1) for mine, other in turns)
        row["more_bytes"] = row["peak_bytes"] - base["peak_bytes"]


def step_report(result: dict[str, Any]) -> str:
    """The report in markdown; every number in it comes from `result`."""
    head = ["precision", "method", "K", "images/s", "ms", "20 - 80 %", *STAGES, "peak MB", "more time", "more MB"]
    body = []
    for row in result["rows"]:
        cells = [row["precision"], row["method"], row["K"] or "-", f"{row['images_per_second']:.2f}"]
        cells += [f"{row['step_ms']:.1f}", f"{row['low']:.1f} - {row['high']:.1f}"]
        cells += [f"{row['stages'][stage]:.1f}" for stage in STAGES]
        cells += [f"{row['peak_bytes'] / 1e6:,.0f}", f"{row['more_time_percent']:+.1f} %"]
        body.append([*cells, f"{row['more_bytes'] / 1e6:+,.0f}"])
    setting = ", ".join(f"{name} {value}" for name, value in result["setting"].items())
    parts = ["# The training step", f"{setting}. Milliseconds of a step by stage: see bench/step.py."]
    return "\n\n".join([*parts, record.render_header(result["header"]), record.table(head, body)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backbone", default="mit_b5")
    parser.add_argument("--crop", type=whole_number(32), default=512)
    parser.add_argument("--slots", type=whole_number(1), nargs="+", default=[300, 3000], help="sizes K of DIDA's bank")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32", "bf16"])
    parser.add_argument(
        "--steps", type=whole_number(1), default=Config().instance.bank_every, help="steps of each that count"
    )
    parser.add_argument("--workers", type=whole_number(0), default=Config().data.workers)
    parser.add_argument("--json", type=output_file)
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as data_root:
        generate(Path(data_root), counts=TOY)
        config = config_of(options.backbone, options.crop, options.steps, Path(data_root))
        pairs, pixels_C = build_pairs(config)
        contenders = build_contenders(config, options.slots, pairs.source.class_set, pixels_C, device)
        rows = survey_steps(contenders, pairs, options.precision, options.steps, options.workers, device)
    result = {
        "header": record.header(options.device),
        "setting": {
            "backbone": options.backbone,
            "crop": options.crop,
            "batch": Config().data.batch_size,
            "bank updated every": bank_every(options.steps),
        },
        "rows": rows,
    }
    path = options.json or record.RESULTS_FOLDER / record.machine_name(options.device) / "step.json"
    record.write(path, result)
    record.write(path.with_suffix(".md"), step_report(result))
    print(step_report(result))


if __name__ == "__main__":
    main()
