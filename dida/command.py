"""What train.py and eval.py do once their options are read. What a user can put right ends in one message."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dida import loop
from dida.assemble import assemble
from dida.config import Config
from dida.data import domains
from dida.data.check import check_labelled, check_unlabelled
from dida.data.image_file import ImageFileError
from dida.device import find_device
from dida.evaluate import Inference
from dida.files import write_json
from dida.labelling import label_pictures
from dida.meter import NonFiniteLoss
from dida.options import parse_size
from dida.scoring import score_domain, score_table
from dida.trained import Trained, load_trained

if TYPE_CHECKING:  # a script: nothing imports it
    from eval import EvalOptions


def train(config: Config) -> None:
    """Train a run, or go on with one."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with told_in_one_line("train.py", OSError, ValueError):  # data, weights or options that do not fit
        parts = assemble(config)
    with told_in_one_line("train.py", FileExistsError, ImageFileError, NonFiniteLoss):
        loop.train(config, parts)


def check(config: Config) -> None:
    """Read every file that training would read and print what is wrong; exit status 1 if something is."""
    root = config.data.data_root
    with told_in_one_line("train.py", OSError, ValueError):
        reports = [
            check_labelled(domains.survey(config.data.src, root, "train")),
            check_unlabelled(domains.unlabelled(config.data.tgt, root, "train")),
        ]
    print("\n".join(str(report) for report in reports))
    sys.exit(0 if all(report.ok for report in reports) else 1)


def evaluate(options: "EvalOptions") -> None:
    """Score, or label pictures, and print what came out."""
    with told_in_one_line("eval.py", FileNotFoundError, ValueError):
        inference = Inference(options.window, options.stride or max(options.window // 2, 1), options.flip)
        trained = load_trained(options.run, find_device(options.device))
        size = parse_size(options.size or trained.config.data.tgt_size, option="--size")
        if options.images is not None:
            _label(options, trained, size, inference)
        else:
            _score(options, trained, size, inference)


def _score(options: "EvalOptions", trained: Trained, size: tuple[int, int], inference: Inference) -> None:
    data = trained.config.data
    report = score_domain(
        trained,
        domains.labelled(options.tgt or data.tgt, options.data_root or data.data_root, options.split),
        size=size,
        inference=inference,
        workers=data.workers if options.workers is None else options.workers,
        save_to=options.save_predictions,
        network=options.network,
    )
    print("\n".join(score_table(report)))
    if options.json is not None:
        write_json(options.json, report)
        print(f"numbers: {options.json}")
    if options.save_predictions is not None:
        print(f"label maps of the {options.network}: {options.save_predictions}")


def _label(options: "EvalOptions", trained: Trained, size: tuple[int, int], inference: Inference) -> None:
    out = options.out or (options.run if options.run.is_dir() else options.run.parent) / "images"
    count = label_pictures(trained, options.images, out, network=options.network, size=size, inference=inference)
    print(f"{count} pictures labelled by the {options.network} of step {trained.step}: {out / 'overlay'}")


@contextmanager
def told_in_one_line(program: str, *errors: type[Exception]) -> Iterator[None]:
    """End the program with what one of `errors` says and exit status 1; anything else keeps its traceback."""
    try:
        yield
    except errors as error:
        sys.exit(f"{program}: {reason(error)}")


def reason(error: Exception) -> str:
    """What an error says, without the traceback that one out of a loading process carries in its message."""
    message = str(error).strip()
    return message.splitlines()[-1] if "Original Traceback" in message else message
