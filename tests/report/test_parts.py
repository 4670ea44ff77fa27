"""The parts of a report: markup, charts, pictures, selections, the log."""

import json
from types import SimpleNamespace
from xml.etree.ElementTree import tostring

import numpy as np
import pytest

from dida.batch import IGNORE
from dida.machine.files import read_metrics
from dida.report.charts import line_chart, matrix_chart, ticks
from dida.report.markup import append, document, element, make_table
from dida.report.pictures import GAINED, LOST, OTHERWISE, differences, mistakes
from dida.report.selection import choose


def test_text_is_text_whatever_it_holds():
    made = element("p", "a < b & ", element("b", "<script>"), " tail", class_="x", data_y='"')
    assert tostring(made, encoding="unicode") == (
        '<p class="x" data-y="&quot;">a &lt; b &amp; <b>&lt;script&gt;</b> tail</p>'
    )
    append(made, " more")
    assert "tail more</p>" in document(made)


def test_the_first_cell_of_a_row_is_its_head():
    text = tostring(make_table(["a", "b"], [["1", element("td", "2", class_="x")]]), encoding="unicode")
    assert '<tr><th scope="row">1</th><td class="x">2</td></tr>' in text


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.5, 1]), (0, 400, [0, 100, 200, 300, 400]), (0, 0.32, [0, 0.1, 0.2, 0.3]), (-1, 3, [-1, 0, 1, 2, 3])],
)
def test_ticks_are_round_and_within(low, high, expected):
    assert ticks(low, high) == expected


def test_a_line_goes_through_its_points():
    drawn = line_chart({1: [(0, 0.0), (10, 2.0)]}, title="x")
    (line,) = drawn.findall("polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.get("points").split())
    assert x0 < x1
    assert y0 > y1  # of a picture, where y grows downwards
    labels = {text.text: float(text.get("y")) - 4 for text in drawn.findall("text") if text.get("text-anchor") == "end"}
    assert labels["2"] == pytest.approx(y1, abs=0.1)
    assert labels["0"] == pytest.approx(y0, abs=0.1)


def test_a_line_at_zero_can_be_drawn():
    assert line_chart({0: [(0, 0.0), (1, 0.0)]}, title="x").findall("polyline")


def test_a_matrix_says_percents_and_shows_a_class_without_pixels_as_such():
    drawn = matrix_chart(np.array([[0.75, 0.25], [np.nan, np.nan]]), ["road", "sky"], title="x")
    assert [text.text for text in drawn.findall("text")] == ["road", "road", "75", "25", "sky", "sky"]
    assert [rect.get("fill") for rect in drawn.findall("rect")][2:] == ["#eee", "#eee"]


def test_differences_are_coloured_by_who_is_right():
    picture = np.zeros((1, 5, 3), np.uint8)
    before, after, truth = (
        np.array([row], np.uint8) for row in ([0, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 0, 2, IGNORE, 0])
    )
    drawn = differences(picture, before, after, truth)
    assert [tuple(pixel) for pixel in drawn[0, :4]] == [GAINED, LOST, OTHERWISE, OTHERWISE]
    assert tuple(drawn[0, 4]) == (170, 170, 170)  # the picture, pale
    assert tuple(differences(picture, before, after, None)[0, 0]) == OTHERWISE


def test_mistakes_are_of_labelled_pixels():
    drawn = mistakes(np.zeros((1, 3, 3), np.uint8), np.array([[0, 0, 0]]), np.array([[0, 1, IGNORE]]))
    assert [tuple(pixel) == LOST for pixel in drawn[0]] == [False, True, False]


def story(*ious):
    """As far as a selection looks: a mean IoU of every picture, by run."""
    subjects = [SimpleNamespace(name=f"run {i}", iou=np.array(iou)) for i, iou in enumerate(ious)]
    return SimpleNamespace(subjects=subjects, of=lambda subject: SimpleNamespace(picture_iou=subject.iou))


def test_pictures_are_chosen_by_their_scores():
    nan = float("nan")
    alone = {choice.title: choice.indices for choice in choose(story([0.5, nan, 0.2, 0.9]), 2)}
    assert alone == {"Worst pictures": (2, 0), "Best pictures": (3, 0)}
    pair = {choice.title: choice.indices for choice in choose(story([0.5, nan, 0.2, 0.9], [0.1, 0.1, 0.3, 0.8]), 1)}
    assert pair["Largest gains"] == (0,)
    assert pair["Largest losses"] == (2,)


def test_without_labels_pictures_are_evenly_spaced():
    (choice,) = choose(story([float("nan")] * 5), 3)
    assert choice.indices == (0, 2, 4)


def test_a_log_is_read_up_to_a_line_that_was_cut_off(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert list(read_metrics(file)) == []
    file.write_text(json.dumps({"step": 1, "lr": 0.5}) + "\n" + '{"step": 2, "l')
    assert list(read_metrics(file)) == [{"step": 1.0, "lr": 0.5}]
    file.write_text("no\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1"):
        list(read_metrics(file))
