"""From what was gathered to the file."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from dida.machine.files import megabytes, write_text
from dida.report.gather import Story
from dida.report.page import in_percent, report_page, signed
from dida.report.pictures import draw_pictures
from dida.report.selection import choose


def write_report(story: Story, out: Path, *, pictures: int) -> str:
    """Write the file; how large it is, in words. `pictures`: of each kind that is chosen. Raises ImageFileError for a
    picture that cannot be read, OSError."""
    choices = choose(story, pictures)
    shown = dict(draw_pictures(story, (index for choice in choices for index in choice.indices)))
    text = report_page(story, choices, shown, made=f"written by dida report, {datetime.now():%Y-%m-%d %H:%M}")
    write_text(out, text)
    return megabytes(len(text.encode()))


def gain_lines(story: Story) -> Iterator[str]:
    """IoU by class of the first run beside the second, as text: what a terminal shows of a report. Nothing of one run
    alone, or without labels."""
    if len(story.subjects) < 2 or not story.has_labels:
        return
    first, second = story.subjects[:2]
    ours, theirs = (story.scores(story.of(subject)) for subject in (first, second))
    n, names = len(story.declared), story.class_set.names
    rows = [(names[c], float(ours.iou[c]), float(theirs.iou[c])) for c in story.declared]
    mean = (f"mIoU ({n} classes)", ours.mean_iou[n], theirs.mean_iou[n])
    wide = 1 + max(len(name) for name, *_ in (*rows, mean))
    column = 2 + max(len(first.name), len(second.name), len("gain"))
    yield f"{'IoU':{wide}}{second.name:>{column}}{first.name:>{column}}{'gain':>{column}}"
    for name, mine, other in (*rows, mean):
        cells = (in_percent(other), in_percent(mine), signed(mine - other))
        yield f"{name:{wide}}" + "".join(f"{cell:>{column}}" for cell in cells)
