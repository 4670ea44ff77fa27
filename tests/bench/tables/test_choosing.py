"""Which signal picks a checkpoint: by hand-made looks, of which the best is known."""

import json
import math

import pytest

from bench.tables.choosing import ChoosingOptions, Judged, at_random, judge, main, rank_correlation
from bench.tables.trainings import looks_of

PAGE = "before\n<!-- results:toy-choosing -->\nold\n<!-- /results -->\nafter\n"


def look(step: float, mean: float, **others: float) -> dict[str, float]:
    """At this step, of this mIoU; agreement follows it, and confidence runs against it."""
    found = {"step": step, "toy-cityscapes_val/student": mean, "toy-gta5-val_val/student": 0.5, "agreement": mean / 2}
    return found | {"confident": 1 - mean, "entropy": 1 - mean, "classes": 5.0} | others


RUN = [look(80, 0.40), look(160, 0.60, drift=0.1), look(240, 0.50, drift=0.3)]


MEANS = [100 * look["toy-cityscapes_val/student"] for look in RUN]


def told(name: str) -> list[float | None]:
    return [look.get(name) for look in RUN]


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ((1, 2, 3), (10, 20, 90), 1),
        ((1, 2, 3), (3, 2, -9), -1),
        ((1, 2, 3, 4), (1, 3, 2, 4), 0.8),
        ((1, 1, 2), (1, 2, 3), math.sqrt(3) / 2),
        ((1, 1, 1), (1, 2, 3), None),
    ],
)
def test_ranks_are_what_correlates(one, other, expected):
    assert rank_correlation(one, other) == (None if expected is None else pytest.approx(expected))


def test_a_choice_costs_what_the_best_one_has_more():
    assert judge(MEANS, told("agreement")) == Judged(pytest.approx(1), 0)
    assert judge(MEANS, told("confident")) == Judged(pytest.approx(-1), pytest.approx(20))
    assert judge(MEANS, told("step")) == Judged(pytest.approx(0.5), pytest.approx(10))


def test_what_some_looks_lack_is_chosen_among_the_others_and_measured_against_all():
    assert judge([70, *MEANS], [None, *told("drift")]) == Judged(pytest.approx(-1), pytest.approx(20))
    assert judge(MEANS[:2], told("drift")[:2]) is None


def test_what_tells_no_two_apart_chooses_nothing():
    assert judge(MEANS, [5.0, 5.0, None]) is None


def test_a_draw_costs_what_the_mean_is_below_the_best():
    assert at_random(MEANS) == pytest.approx(10)


def test_the_table_is_of_every_run_once(tmp_path):
    other = [look(80, 0.50, drift=0.2), look(160, 0.40, drift=0.1)]
    put(tmp_path, "daformer", RUN, scored=52)
    put(tmp_path, "dida", other, scored=45)
    put(tmp_path, "dida_regenerate-smooth-scale", other, scored=45)  # the same run under another name
    put(tmp_path, "dacs", [])
    put(tmp_path, "warm", RUN)  # what the others start from is no choice
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    main(ChoosingOptions(results=tmp_path, pages=(page,)))
    text = page.read_text()
    assert "2 runs (daformer, dida) of 1 seeds, 2 or 3 looks each" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert cells(text, "student and teacher agree") == ["1.00", "0.00", "0.00", "1.00", "0.00", "0.00"]
    assert cells(text, "teacher confident") == ["-1.00", "15.00", "20.00", "-1.00", "7.00", "7.00"]
    assert cells(text, "a draw") == ["–", "7.50", "10.00", "–", "3.50", "3.50"]
    assert (tmp_path / "toy" / "choosing.md").read_text().strip() in text


def put(results, row: str, found: list[dict[str, float]], *, scored: float = 50.0) -> None:
    path = results / "toy" / "records" / "abc" / f"{row}_s0_test.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "row": row,
                "benchmark": "toy",
                "seed": 0,
                "digest": "abc",
                "looks": found,
                "student": {"mIoU": {"19": scored}},
            }
        )
    )


def cells(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} ")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_without_looks_it_says_how_to_get_them(tmp_path):
    put(tmp_path, "dacs", [])
    with pytest.raises(ValueError, match="--eval-every N --eval-target-labels"):
        main(ChoosingOptions(results=tmp_path, pages=()))


def test_a_record_keeps_what_a_run_saw_of_itself(tmp_path):
    lines = [
        {"step": 20, "lr": 0.1},
        {
            "step": 40,
            "lr": 0.1,
            "watch/agreement": 0.5,
            "watch/share/road": 0.2,
            "watch/toy-cityscapes_val/student": 0.3,
        },
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert looks_of(tmp_path) == [{"step": 40, "agreement": 0.5, "toy-cityscapes_val/student": 0.3}]
