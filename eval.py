"""Score a trained network on labelled images, or let it label your own pictures.

    python eval.py runs/...                              its newest checkpoint, on the val split of its target
    python eval.py runs/... --json val.json              the same, with every number in a file
    python eval.py runs/... --save-predictions maps      the same, with every predicted label map
    python eval.py runs/... --images holiday --out drawn pictures without labels, as coloured overlays

A run folder holds its own config, so nothing about the network needs repeating here.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dida.config import Config, from_dict, parse_size

if TYPE_CHECKING:  # imported where they are used, so that --help answers at once
    import numpy as np
    from torch import nn

    from dida.evaluate import Evaluation, Look, Scores

NETWORKS = ("student", "teacher")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Options:
    """Score a trained network on labelled images, or let it label your own pictures (--images).

    Student and teacher are both scored, at the labels' own resolution; published numbers are those of the student.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, whose newest checkpoint is taken, or a checkpoint file."""
    tgt: str | None = None
    """Domain to score on; by default the target of the run."""
    data_root: Path | None = None
    """Folder that holds the data sets; by default that of the run."""
    split: Literal["val", "test", "train"] = "val"
    """Part of the domain to score on; its labels are needed."""
    size: str | None = None
    """WxH in pixels that an image is scaled into, its ratio kept; by default --tgt-size of the run."""
    window: int = 0
    """Side of a sliding window in pixels of the scaled image; 0 looks at the whole image at once."""
    stride: int = 0
    """Pixels from one window to the next; 0 is half a window."""
    flip: bool = False
    """Average with what the network says of the mirror image."""
    json: Path | None = None
    """File to write all numbers to."""
    save_predictions: Path | None = None
    """Folder for predicted label maps: train_ids/, label_ids/ (as the Cityscapes server takes them) and colour/."""
    network: Literal["student", "teacher"] = "student"
    """Whose label maps are saved or drawn."""
    images: Path | None = None
    """A picture, or a folder of them, to be labelled instead of scoring; no label is read."""
    out: Path | None = None
    """Folder for labelled pictures; by default images/ in the run folder, or beside the checkpoint that was named."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Processes that load images; by default as many as in the run."""

    def check(self) -> None:
        """Raises ValueError for options that exclude each other, and for values that mean nothing."""
        if self.images is not None and (self.json is not None or self.save_predictions is not None):
            raise ValueError("--json and --save-predictions are for scores; --images has no labels and writes to --out")
        if self.images is None and self.out is not None:
            raise ValueError("--out is where --images go; did you mean --save-predictions?")
        if self.stride and not self.window:
            raise ValueError("--stride is the way from one --window to the next, and none was asked for")
        if self.size is not None:
            parse_size(self.size, option="--size")


@dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to be looked at."""

    path: Path
    step: int
    config: Config
    networks: "dict[str, nn.Module]"


def main(options: Options) -> None:
    """Score, or label pictures, and print what came out.

    Raises FileNotFoundError for a missing run, checkpoint, picture or data set, and ValueError for a checkpoint, option
    or file that cannot be used.
    """
    from dida.evaluate import Look

    options.check()
    look = Look(options.window, options.stride or max(options.window // 2, 1), options.flip)
    trained = load(options.run, options.device)
    if options.images is not None:
        label_pictures(options, trained, look)
    else:
        score_domain(options, trained, look)


def load(run: Path, device: str) -> Trained:
    """Student and teacher of the newest checkpoint. Raises FileNotFoundError or ValueError."""
    from dida.command import find_device
    from dida.data.classes import CLASSES
    from dida.models.segmentor import Segmentor
    from dida.state import latest, load_checkpoint, load_weights

    where = find_device(device)
    path = latest(run)
    checkpoint = load_checkpoint(path)
    config = from_dict(checkpoint["config"])
    model = config.model
    networks = {}
    for name in NETWORKS:
        network = Segmentor(model.backbone, CLASSES, model.embed_dim, model.drop_path)
        expected = f"the network of its own config, {model.backbone} with embed_dim {model.embed_dim}"
        load_weights(network, checkpoint[name], source=f"{path}, {name}", expected=expected)
        networks[name] = network.to(where)
    return Trained(path, checkpoint["step"], config, networks)


def score_domain(options: Options, trained: Trained, look: "Look") -> None:
    """Score both networks on a labelled domain; print a table and write what was asked for."""
    from dida.data import domains
    from dida.data.labelled_images import LabelledImages
    from dida.evaluate import evaluate
    from dida.predictions import require_distinct_stems

    data = trained.config.data
    size = options.size or data.tgt_size
    domain = domains.labelled(options.tgt or data.tgt, options.data_root or data.data_root, options.split)
    if options.save_predictions is not None:
        require_distinct_stems(domain.images)
    found = evaluate(
        trained.networks,
        LabelledImages(domain, parse_size(size, option="--size")),
        look=look,
        workers=data.workers if options.workers is None else options.workers,
        on_prediction=saver(options.save_predictions, options.network),
    )
    report = as_json(found, trained, look, domain=domain.name, split=options.split, size=size)
    print("\n".join(table(report)))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
        print(f"numbers: {options.json}")
    if options.save_predictions is not None:
        print(f"label maps of the {options.network}: {options.save_predictions}")


def saver(folder: Path | None, network: str) -> "Callable[[str, str, np.ndarray], None] | None":
    """What to do with a predicted label map: nothing, or save it if it is that network's."""
    from dida.predictions import save_prediction

    def save(name: str, image: str, train_ids: "np.ndarray") -> None:
        if name == network:
            save_prediction(folder, Path(image).stem, train_ids)

    return None if folder is None else save


def as_json(
    found: "Evaluation", trained: Trained, look: "Look", *, domain: str, split: str, size: str
) -> dict[str, Any]:
    """All numbers, in percent, and all they depend on. None stands for a class that does not occur."""
    from dida.data.classes import NAMES
    from dida.evaluate import BAND

    def by_class(shares: Iterable[float]) -> dict[str, float | None]:
        return {name: percent(share) for name, share in zip(NAMES, shares, strict=True)}

    def overlap(scores: "Scores") -> dict[str, Any]:
        return {
            "mIoU": {str(n): percent(mean) for n, mean in scores.mean_iou.items()},
            "IoU": by_class(scores.iou),
        }

    config = trained.config
    return {
        "domain": domain,
        "toy": domain.startswith("toy"),
        "split": split,
        "images": found.images,
        "size": size,
        "scored_at": [f"{width}x{height}" for width, height in sorted(found.sizes)],
        "window": look.window,
        "stride": look.stride if look.window else 0,
        "flip": look.flip,
        "method": config.method,
        "src": config.data.src,
        "tgt": config.data.tgt,
        "backbone": config.model.backbone,
        "seed": config.run.seed,
        "step": trained.step,
        "checkpoint": str(trained.path),
        "unit": "percent",
        "band_pixels": BAND,
    } | {
        name: overlap(scores)
        | {
            "aAcc": percent(scores.all_accuracy),
            "mAcc": percent(scores.mean_accuracy),
            "Acc": by_class(scores.accuracy),
            "band": overlap(found.band[name]),
        }
        for name, scores in found.scores.items()
    }


def percent(share: float) -> float | None:
    """A share in percent with 4 decimals, None for NaN (which JSON does not have)."""
    return None if math.isnan(share) else round(100 * float(share), 4)


def table(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines of text: what was measured, then a row per class and per mean."""
    # SYNTHIA lacks three classes, so what is published for it is the mean over the other 16.
    means = (16, 13, 19) if report["src"] == "synthia" else (19, 16, 13)
    toy = " (toy benchmark: not to be compared with published numbers)" if report["toy"] else ""
    sizes = report["scored_at"]
    scored = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"
    look = f", window {report['window']} every {report['stride']}" if report["window"] else ""
    look += ", with mirror image" if report["flip"] else ""
    networks = [name for name in NETWORKS if name in report]
    yield f"{report['domain']} {report['split']}{toy}: {report['images']} images at {report['size']}{look}"
    yield (
        f"{means[0]} classes ({means[1]} and {means[2]} below), {' and '.join(networks)}, scored at full resolution "
        f"({scored})"
    )
    yield (
        f"{report['method']} from {report['src']}, {report['backbone']}, seed {report['seed']}, step {report['step']}: "
        f"{report['checkpoint']}"
    )
    yield ""
    yield f"{'':14}" + "".join(f"{name:>18}" for name in networks)
    yield f"{'class':14}" + f"{'IoU':>10}{'Acc':>8}" * len(networks)
    for name in report[networks[0]]["IoU"]:
        yield f"{name:14}" + "".join(
            f"{cell(report[n]['IoU'][name]):>10}{cell(report[n]['Acc'][name]):>8}" for n in networks
        )
    yield "-" * (14 + 18 * len(networks))
    for n in means:
        cells = "".join(f"{cell(report[name]['mIoU'][str(n)]):>10}{'':8}" for name in networks)
        yield f"{f'mIoU {n}':14}{cells}".rstrip()
    band = "".join(f"{cell(report[name]['band']['mIoU'][str(means[0])]):>10}{'':8}" for name in networks)
    yield f"{f'band mIoU {means[0]}':14}{band}".rstrip() + f"   (within {report['band_pixels']} pixels of a boundary)"
    for mean in ("aAcc", "mAcc"):
        yield f"{mean:14}" + "".join(f"{'':10}{cell(report[name][mean]):>8}" for name in networks)


def cell(value: float | None) -> str:
    """Two decimals, as tables are published; a dash where there is no number."""
    return "-" if value is None else f"{value:.2f}"


def label_pictures(options: Options, trained: Trained, look: "Look") -> None:
    """Draw what the network sees in pictures that have no labels, each at its own size."""
    import torch

    from dida.data.image_file import read_image
    from dida.data.transforms import Normalise, scaled_image
    from dida.evaluate import evaluating, predict
    from dida.panel import legend, overlay
    from dida.predictions import require_distinct_stems, save_png, save_prediction

    paths = pictures(options.images)
    require_distinct_stems(paths)
    out = options.out or (options.run if options.run.is_dir() else options.run.parent) / "images"
    size = parse_size(options.size or trained.config.data.tgt_size, option="--size")
    network = trained.networks[options.network]
    device = next(network.parameters()).device
    normalise = Normalise().to(device)
    with evaluating(network):
        for path in paths:
            picture = read_image(path)
            scaled = torch.tensor(scaled_image(picture, size), device=device).permute(2, 0, 1)
            train_ids = predict(network, normalise(scaled)[None], picture.shape[:2], look)[0].cpu().numpy()
            save_png(out / "overlay" / f"{path.stem}.png", overlay(picture, train_ids))
            save_prediction(out, path.stem, train_ids)
    save_png(out / "legend.png", legend())
    print(f"{len(paths)} pictures labelled by the {options.network} of step {trained.step}: {out / 'overlay'}")


def pictures(path: Path) -> list[Path]:
    """The picture itself, or all below a folder. Raises FileNotFoundError."""
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"--images {path}: no picture there (looked for {', '.join(PICTURES)})")
    return found


def cli(args: list[str]) -> None:
    """`main` of a command line. What a user can put right ends in one message and exit code 1, not in a traceback."""
    options = tyro.cli(Options, prog="eval.py", args=args)
    try:
        main(options)
    except (FileNotFoundError, ValueError) as error:
        from dida.command import reason

        sys.exit(f"eval.py: {reason(error)}")


if __name__ == "__main__":
    cli(sys.argv[1:])
