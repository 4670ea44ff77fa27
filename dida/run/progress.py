"""How far a run is and what its losses are: a bar on a terminal, lines where the output goes into a file."""

import shutil
import sys
from datetime import timedelta

from tqdm import tqdm

from dida.run.terms import LOSS, is_off, meaning_of, word_of

_WATCHED = ("pseudo_coverage", "bank_fill", "lr", "steps_per_second", "memory_gib", "data_wait")  # beside the losses
_FORMS = {
    "pseudo_coverage": "{:.0%}",
    "bank_fill": "{:.0%}",
    "lr": "{:.2e}",
    "steps_per_second": "{:.2f}",
    "memory_gib": "{:.1f} GiB",
    "data_wait": "{:.0%}",
}
_BAR = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}, {remaining} left{postfix}"
_BAR_ALONE = 46  # columns of the bar and its numbers at their longest, without the terms
_WORD = 12  # columns of a term's word in the legend


class StepProgress:
    """How far a run is, on stdout: a bar on a terminal, else a line whenever the log gets one.

    Terms that are off or have not begun are left out; each is explained when it is shown for the first time.
    """

    def __init__(self, steps: int, done: int) -> None:
        self._steps = steps
        self._explained: set[str] = set()
        self._bar = tqdm(
            total=steps, initial=done, file=sys.stdout, disable=None, dynamic_ncols=True, bar_format=_BAR
        )  # disabled where there is no terminal

    def say(self, step: int, scalars: dict[str, float]) -> None:
        """What `Meter.flush` returned of step `step`. Raises OSError where the terminal is gone."""
        new = [name for name in shown_terms(scalars) if name not in self._explained]
        self._explained.update(new)
        for name in new:
            explained = f"  {word_of(name):{_WORD}}{meaning_of(name)}"
            self.tell(explained)
        if self._bar.disable:
            print(progress_line(step, self._steps, scalars), flush=True)
        else:
            room = shutil.get_terminal_size().columns - _BAR_ALONE
            said = fitting([_short(name, scalars[name]) for name in shown_terms(scalars)], room)
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.n = step
            self._bar.refresh()

    def tell(self, line: str) -> None:
        """A line of its own, above the bar."""
        self._bar.write(line, file=sys.stdout) if not self._bar.disable else print(line, flush=True)

    def __enter__(self) -> "StepProgress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def progress_line(step: int, steps: int, scalars: dict[str, float]) -> str:
    """Progress as one line of text, from what `Meter.flush` returned."""
    left = timedelta(seconds=round((steps - step) / scalars["steps_per_second"]))
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    parts += [_short(name, scalars[name]) for name in shown_terms(scalars)]
    return "  ".join([*parts, f"ETA {left}"])


def shown_terms(scalars: dict[str, float]) -> list[str]:
    """Which scalars a line shows: losses and what is watched beside them, but for those that are off."""
    losses = [name for name in scalars if name.startswith(LOSS)]
    return [name for name in (*losses, *_WATCHED) if name in scalars and not is_off(name, scalars[name])]


def fitting(parts: list[str], room: int) -> str:
    """As many of the first parts as fit into so many columns."""
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if len(longer) > room:
            break
        text = longer
    return text


def _short(name: str, value: float) -> str:
    form = _FORMS.get(name, "{:.4f}")
    return f"{word_of(name)} {form.format(value)}"
