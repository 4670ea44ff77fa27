"""What train.py and eval.py do once their options are read. What a user can put right ends in one message."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dida import loop
from dida.assemble import assemble
from dida.config import Config
from dida.data import domains
from dida.data.check import check_labelled, check_unlabelled
from dida.data.image_file import ImageFileError
from dida.data.sources import source_surveys
from dida.device import find_device
from dida.eval_config import EvalConfig
from dida.evaluate import Inference
from dida.files import write_json
from dida.labelling import label_pictures
from dida.meter import NonFiniteLoss
from dida.options import parse_size
from dida.scoring import score_domain, score_table
from dida.trained import Trained, load_trained


def run_training(config: Config) -> None:
    """Train a run, or go on with one."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with told_in_one_line("train.py", OSError, ValueError):  # data, weights or options that do not fit
        parts = assemble(config)
    with told_in_one_line("train.py", FileExistsError, ImageFileError, NonFiniteLoss):
        loop.train(config, parts)


def run_check(config: Config) -> None:
    """Read every file that training would read and print what is wrong; exit status 1 if something is."""
    root = config.data.data_root
    with told_in_one_line("train.py", OSError, ValueError):
        reports = [
            *(check_labelled(survey) for survey in source_surveys(config.data.src, root, "train")),
            check_unlabelled(domains.unlabelled(config.data.tgt, root, "train")),
        ]
    print("\n".join(str(report) for report in reports))
    sys.exit(0 if all(report.ok for report in reports) else 1)


def run_evaluation(config: EvalConfig) -> None:
    """Score, or label pictures, and print what came out."""
    with told_in_one_line("eval.py", FileNotFoundError, ValueError):
        inference = Inference(config.window, config.stride or max(config.window // 2, 1), config.flip)
        trained = load_trained(config.run, find_device(config.device))
        size = parse_size(config.size or trained.config.data.tgt_size, option="--size")
        if config.images is not None:
            _label(config, trained, size, inference)
        else:
            _score(config, trained, size, inference)


def _score(config: EvalConfig, trained: Trained, size: tuple[int, int], inference: Inference) -> None:
    data = trained.config.data
    report = score_domain(
        trained,
        domains.labelled(config.tgt or data.tgt, config.data_root or data.data_root, config.split),
        size=size,
        inference=inference,
        workers=data.workers if config.workers is None else config.workers,
        save_to=config.save_predictions,
        network=config.network,
    )
    print("\n".join(score_table(report)))
    if config.json is not None:
        write_json(config.json, report)
        print(f"numbers: {config.json}")
    if config.save_predictions is not None:
        print(f"label maps of the {config.network}: {config.save_predictions}")


def _label(config: EvalConfig, trained: Trained, size: tuple[int, int], inference: Inference) -> None:
    out = config.out or (config.run if config.run.is_dir() else config.run.parent) / "images"
    count = label_pictures(trained, config.images, out, network=config.network, size=size, inference=inference)
    print(f"{count} pictures labelled by the {config.network} of step {trained.step}: {out / 'overlay'}")


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
