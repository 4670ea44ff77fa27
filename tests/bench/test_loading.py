"""The bench of loading: pictures of real weight, and the arithmetic of its last columns."""

import re
from pathlib import Path

import numpy as np

from bench.loading import PUBLISHED, LoadingOptions, loading_lines, loading_report, make_files
from dida.data import domains
from dida.data.image_file import read_image, read_label


def test_made_files_are_read_as_the_data_set_and_weigh_as_much(tmp_path):
    synthia = next(data for data in PUBLISHED if data.name == "synthia")
    make_files(tmp_path, synthia, 1)
    domain = domains.labelled("synthia", tmp_path, "train")
    assert read_image(domain.images[0]).shape[1::-1] == synthia.size
    assert len(np.unique(read_label(domain.labels[0], domain.raw))) > 8
    assert 1.2 < Path(domain.images[0]).stat().st_size / (synthia.size[0] * synthia.size[1]) < 1.6


def test_workers_and_labels_are_counted_from_the_times():
    found = {data.name: {"count the label": 4.0} for data in PUBLISHED} | {"a to b": {"sample, decoded": 80.0}}
    lines = list(loading_lines(found, LoadingOptions(batch_size=2, steps=(0.2, 0.1, 0.03))))
    sample = next(line for line in lines if "sample, decoded" in line)
    assert "12.5" in sample  # a second
    assert "1 for 0.2 s, 2 for 0.1 s, 6 for 0.03 s" in sample
    assert any(line.endswith("24966 labels of gta5, 2 cores: 50 s (extrapolated)") for line in lines)


def test_what_is_kept_is_a_row_a_stage():
    found = {data.name: {"count the label": 4.0} for data in PUBLISHED}
    found["gta5 to cityscapes"] = {"sample, cached": 6.0}
    text = loading_report({"header": {"commit": "abc"}, "files": 4, "passes": 5, "ms": found})
    assert "| gta5 to cityscapes | sample, cached  | 6.00 |" in text
    assert re.search(r"\| gta5 +\| 24966 +\| 50 +\|", text)
    assert "- commit: abc" in text
