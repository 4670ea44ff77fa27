"""What of a row is finished, and by whose source."""

import dataclasses
import json

import pytest

from bench.tables.rows import DAFORMER, DIDA, SOURCE_ONLY, TABLES, WARM
from bench.tables.trainings import Scoring, Training, minutes
from tests.bench.tables.records import put


def test_a_record_counts_while_its_options_are_those_of_the_recipes(setting):
    scoring = put(setting, DIDA, 0, 50.0)
    assert scoring.done()
    options = scoring.training.options
    for changed in (options | {"lr": 7.0}, options | {"warm_start": options["warm_start"] | {"lr": 7.0}}):
        put(setting, DIDA, 0, 50.0, options=changed)
        assert not scoring.done()
    assert not Scoring(Training(dataclasses.replace(setting, extra="--lr 7"), DIDA, 0)).done()


def test_options_of_the_bank_mean_nothing_where_there_is_none(setting):
    changed = dataclasses.replace(setting, extra="--bank-size 50 --phi 0.5")
    assert Training(changed, DAFORMER, 0).folder == Training(setting, DAFORMER, 0).folder
    assert Training(changed, DIDA, 0).folder != Training(setting, DIDA, 0).folder
    unfed = {"method": "dida", "selecting": "off", "bank_init": "random"}  # its bank is there all the same
    unfed = dataclasses.replace(DIDA, options=unfed)
    assert Training(changed, unfed, 0).folder != Training(setting, unfed, 0).folder


def test_a_precision_that_is_asked_for_is_an_option_and_the_devices_own_is_none(setting):
    asked = dataclasses.replace(DIDA, name="dida_bf16", options={"method": "dida", "precision": "bf16"})
    assert Training(setting, asked, 0).options["precision"] == "bf16"
    assert Training(setting, asked, 0).folder != Training(setting, DIDA, 0).folder
    assert Training(setting, asked, 0).warm.folder == Training(setting, DIDA, 0).warm.folder
    assert "precision" not in Training(setting, DIDA, 0).options


def test_another_source_has_other_records_and_other_runs(setting):
    changed = dataclasses.replace(setting, digest="f00d" * 4)
    put(setting, DIDA, 0, 50.0)
    assert not Scoring(Training(changed, DIDA, 0)).done()
    assert Training(changed, DIDA, 0).folder != Training(setting, DIDA, 0).folder
    assert Training(changed, DIDA, 0).warm.folder != Training(setting, DIDA, 0).warm.folder


def test_a_record_of_another_source_is_shown_if_it_has_the_rows_options(setting):
    """What the recipes were then this tree does not know."""
    older = dataclasses.replace(setting, digest="f00d" * 4)
    row = TABLES["8a"].rows[0]
    then = Training(setting, row, 0).options | {"lr": 7.0, "gone": True}
    assert put(older, row, 0, 50.0, options=then).record()["student"]["IoU"]["road"] == 50.0
    assert put(older, row, 0, 50.0, options=then | {"bank_size": 1}).record() is None
    # An option that is newer than the record was at its default.
    older_still = {name: value for name, value in Training(setting, WARM, 0).options.items() if name != "source_colour"}
    assert put(older, WARM, 0, 50.0, options=older_still).record() is not None
    assert put(older, SOURCE_ONLY, 0, 50.0, options=older_still).record() is None


def test_training_time_is_that_of_steps_however_often_it_was_interrupted(tmp_path):
    lines = [{"step": 20, "steps_per_second": 2.0}, {"step": 50, "steps_per_second": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert minutes(tmp_path) == pytest.approx((20 / 2 + 30 / 1) / 60)
