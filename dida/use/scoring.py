"""Scores of a trained network on a labelled domain: all numbers as plain values, and as a table to read."""

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dida.batch import IGNORE
from dida.data.domains import LabelledDomain
from dida.data.image_file import read_ids
from dida.data.labelled_images import LabelledImages
from dida.data.sources import published_mean_of_all
from dida.data.statistics import warn_of_ids
from dida.machine.distributed import ALONE, World
from dida.use.evaluate import BAND, Evaluation, Inference, NothingToScore, Scores, evaluate
from dida.use.predictions import prediction_names, save_prediction
from dida.use.stored import NETWORKS
from dida.use.trained import Trained

Report = dict[str, Any]


def score_domain(
    trained: Trained,
    domain: LabelledDomain,
    *,
    size: tuple[int, int],
    inference: Inference,
    workers: int,
    save_to: Path | None = None,
    network: str = "student",
    world: World = ALONE,
    alone: bool = False,
) -> Report:
    """Score the networks, of a run student and teacher, at the labels' own resolution.

    Label maps of `network` go below `save_to`; `alone`: only that one is scored.

    Labels are matched with the network's classes by name; scores are of the classes that both know.
    `size` (width, height): each image is scaled to fit into it. Several processes of a `world` share the pictures;
    each saves the label maps of its own. Raises ImageFileError for a file that cannot be used, NothingToScore if no
    pixel of the labels belongs to a class, ValueError if predictions of two images would share a name.
    """
    domain = domain.seen_as(trained.class_set)
    try:
        found = evaluate(
            {network: trained.require(network)} if alone else trained.networks,
            LabelledImages(domain, size, enlarge=trained.config.data.enlarge),
            trained.class_set,
            declared=domain.declared,
            inference=inference,
            workers=workers,
            on_prediction=_saver(save_to, network, domain),
            world=world,
        )
    except NothingToScore as error:
        raise NothingToScore(f"{error}. The first labels hold the raw ids {_first_ids(domain)}") from error
    warn_of_ids(domain, found.unknown, found.share)
    return as_json(found, trained, inference, domain, size)


def _first_ids(domain: LabelledDomain) -> str:
    """What the first label files hold, so that wrong ids can be told from labels that are not there."""
    ids: set[int] = set()
    for index, path in enumerate(domain.labels[:20]):
        ids.update(map(int, np.unique(read_ids(path, domain.encoding(index)))))
    mapped = np.flatnonzero(domain.raw.ids.train != IGNORE)
    return f"{', '.join(map(str, sorted(ids)[:12]))}; {domain.raw.ids.name} maps {', '.join(map(str, mapped[:40]))}"


def _saver(folder: Path | None, network: str, domain: LabelledDomain) -> Callable[[str, str, np.ndarray], None] | None:
    """What to do with a predicted label map: nothing, or save it if it is that network's."""
    if folder is None:
        return None
    names = dict(zip(map(str, domain.images), prediction_names(domain.images), strict=True))

    def save(name: str, image: str, train_ids: np.ndarray) -> None:
        if name == network:
            save_prediction(folder, names[image], train_ids, domain.class_set)

    return save


def as_json(
    found: Evaluation, trained: Trained, inference: Inference, domain: LabelledDomain, size: tuple[int, int]
) -> Report:
    """All numbers, in percent, and all they depend on. None stands for a class that does not occur."""

    def by_class(shares: Iterable[float]) -> dict[str, float | None]:
        values = list(shares)
        return {trained.class_set.names[c]: percent(values[c]) for c in domain.declared}

    def overlap(scores: Scores) -> dict[str, Any]:
        return {
            "mIoU": {str(n): percent(mean) for n, mean in scores.mean_iou.items()},
            "IoU": by_class(scores.iou),
        }

    config, family = trained.config, trained.family
    published = published_mean_of_all(config.data.src)
    known = next(iter(found.scores.values()))
    labelled = {c for c in domain.declared if not math.isnan(known.accuracy[c])}
    subsets = trained.class_set.subsets_among(domain.declared)
    return {
        "domain": domain.name,
        "toy": domain.name.startswith("toy"),
        "split": domain.split,
        "images": found.images,
        "scored_pixels": percent(found.share),
        "unknown_ids": {str(raw): unknown.pixels for raw, unknown in found.unknown.items()},
        "size": f"{size[0]}x{size[1]}",
        "enlarge": config.data.enlarge,
        "scored_at": [f"{width}x{height}" for width, height in sorted(found.sizes)],
        "window": inference.window,
        "stride": inference.stride if inference.window else 0,
        "flip": inference.flip,
        "family": family,
        "method": None if family else config.method,
        "src": trained.source if family else config.data.src,
        "tgt": None if family else config.data.tgt,
        "backbone": config.model.backbone,
        "seed": None if family else config.run.seed,
        "step": None if family else trained.step,
        "checkpoint": str(trained.path),
        "unit": "percent",
        "classes": len(domain.declared),
        "counted": {str(n): len(labelled & set(ids)) for n, ids in subsets.items()},
        "without_pixels": [trained.class_set.names[c] for c in domain.declared if c not in labelled],
        "headline": published if published in subsets else len(domain.declared),
        "band_pixels": BAND,
        "printed": [row._asdict() for row in trained.printed if domain.name == "cityscapes" and domain.split == "val"],
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


def score_table(report: Report) -> Iterator[str]:
    """The report as lines of text: what was measured, then a row per class and per mean."""
    toy = " (toy benchmark: not to be compared with published numbers)" if report["toy"] else ""
    sizes = report["scored_at"]
    scored = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes from {sizes[0]} to {sizes[-1]}"
    how = f", window {report['window']} every {report['stride']}" if report["window"] else ""
    how += ", with mirror image" if report["flip"] else ""
    most = "" if report["enlarge"] else "most "
    networks = [name for name in NETWORKS if name in report]
    first = report["headline"]
    means = [first, *(n for n in map(int, report[networks[0]]["mIoU"]) if n != first)]
    below = f" ({' and '.join(map(str, means[1:]))} below)" if means[1:] else ""
    yield f"{report['domain']} {report['split']}{toy}: {report['images']} images at {most}{report['size']}{how}"
    yield (f"{first} classes{below}, {' and '.join(networks)}, scored at full resolution ({scored})")
    yield f"{_origin(report)}: {report['checkpoint']}"
    yield f"{report['scored_pixels']:.1f} % of all pixels are labelled with one of these classes; no other is scored"
    if absent := report["without_pixels"]:
        yield f"no pixel is labelled {', '.join(absent)}: in no mean"
    yield from _rows(report, networks, means)


def _origin(report: Report) -> str:
    """Where the network is from, in words."""
    if report["family"] is None:
        run = f"{report['method']} from {report['src']}, {report['backbone']}"
        return f"{run}, seed {report['seed']}, step {report['step']}"
    source = f" trained on {report['src']}" if report["src"] else ""
    return f"a published network of {report['family']}, {report['backbone']}{source}"


def _rows(report: Report, networks: list[str], means: list[int]) -> Iterator[str]:
    """By class and by mean, our scores; to their right what papers print of such networks."""
    first, names = means[0], list(report[networks[0]]["IoU"])
    labels = {n: f"mIoU ({report['counted'][str(n)]} classes)" for n in means}
    wide = 1 + max(map(len, (*names, *labels.values(), f"band {labels[first]}")))
    yield ""
    papers = report["printed"]
    titles = [f"{row['title']:>20}" for row in papers]
    yield f"{'':{wide}}" + "".join([f"{name:>18}" for name in networks] + titles)
    yield f"{'class':{wide}}" + f"{'IoU':>10}{'Acc':>8}" * len(networks) + f"{'IoU, printed':>20}" * len(papers)
    for name in names:
        ours = [f"{cell(report[n]['IoU'][name]):>10}{cell(report[n]['Acc'][name]):>8}" for n in networks]
        yield f"{name:{wide}}" + "".join(ours + [f"{_tenths(row['iou'].get(name)):>20}" for row in papers])
    yield "-" * (wide + 18 * len(networks))
    for n in means:
        cells = "".join(f"{cell(report[name]['mIoU'][str(n)]):>10}{'':8}" for name in networks)
        cells += "".join(f"{_tenths(row['mean_iou'] if row['classes'] == n else None):>20}" for row in papers)
        yield f"{labels[n]:{wide}}{cells}".rstrip()
    band = "".join(f"{cell(report[name]['band']['mIoU'][str(first)]):>10}{'':8}" for name in networks)
    yield (
        f"{f'band {labels[first]}':{wide}}{band}".rstrip() + f"   (within {report['band_pixels']} pixels of a boundary)"
    )
    for mean in ("aAcc", "mAcc"):
        yield f"{mean:{wide}}" + "".join(f"{'':10}{cell(report[name][mean]):>8}" for name in networks)


def _tenths(value: float | None) -> str:
    """As these papers print."""
    return "-" if value is None else f"{value:.1f}"


def cell(value: float | None) -> str:
    """Two decimals, as tables are published; a dash where there is no number."""
    return "-" if value is None else f"{value:.2f}"
