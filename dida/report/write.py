"""From what was gathered to the file."""

from datetime import datetime
from pathlib import Path

from dida.files import megabytes, write_text
from dida.report.gather import Story
from dida.report.page import report_page
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
