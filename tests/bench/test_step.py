"""The step bench on a tiny network: the stages are all of the step, each is what it says, and no step is changed."""

import dataclasses
import json

import pytest
import torch

from bench import step
from dida.assemble import build_pairs
from dida.data.classes import CITYSCAPES_CLASSES
from dida.data.loader import batches
from dida.data.toy import Counts, generate
from dida.step import train_step

CPU = torch.device("cpu")
SLOTS, STEPS = 20, 4


def contenders() -> list[step.Contender]:
    config = step.config_of("mit_b0", 64, STEPS)
    return step.build_contenders(config, [SLOTS], CITYSCAPES_CLASSES, torch.ones(len(CITYSCAPES_CLASSES)), CPU)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    generate(root, counts=Counts(source=2, source_val=1, target=2, val=1, test=1))
    return build_pairs(step.config_of("mit_b0", 64, STEPS, root))[0]


@pytest.fixture(scope="module")
def rows(pairs) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "WARMUP", 1)
        return step.survey_steps(contenders(), pairs, ["fp32", "bf16"], STEPS, 0, CPU)


def test_every_row_has_every_field(rows):
    assert [(row["method"], row["K"], row["precision"]) for row in rows] == [
        ("daformer", 0, "fp32"),
        ("dida", SLOTS, "fp32"),
        ("daformer", 0, "bf16"),
        ("dida", SLOTS, "bf16"),
    ]
    for row in rows:
        assert set(row["stages"]) == set(step.STAGES)
        assert row["steps"] == STEPS
        assert row["images"] == 4
        assert row["images_per_second"] == pytest.approx(4e3 / row["step_ms"])
        assert row["low"] <= row["high"]
        assert row["peak_bytes"] > 0
    assert json.loads(json.dumps(rows)) == rows


def test_the_stages_are_the_whole_step(rows):
    """The whole is taken by a clock of its own, so a stretch that no stage covers would be missing."""
    for row in rows:
        assert sum(row["stages"].values()) == pytest.approx(row["step_ms"], rel=0.03)


def test_what_only_dida_does_costs_only_dida(rows):
    daformer, dida = rows[:2]
    assert (daformer["more_time_percent"], daformer["more_bytes"]) == (0, 0)
    assert dida["more_bytes"] > 0
    assert len(dida["turn_ms"]) == len(daformer["turn_ms"]) > 1


def test_a_host_that_is_slow_for_a_turn_is_no_difference():
    daformer = {"turn_ms": [100.0, 200.0, 100.0], "peak_bytes": 7}
    dida = {"turn_ms": [105.0, 210.0, 155.0], "peak_bytes": 9}
    step.add_differences([daformer, dida])
    assert dida["more_time_percent"] == pytest.approx(5)
    assert (daformer["more_time_percent"], daformer["more_bytes"], dida["more_bytes"]) == (0, 0, 2)


def test_the_report_takes_every_number_from_the_rows(rows):
    text = step.step_report({"header": {"commit": "abc"}, "setting": {"backbone": "mit_b0"}, "rows": rows})
    for row in rows:
        assert f"{row['images_per_second']:.2f}" in text
        assert f"{row['more_time_percent']:+.1f} %" in text


def with_believe(method, field: str, strategy):
    return dataclasses.replace(method, believe=dataclasses.replace(method.believe, **{field: strategy}))


def with_mixed_pass(method, field: str, strategy):
    (mixed,) = method.target_passes
    return dataclasses.replace(method, target_passes=(dataclasses.replace(mixed, **{field: strategy}),))


def with_field(method, field: str, strategy):
    return dataclasses.replace(method, **{field: strategy})


@pytest.mark.parametrize(
    "find, put, field, stage",
    [
        (lambda method: method, with_field, "source_pass", "source"),
        (lambda method: method.believe, with_believe, "weak_view", "teacher"),
        (lambda method: method.believe, with_believe, "regenerate", "regeneration"),
        (lambda method: method.believe, with_believe, "label_target", "regeneration"),
        (lambda method: method.target_passes[0], with_mixed_pass, "mixed_view", "mixed"),
        (lambda method: method.target_passes[0], with_mixed_pass, "instance_loss", "instance loss"),
        (lambda method: method, with_field, "update_teacher", "EMA"),
        (lambda method: method, with_field, "update_bank", "bank"),
    ],
)
def test_a_slow_part_shows_in_its_stage(pairs, monkeypatch, find, put, field, stage):
    """By a clock that only this part moves."""
    now = [0.0]
    monkeypatch.setattr(step.time, "perf_counter", lambda: now[0])
    _, dida = contenders()
    function = getattr(find(dida.method), field)

    def slow(*args, **options):
        now[0] += 0.5
        return function(*args, **options)

    slowed = dida._replace(method=put(dida.method, field, slow))
    stream = batches(pairs, batch_size=2, start=0, stop=1, workers=0, device=CPU)
    block = step.take_steps(slowed, stream, 1, CPU)
    assert block == step.Stretch([dict.fromkeys(step.STAGES, 0.0) | {stage: 500.0}], 0.5)


def test_watching_changes_no_bit(pairs):
    batch, _ = next(batches(pairs, batch_size=2, start=0, stop=1, workers=0, device=CPU))
    losses = []
    for watch in (False, True):
        _, dida = contenders()
        method = step.watched(dida.method, step.Clock(CPU)) if watch else dida.method
        losses.append([train_step(dida.state, batch, method).losses for _ in range(2)])
    assert losses[0] == losses[1]


def test_a_measured_interval_holds_whole_numbers_of_bank_updates():
    assert [step.bank_every(steps) for steps in (50, 100, 4, 30)] == [50, 50, 2, 10]
