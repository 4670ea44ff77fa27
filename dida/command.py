"""What train.py and eval.py do once their options are read. What a user can put right ends in one message."""

import contextlib
import importlib.util
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from dida import loop
from dida.assemble import assemble, join
from dida.config import Config
from dida.data import domains
from dida.data.check import check_labelled, check_unlabelled
from dida.data.image_file import ImageFileError
from dida.data.pictures import find_pictures
from dida.data.sources import source_surveys
from dida.data.toy import generate
from dida.errors import UserError
from dida.machine.device import find_device
from dida.machine.distributed import World, joined, processes
from dida.machine.files import require_writable, write_json
from dida.machine.progress import Progress
from dida.options import parse_size
from dida.options.evaluation import EvalConfig, LookConfig
from dida.options.export import ENDINGS, ExportConfig
from dida.options.program import program_name
from dida.options.report import ReportConfig
from dida.options.toy import ToyOptions
from dida.report.gather import gather_story
from dida.report.write import gain_lines, write_report
from dida.run.folder import require_place
from dida.use.evaluate import Inference
from dida.use.export import (
    Deployed,
    Run,
    compare,
    drawn_pictures,
    own_pictures,
    run_onnx,
    run_torch,
    write_onnx,
    write_torch,
)
from dida.use.labelling import label_pictures
from dida.use.network import Network, load
from dida.use.scoring import score_domain, score_table
from dida.use.trained import Trained, load_trained

# What a user can put right, anywhere: files, disks, devices, and what is raised for users. While options, data and
# weights are read, a ValueError is about those too; in a step it is about the program, and keeps its traceback.
USER_ERRORS = (UserError, ImageFileError, OSError)
USER_ERRORS_OF_READING = (*USER_ERRORS, ValueError)
_LOOK_AT_LESS = "lower --size, or look through a --window"


def say_what_is_logged() -> None:
    """Print what is logged, each message once: the hub's library prints its own, and passes it on as well."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("huggingface_hub").propagate = False


def run_training(config: Config) -> None:
    """Train a run, or go on with one."""
    say_what_is_logged()
    less = "lower --crop or --batch-size, or take a smaller --backbone"
    reading = told_in_one_line(program_name("train"), *USER_ERRORS_OF_READING, debug=config.debug, less=less)
    running = told_in_one_line(program_name("train"), *USER_ERRORS, debug=config.debug, less=less)
    with contextlib.ExitStack() as stack:
        with reading:
            world = stack.enter_context(joined())
            with world.first_before_others():
                if world.leads:  # who writes
                    require_place(config)
                parts = assemble(config, world)
            parts = join(parts)
        with running:
            loop.train(config, parts)


def run_toy(config: ToyOptions) -> None:
    """Draw what is not there of the toy, and say what was drawn."""
    with told_in_one_line(program_name("toy"), *USER_ERRORS_OF_READING):
        for weather in config.weather:
            start = time.perf_counter()
            outcome = generate(config.data_root, weather=weather, jobs=config.jobs)
            seconds = time.perf_counter() - start
            if outcome.written:
                print(f"wrote {outcome.written} of {outcome.pictures} pictures in {seconds:.0f} s: {outcome.folder}")
            else:
                print(f"all {outcome.pictures} pictures are there and right, nothing to do: {outcome.folder}")
            print(f"pixels verified, sha256 {outcome.digest}")


def run_check(config: Config, program: str) -> None:
    """Read every file that training would read and print what is wrong; exit status 1 if something is."""
    say_what_is_logged()
    root = config.data.data_root
    with told_in_one_line(program, *USER_ERRORS_OF_READING, debug=config.debug):
        reports = [
            *(check_labelled(survey) for survey in source_surveys(config.data.src, root, "train")),
            check_unlabelled(domains.unlabelled(config.data.tgt, root, "train")),
        ]
    print("\n".join(str(report) for report in reports))
    sys.exit(0 if all(report.ok for report in reports) else 1)


def run_evaluation(config: EvalConfig) -> None:
    """Score and print what came out, or label pictures as `run_labelling`."""
    program = program_name("eval")
    if config.images is not None:
        run_labelling(config, [config.images], program)
        return
    with told_in_one_line(program, *USER_ERRORS_OF_READING, debug=config.debug, less=_LOOK_AT_LESS), joined() as world:
        with world.first_before_others():
            if world.leads:  # who writes
                if config.json is not None:
                    require_writable(config.json, option="--json")
                if config.save_predictions is not None:
                    require_writable(config.save_predictions, option="--save-predictions", folder=True)
            trained = load_trained(config.run, find_device(config.device))
        if config.save_predictions is not None:
            trained.require(config.network)
        _score(config, trained, *_look(config, trained), world)


def _look(config: LookConfig, trained: Trained) -> tuple[tuple[int, int], Inference]:
    """The size that pictures are scaled into, and how they are looked at."""
    size = parse_size(config.size or trained.config.data.tgt_size, option="--size")
    return size, trained.asked(config.window, config.stride, flip=config.flip)


def _home(run: Path) -> Path:
    """Where results go that are told no place: the run folder, the folder of a file; here, for what is on the hub."""
    if not run.exists():
        return Path()
    return run if run.is_dir() else run.parent


def _score(config: EvalConfig, trained: Trained, size: tuple[int, int], inference: Inference, world: World) -> None:
    data = trained.config.data
    report = score_domain(
        trained,
        domains.labelled(
            data.tgt if config.tgt is None else config.tgt, config.data_root or data.data_root, config.split
        ),
        size=size,
        inference=inference,
        workers=data.workers if config.workers is None else config.workers,
        save_to=config.save_predictions,
        network=config.network,
        world=world,
        alone=config.alone,
    )
    if config.json is not None and world.leads:
        write_json(config.json, report)  # before anything is printed, which may fail
    print("\n".join(score_table(report)))
    if config.json is not None and world.leads:
        print(f"numbers: {config.json}")
    if config.save_predictions is not None:
        print(f"label maps of the {config.network}: {config.save_predictions}")


def run_labelling(config: LookConfig, pictures: Sequence[Path], program: str) -> None:
    """Label pictures and say how many; exit status 1 if one could not be read."""
    with told_in_one_line(program, *USER_ERRORS_OF_READING, debug=config.debug, less=_LOOK_AT_LESS):
        if (count := processes()) > 1:
            raise ValueError(f"pictures are labelled by one process, not by {count}: start it without torchrun")
        out = config.out or _home(config.run) / "images"
        if config.run.exists():
            require_writable(out, option="--out", folder=True)
        trained = load_trained(config.run, find_device(config.device))
        trained.require(config.network)
        size, inference = _look(config, trained)
        summary = label_pictures(
            trained,
            pictures,
            out,
            network=config.network,
            size=size,
            inference=inference,
            batch_size=config.batch_size,
            workers=trained.config.data.workers if config.workers is None else config.workers,
            confidence=config.confidence,
        )
    print(f"{summary} by the {config.network} of step {trained.step}: {out / 'overlay'}", flush=True)
    if summary.failed:
        sys.exit("\n  ".join([f"{program}: {len(summary.failed)} could not be read:", *summary.failed]))


def run_export(config: ExportConfig) -> None:
    """Write a network in another form, hold it to the network on some pictures, and say how it did."""
    with told_in_one_line(program_name("export"), *USER_ERRORS_OF_READING, debug=config.debug):
        _require_writer(config.format)
        if config.out is not None:
            require_writable(config.out, option="--out", folder=config.format == "safetensors")
        trained = load_trained(config.run, torch.device("cpu"))
        size = parse_size(trained.config.data.tgt_size, option="--tgt-size")
        name = "shared" if config.format == "safetensors" else f"network{ENDINGS[config.format]}"
        out = config.out or _home(config.run) / name
        if config.images is None:
            pictures, checks = drawn_pictures(config.checks, size), config.checks
        else:
            paths = find_pictures(config.images).pictures[: config.checks]
            if not paths:
                raise UserError(f"--images {config.images}: there is no picture to check on, only videos")
            pictures, checks = own_pictures(paths, size, enlarge=trained.config.data.enlarge), len(paths)
        program = Deployed(trained.require(config.network), normalise=config.normalise, argmax=config.argmax)
        written = _written(config, trained, size, program, out)
        print(f"{out} is written; checking it on {checks} pictures (--checks)", file=sys.stderr, flush=True)
        with Progress(checks, "checking", "picture") as progress:
            agreement = compare(written, program, pictures, progress.advance)
        if agreement.wrong:
            raise UserError(f"{out}: is not the network: {agreement}. Do not use it, and please report it")
    of = trained.path.name if trained.family else f"step {trained.step}"
    print(f"{out}: the {config.network} of {of}, as {config.format}")
    print(f"checked against the network on {agreement}")
    if config.format != "safetensors":
        print(program.said())


def _written(config: ExportConfig, trained: Trained, size: tuple[int, int], program: Deployed, out: Path) -> Run:
    """Write the file or the folder, and read it again."""
    if config.format == "onnx":
        write_onnx(program, out, trained)
        return run_onnx(out)
    if config.format == "torch":
        write_torch(program, out)
        return run_torch(out)
    network = Network(trained, config.network, size=size, inference=trained.inference)
    network.save_pretrained(out)
    again = Deployed(load(out, device="cpu").model).eval()
    return lambda pictures: again(torch.from_numpy(pictures)).numpy()


def _require_writer(form: str) -> None:
    needed = ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ()
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--format {form} needs {', '.join(missing)}: not installed, pip install 'dida-segmentation[onnx]' does it"
        )


def run_report(config: ReportConfig) -> None:
    """Look at a domain with every run, and write what is known of them into one file."""
    with told_in_one_line(program_name("report"), *USER_ERRORS_OF_READING, debug=config.debug):
        first = config.runs[0]
        out = config.out or _home(first) / "report.html"
        if config.out is not None or first.exists():
            require_writable(out, option="--out")
        story = gather_story(
            config.runs,
            tgt=config.tgt,
            data_root=config.data_root,
            split=config.split,
            labels=config.labels,
            network=config.network,
            device=find_device(config.device),
            workers=config.workers,
        )
        size = write_report(story, out, pictures=config.pictures)
    print("\n".join([*gain_lines(story), f"report: {out} ({size})"]))


@contextmanager
def told_in_one_line(
    program: str, *errors: type[Exception], debug: bool = False, less: str = "less at a time"
) -> Iterator[None]:
    """End the program with what one of `errors`, or a lack of memory, says and exit status 1.

    Anything else keeps its traceback; `debug` shows that of those too. `less`: what takes less memory.
    """
    may_be_lack_of_memory = (MemoryError, RuntimeError)
    try:
        yield
    except may_be_lack_of_memory + errors as error:
        if not (isinstance(error, errors) or is_out_of_memory(error)):
            raise
        if debug:
            traceback.print_exc()
        sys.exit("\n".join([f"{program}: {reason(error, less)}", *getattr(error, "__notes__", [])]))


def reason(error: Exception, less: str = "less at a time") -> str:
    """What an error says to a user."""
    if isinstance(error, BrokenPipeError):
        return "nobody reads what it prints any more (broken pipe)"
    return f"out of memory; {less}" if is_out_of_memory(error) else str(error).strip()


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was not enough of it, on whatever device: only some of PyTorch's allocators have a class for it."""
    words = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
