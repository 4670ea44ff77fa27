"""The report as one HTML file: a section each for what was gathered."""

import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from dida.report.charts import calibration_chart, colour_of, line_chart, matrix_chart, share_bar
from dida.report.gather import Story, Subject
from dida.report.markup import Content, append, document, element, make_table
from dida.report.measure import BINS, Measured
from dida.report.pictures import GAINED, LOST, OTHERWISE, Shown
from dida.report.selection import Gallery
from dida.run.terms import LOSS, SHARE, WATCH, meaning_of, word_of
from dida.use.evaluate import BAND

_CURVES = ("pseudo_coverage", "bank_fill", "gradient_norm", "lr")  # drawn after the losses
_CONFUSIONS = 8  # largest ones that are listed
_DASH = "–"
_LABELLED = "#777"  # the colour of what the labels say, beside those of runs


def report_page(story: Story, choices: Sequence[Gallery], shown: dict[int, Shown], made: str) -> str:
    """The text of the file. `made`: when and by what, for its last line."""
    style = files("dida.report").joinpath("style.css").read_text()
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", _title(story)),
        element("style", style),
    )
    body = element("body", *_header(story))
    for section in (
        _runs(story),
        _curves(story),
        _classes(story),
        _confusion(story),
        *_pictures(story, choices, shown),
        _calibration(story),
        _without_labels(story),
        _environment(story),
    ):
        append(body, section)
    append(body, element("footer", made))
    return document(element("html", head, body, lang="en"))


# ---- words ---------------------------------------------------------------------------------------------------------


def in_percent(share: float | None, digits: int = 1) -> str:
    """A share as people read it; a dash where nothing is known."""
    return _DASH if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def signed(share: float) -> str:
    """A difference of shares in percent points, with its sign."""
    return _DASH if math.isnan(share) else f"{100 * share:+.1f}".replace("-", "−")


def _difference(share: float) -> Element:
    kind = "same" if math.isnan(share) or abs(share) < 0.0005 else "up" if share > 0 else "down"
    return element("td", signed(share), class_=f"difference {kind}")


def _title(story: Story) -> str:
    first = story.subjects[0]
    return f"{first.name} on {story.domain.name} {story.domain.split}"


def _section(title: str, *content: Content) -> Element:
    return element("section", element("h2", title), *content)


def _key(story: Story) -> Element:
    """Which colour is which run."""
    return element("p", *(_swatch(name, colour_of(i)) for i, name in enumerate(story.names)), class_="key")


def _swatch(name: str, colour: str) -> Element:
    return element("span", element("i", style=f"background:{colour}"), name)


def _rgb(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


# ---- sections ------------------------------------------------------------------------------------------------------


def _header(story: Story) -> Iterator[Element]:
    first, others = story.subjects[0], story.subjects[1:]
    config, family = first.trained.config, first.trained.family
    if family:
        origin = f"A published network of {family}, {config.model.backbone}"
    else:
        origin = f"{config.method} from {config.data.src} to {config.data.tgt}, {config.model.backbone}, seed "
        origin += f"{config.run.seed}, step {first.trained.step}"
    pictures = len(story.domain.images)
    yield element(
        "header",
        element("h1", _title(story)),
        element("p", f"{origin}; {pictures} pictures, the {story.network} unless another is named."),
    )
    cards = list(_cards(story, first, others))
    yield element("div", *(_card(*card) for card in cards), class_="cards")
    notes = []
    if story.domain.name.startswith("toy"):
        notes.append("The toy's numbers are not to be compared with published ones.")
    if others:
        notes.append("One run of each: runs that differ in their seed alone differ too.")
    if notes:
        yield element("p", " ".join(notes), class_="note")


def _cards(story: Story, first: Subject, others: Sequence[Subject]) -> Iterator[tuple[str, str]]:
    """A number and what it is."""
    measured = story.of(first)
    if story.has_labels:
        mean = story.mean_iou(first)
        yield in_percent(mean), f"mIoU, percent, {len(story.declared)} classes"
        for other in others:
            yield signed(mean - story.mean_iou(other)), f"mIoU against {other.name}, points"
        near = story.scores(measured, band=True).mean_iou[len(story.declared)]
        yield in_percent(near), f"mIoU within {BAND} pixels of a boundary"
        yield in_percent(measured.calibration_error), "ECE, percent: how far confidence is from accuracy"
    else:
        yield in_percent(measured.entropy), "entropy, percent of the most"
    if first.measurement.agreement is not None:
        yield in_percent(first.measurement.agreement), "of pixels: student and teacher agree"


def _card(number: str, about: str) -> Element:
    return element("div", element("b", number), element("span", about))


_SHOWN_OPTIONS = ("method", "src", "tgt", "backbone", "weights", "init", "steps", "batch_size", "crop", "lr", "seed")


def _runs(story: Story) -> Element:
    options = [subject.options for subject in story.subjects]
    differing = [name for name in options[0] if len({repr(o.get(name)) for o in options}) > 1]
    rows: list[list[Content]] = [
        [name, *(_value(o.get(name)) for o in options)]
        for name in dict.fromkeys((*_SHOWN_OPTIONS, *differing))
        if any(o.get(name) is not None for o in options)
    ]
    rows.append(["checkpoint", *(element("code", str(subject.trained.path)) for subject in story.subjects)])
    rows.append(["command", *(_command(subject) for subject in story.subjects)])
    every = [[name, *(_value(o.get(name)) for o in options)] for name in options[0]]
    also = " and every option that differs between the runs" if len(options) > 1 else ""
    return _section(
        "What was run",
        element("p", f"The main options{also}."),
        make_table(["option", *story.names], rows),
        element("details", element("summary", "every option"), make_table(["option", *story.names], every)),
    )


def _value(value: Any) -> str:
    return _DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _command(subject: Subject) -> Element:
    """As it was typed, the folder of the program left out; no line ends within an option's name."""
    argv = [str(word) for word in subject.environments[0].get("argv", [])] if subject.environments else []
    command = element("code", argv[0].rpartition("/")[2] if argv else _DASH)
    for word in argv[1:]:
        append(command, " ")
        append(command, element("span", word, class_="option") if word.startswith("--") else word)
    return command


def _curves(story: Story) -> Element:
    logged = dict.fromkeys(name for s in story.subjects for line in s.metrics for name in line)
    charts = []
    seen = [name for name in logged if name.startswith(WATCH) and not name.startswith(SHARE)]
    for name in [*(name for name in logged if name.startswith(LOSS)), *_CURVES, *seen]:
        series = {
            i: [(line["step"], line[name]) for line in subject.metrics if name in line]
            for i, subject in enumerate(story.subjects)
        }
        # A term that is off, and a bank that is not there, are lines at zero.
        drawn = {i: points for i, points in series.items() if any(y != 0 for _, y in points)}
        if drawn:
            chart = line_chart(drawn, title=f"{word_of(name)} by step")
            charts.append(element("figure", element("figcaption", element("b", word_of(name)), f": {meaning_of(name)}"),
                                  chart))  # fmt: skip
    if not charts:
        return _section("Curves", element("p", "No metrics.jsonl lies beside these checkpoints."))
    without = [s.name for s in story.subjects if not s.metrics]
    missing = f" No metrics.jsonl of {', '.join(without)}." if without else ""
    about = f"Means over the steps between two lines of the log. Terms that are always zero are left out.{missing}"
    return _section("Curves", element("p", about), _key(story), element("div", *charts, class_="charts"))


def _classes(story: Story) -> Element | None:
    if not story.has_labels:
        return None
    scores = [story.scores(story.of(subject)) for subject in story.subjects]
    band = [story.scores(story.of(subject), band=True) for subject in story.subjects]
    labelled_C = story.of(story.subjects[0]).pixels_CC.sum(1)
    share_C = labelled_C / labelled_C.sum()
    rows: list[list[Content]] = []
    for c in story.declared:
        first = _swatch(story.class_set.names[c], _rgb(story.class_set.colours[c]))
        rows.append([first, *_compared([float(s.iou[c]) for s in scores]), in_percent(share_C[c], 2)])
    for n in scores[0].mean_iou:
        rows.append([f"mIoU ({n})", *_compared([s.mean_iou[n] for s in scores]), ""])
    n = len(story.declared)
    rows.append([f"mIoU ({n}) near boundaries", *_compared([s.mean_iou[n] for s in band]), ""])
    rows.append(["pixels right", *_compared([s.all_accuracy for s in scores]), ""])
    beside = [cell for name in story.names[1:] for cell in (name, "difference")]
    return _section(
        "By class",
        element("p", f"IoU in percent over whole pictures at the labels' own size; {_DASH} where a class has no pixel. "
                     f"Near boundaries: within {BAND} pixels of another class."),
        make_table(["class", story.names[0], *beside, "of pixels"], rows, class_="numbers"),
    )  # fmt: skip


def _compared(values: Sequence[float]) -> Iterator[Content]:
    """Of the first run, then of each other with how far the first lies above it."""
    yield element("td", in_percent(values[0]), share_bar(0 if math.isnan(values[0]) else values[0], colour_of(0)))
    for value in values[1:]:
        yield in_percent(value)
        yield _difference(values[0] - value)


def _confusion(story: Story) -> Element | None:
    if not story.has_labels:
        return None
    pixels_CC = story.of(story.subjects[0]).pixels_CC
    names = story.class_set.names
    with np.errstate(invalid="ignore"):
        share_CC = pixels_CC / pixels_CC.sum(1, keepdims=True)
    wrong_CC = np.nan_to_num(np.where(np.eye(len(names), dtype=bool), 0.0, share_CC))
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:_CONFUSIONS]
    largest = [divmod(int(place), len(names)) for place in order if wrong_CC.flat[place] > 0]
    said = [f"{names[i]} taken for {names[j]} {in_percent(wrong_CC[i, j], 0)} %" for i, j in largest]
    who = story.subjects[0].name
    return _section(
        "Confusion",
        element("p", f"A row is a class of the labels, its squares are what {who} says of its pixels, in percent. "
                     + (f"Most often: {', '.join(said)}." if said else "Nothing is confused.")),
        element("div", matrix_chart(share_CC, names, title=f"what {who} says of every class"), class_="wide"),
    )  # fmt: skip


def _pictures(story: Story, choices: Sequence[Gallery], shown: dict[int, Shown]) -> Iterator[Element]:
    if not shown:
        return
    legend = [
        _swatch(name, _rgb(rgb)) for name, rgb in zip(story.class_set.names, story.class_set.colours, strict=True)
    ]
    content: list[Content] = [element("p", *legend, _swatch("not labelled", "#000"), class_="key classes")]
    if len(story.subjects) > 1:
        content.append(element("p", *_difference_key(story), class_="key"))
    elif story.has_labels:
        content.append(element("p", _swatch("wrong", _rgb(LOST)), class_="key"))
    for choice in choices:
        if choice.indices:
            content.append(element("h3", choice.title, element("small", f" {choice.about}")))
        for index in choice.indices:
            content.append(_row(story, index, shown[index]))
    yield _section("Pictures", *content)


def _difference_key(story: Story) -> Iterator[Element]:
    name = story.subjects[0].name
    if story.has_labels:
        yield _swatch(f"differ, only {name} is right", _rgb(GAINED))
        yield _swatch("differ, only the other is right", _rgb(LOST))
        yield _swatch("differ, neither is right or it is not labelled", _rgb(OTHERWISE))
    else:
        yield _swatch("differ", _rgb(OTHERWISE))


def _row(story: Story, index: int, shown: Shown) -> Element:
    scores = [f"{s.name} {in_percent(float(story.of(s).picture_iou[index]))}" for s in story.subjects]
    said = f": mIoU {', '.join(scores)}" if story.has_labels else ""
    tiles = [
        element("figure", element("img", src=tile.source, alt=f"{tile.caption} of {shown.name}"),
                element("figcaption", tile.caption))
        for tile in shown.tiles
    ]  # fmt: skip
    return element(
        "div", element("p", element("code", shown.name), said), element("div", *tiles, class_="tiles"), class_="picture"
    )


def _calibration(story: Story) -> Element | None:
    if not story.has_labels:
        return None
    bins = {i: story.of(subject).bins for i, subject in enumerate(story.subjects)}
    rows: list[list[Content]] = [
        [f"{subject.name}, {name}", *_overall(story, measured)]
        for subject in story.subjects
        for name, measured in subject.measurement.networks.items()
    ]
    head = ["network", "mIoU", "near boundaries", "pixels right", "mean confidence", "ECE"]
    return _section(
        "Calibration and boundaries",
        element("p", f"Where confidence is what it says, a circle lies on the dashed line; below it the network is too "
                     f"sure. ECE: the mean distance between confidence and accuracy over {BINS} bins of confidence, "
                     "weighted by pixels. All in percent."),
        _key(story),
        element("div", element("figure", element("figcaption", element("b", "accuracy"), " by confidence"),
                               calibration_chart(bins, title="accuracy by confidence")), class_="charts"),
        make_table(head, rows, class_="numbers"),
    )  # fmt: skip


def _overall(story: Story, measured: Measured) -> Iterator[str]:
    n, scores = len(story.declared), story.scores(measured)
    pixels, confidence, _ = measured.bins
    yield in_percent(scores.mean_iou[n])
    yield in_percent(story.scores(measured, band=True).mean_iou[n])
    yield in_percent(scores.all_accuracy)
    yield in_percent(float(confidence.sum() / pixels.sum()))
    yield in_percent(measured.calibration_error)


def _without_labels(story: Story) -> Element:
    rows: list[list[Content]] = []
    for subject in story.subjects:
        agreement = subject.measurement.agreement
        for name, measured in subject.measurement.networks.items():
            rows.append([f"{subject.name}, {name}", in_percent(measured.entropy), in_percent(measured.confident),
                         in_percent(agreement)])  # fmt: skip
    threshold = story.subjects[0].trained.config.teach.threshold
    return _section(
        "What needs no label",
        element("p", "Signs to watch where a target has no labels; none of them is a score, and a network that is "
                     "wrong and sure of it looks good by all. Entropy: of the probabilities of a pixel, as a share of "
                     f"the most there can be. Confident: pixels above the run's threshold ({threshold:g} in the first "
                     "run). Agreement: pixels of which student and teacher say the same. All in percent."),
        make_table(["network", "entropy", "confident", "agreement"], rows, class_="numbers"),
        element("h3", "How often each class is said", element("small", " share of pixels, percent")),
        _histogram(story),
    )  # fmt: skip


def _histogram(story: Story) -> Element:
    said = [story.of(subject).said_C for subject in story.subjects]
    shares = [counts / max(counts.sum(), 1) for counts in said]
    head: list[Content] = ["class", *story.names]
    if story.has_labels:
        labelled_C = story.of(story.subjects[0]).pixels_CC.sum(1)
        shares.append(labelled_C / labelled_C.sum())
        head.append("labelled")
    longest = max(float(share.max()) for share in shares)
    colours = [*map(colour_of, range(len(said))), _LABELLED]
    rows: list[list[Content]] = []
    for c, name in enumerate(story.class_set.names):
        cells = [
            element("td", in_percent(share[c], 2), share_bar(float(share[c]) / longest, colour))
            for share, colour in zip(shares, colours, strict=False)
        ]
        rows.append([_swatch(name, _rgb(story.class_set.colours[c])), *cells])
    return make_table(head, rows, class_="numbers")


_FACTS = "platform python torch triton cuda gpu cpu cores threads load backend digest".split()


def _environment(story: Story) -> Element:
    known = [subject for subject in story.subjects if subject.environments]
    if not known:
        return _section("Environment", element("p", "No environment.json lies beside these checkpoints."))
    rows: list[list[Content]] = [
        [fact, *(_fact(subject.environments[-1].get(fact)) for subject in known)] for fact in _FACTS
    ]
    rows.append(["commit", *(_commit(subject.environments[-1].get("git")) for subject in known)])
    rows.append(["steps a second", *(_last(subject, "steps_per_second") for subject in known)])
    rows.append(["most memory, GiB", *(_last(subject, "memory_gib") for subject in known)])
    rows.append(["times resumed", *(str(len(subject.environments) - 1) for subject in known)])
    about = (
        "Where the runs were trained, at their last start. Load: processes that wanted a core over 1, 5 and 15 minutes."
    )
    return _section("Environment", element("p", about), make_table(["", *(subject.name for subject in known)], rows))


def _fact(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else _value(value)


def _commit(git: dict[str, Any] | None) -> str:
    if not git:
        return _DASH
    return f"{str(git.get('commit'))[:12]}{', with changes' if git.get('dirty') else ''}"


def _last(subject: Subject, name: str) -> str:
    return f"{subject.metrics[-1][name]:.2f}" if subject.metrics and name in subject.metrics[-1] else _DASH
