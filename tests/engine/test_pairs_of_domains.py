"""A few of all the pairs of domains and methods that `python -m tests.pairs` tries."""

import pytest

from tests.pairs.made import make_domains
from tests.pairs.run import Case, run_case


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, *make_domains(root)


@pytest.mark.parametrize(
    "src, tgt, method, last",
    [
        ("synthia", "acdc", "dida", "--tgt acdc"),
        ("loveda-urban", "loveda-rural", "dida", "--tgt loveda-rural"),
        ("folder", "gta5", "daformer", "--images"),
        ("urbansyn", "folder", "dacs", "--images"),
        ("gta5+synthia*2", "toy-cityscapes", "source", "--tgt toy-cityscapes"),
        ("", "mapillary", "oracle", "--tgt mapillary"),
    ],
)
def test_a_pair_trains_and_its_last_line_works(made, tmp_path, src, tgt, method, last):
    root, sources, targets = made
    case = Case(sources[-1] if src == "folder" else src, targets[-1] if tgt == "folder" else tgt, method, steps=4)
    assert last in run_case(case, root, tmp_path / "run")


def test_every_domain_is_made(made):
    _, sources, targets = made
    assert len(sources) == len(targets) > 14
    assert {"gta5", "synthia", "mapillary", "loveda-rural"} <= set(sources)
