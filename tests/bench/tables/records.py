"""Tables of nothing but records, as finished runs leave them, and what is rendered of them."""

import json

from bench.tables import __main__ as tables
from bench.tables.__main__ import TablesOptions
from bench.tables.trainings import Scoring, Setting, Training
from dida.data.classes import CITYSCAPES_CLASSES
from dida.machine.provenance import machine


def real(name: str, tmp_path) -> Setting:
    return on("real", tmp_path, name)


def on(data: str, tmp_path, table: str = "methods") -> Setting:
    return tables.setting(TablesOptions(data=data, work=tmp_path / "runs", results=tmp_path / "results"), table)


def put(setting: Setting, row, seed: int, mean: float, **changes) -> Scoring:
    """A record as a finished run leaves it; every class has the same IoU, unless said otherwise."""
    scoring = Scoring(Training(setting, row, seed))
    iou = dict.fromkeys(CITYSCAPES_CLASSES.names, mean) | changes.pop("iou", {})
    scores = {"mIoU": {"19": mean, "16": mean, "13": mean}, "IoU": iou} | changes.pop("scores", {})
    scored = {"device": "cpu", "cpu": "Some CPU", "torch": "2.13", "date": changes.pop("date", "2026-01-01 00:00 UTC")}
    trained = machine() | changes.pop("trained", {})
    content = {
        "row": row.name, "seed": seed, "images": 100, "minutes": 30.0, "commit": "abc123", "digest": setting.digest,
        "environment": {"trained": trained, "scored": scored}, "options": scoring.training.options,
        "student": scores, "teacher": scores,
    }  # fmt: skip
    scoring.path.parent.mkdir(parents=True, exist_ok=True)
    scoring.path.write_text(json.dumps(content | changes))
    return scoring


def cells(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]
