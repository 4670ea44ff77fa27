"""What an option may be: every number has a range and is held to it, in every way that a value comes in."""

import dataclasses
import math
import subprocess
import sys
import typing
from pathlib import Path
from typing import Annotated, Any

import pytest

from dida import recipes
from dida.config import Config, changed, flat
from dida.options import Above, AtLeast, Range, check_values, flag, given, parse_size, read_command_line
from dida.options.evaluation import EvalConfig
from tests.option_types import option_types

ROOT = Path(__file__).parents[2]


def parts(kind: Any) -> tuple[Any, ...]:
    """What a type is made of: of Annotated[int | None, Range(0, 1)] the range, int and None's."""
    found = typing.get_args(kind)
    return (kind,) if not found or typing.get_origin(kind) is typing.Literal else sum(map(parts, found), ())


NUMBERS = [
    pytest.param(options, name, kind, id=f"{type(options).__name__}-{name}")
    for options in (Config(), EvalConfig(Path("run")))
    for name, kind in option_types(type(options))
    if {int, float} & set(parts(kind))
]


def replaced(options: Any, name: str, value: Any) -> Any:
    return (
        changed(options, **{name: value})
        if isinstance(options, Config)
        else dataclasses.replace(options, **{name: value})
    )


def refused(options: Any, name: str, value: Any) -> str:
    """What is said of a value that an option cannot have; the option is named."""
    with pytest.raises(ValueError, match=f"^{flag(name)}: expected ") as caught:
        check_values(replaced(options, name, value))
    return str(caught.value)


def the_range(kind: Any) -> Range:
    (found,) = [part for part in parts(kind) if isinstance(part, Range)]
    return found


def test_no_number_is_overlooked():
    by_default = {name for name, value in flat(Config()).items() if type(value) in (int, float)}
    assert {number.values[1] for number in NUMBERS if isinstance(number.values[0], Config)} == by_default
    assert {number.values[1] for number in NUMBERS if isinstance(number.values[0], EvalConfig)} == {
        "window", "stride", "workers", "batch_size"
    }  # fmt: skip


@pytest.mark.parametrize("options, name, kind", NUMBERS)
def test_every_number_has_one_range_and_only_what_is_in_it_passes(options, name, kind):
    allowed, whole = the_range(kind), int in parts(kind)
    for end, is_open, outwards in ((allowed.low, allowed.low_open, -1), (allowed.high, allowed.high_open, 1)):
        step = 1 if whole else 1e-9 * max(1, abs(end))
        assert str(the_range(kind)) in refused(options, name, end + outwards * step)
        if is_open:
            assert str(the_range(kind)) in refused(options, name, end)
        else:
            check_values(replaced(options, name, end))
        check_values(replaced(options, name, end - outwards * step))


@pytest.mark.parametrize("options, name, kind", NUMBERS)
def test_no_number_is_infinite_or_none_at_all(options, name, kind):
    for value in (math.nan, math.inf, -math.inf, 10**400, -(10**400)):
        refused(options, name, value)
    for value in (True, False, "1", "", [1], b"1", 1j):
        assert "number" in refused(options, name, value)
    if type(None) not in parts(kind):
        assert "number" in refused(options, name, None)


@pytest.mark.parametrize("options, name, kind", NUMBERS)
def test_a_count_is_whole_and_of_this_world(options, name, kind):
    if int in parts(kind):
        assert "a number in" in refused(options, name, 10**30)
        assert "a whole number" in refused(options, name, 1.5)
        assert "a whole number" in refused(options, name, float(the_range(kind).low))


@pytest.mark.parametrize(
    "allowed, inside, outside, text",
    [
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1), "a number in [0, 1]"),
        (Range(0, 1, high_open=True), (0, 0.999), (1, 2), "a number in [0, 1)"),
        (Range(0, 1, low_open=True), (0.001, 1), (0, -1), "a number in (0, 1]"),
        (Above(0), (1e-300, 1e18), (0, -1, 1e19), "a number above 0 and at most 1e+18"),
        (AtLeast(0), (0, 1e18), (-1e-300, 1e300), "a number of at least 0 and at most 1e+18"),
    ],
    ids=str,
)
def test_ranges_hold_what_they_say(allowed, inside, outside, text):
    assert all(map(allowed.holds, inside))
    assert not any(map(allowed.holds, (*outside, math.nan, math.inf, -math.inf, 10**400)))
    assert str(allowed) == text


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("self_training", 1, "true or false"),
        ("self_training", "no", "true or false"),
        ("src", None, "text"),
        ("src", Path("gta5"), "text"),
        ("data_root", "data", "a path"),
        ("out", 3, "a path"),
        ("sampling", "all", "one of cbs, rs, ils, nu"),
        ("sampling", None, "one of cbs, rs, ils, nu"),
        ("method", "mic", "one of source, dacs, daformer, dida, oracle"),
    ],
)
def test_words_and_switches_are_held_to_their_types(name, value, expected):
    assert f"expected {expected}, got {value!r}" in refused(Config(), name, value)


def test_all_that_the_options_hold_by_default_passes():
    for recipe in (*recipes.METHODS.values(), recipes.toy, recipes.synthia):
        check_values(recipe(Config()))
    check_values(EvalConfig(Path("run")))


def test_several_values_are_a_tuple():
    @dataclasses.dataclass(frozen=True)
    class Several:
        names: tuple[str, ...] = ()
        times: tuple[Annotated[float, Above(0)], ...] = ()

    check_values(Several(("a", "b"), (0.5, 2)))
    with pytest.raises(ValueError, match=r"--times: expected a number above 0 and at most 1e\+18, got \(1.0, 0\)"):
        check_values(Several(times=(1.0, 0)))
    with pytest.raises(ValueError, match="--names: expected several values, got 'a'"):
        check_values(Several("a"))


# ---- sizes ---------------------------------------------------------------------------------------------------------


def test_sizes():
    assert parse_size("1280x720", option="--x") == (1280, 720)
    assert parse_size("65536x1", option="--x") == (65536, 1)


@pytest.mark.parametrize(
    "text",
    ["", "x", "1280", "1280x", "x720", "1280x720x3", "1280X720", "-1x5", "0x5", "5x0", "+1x5", "1.5x2", " 1x2", "1x2 ",
     "1_0x2", "²x²", "٣x٣", "65537x1", "9" * 5000 + "x1", "1e3x1"],
)  # fmt: skip
def test_what_is_no_size_is_refused_by_the_name_of_its_option(text):
    with pytest.raises(ValueError, match=r"^--tgt-size: expected WIDTHxHEIGHT in pixels such as 1280x720"):
        parse_size(text, option="--tgt-size")


# ---- command lines -------------------------------------------------------------------------------------------------


def test_the_last_value_given_counts():
    assert given(["--src", "a"], "src", "z") == "a"
    assert given(["--src=a", "--src", "b"], "src", "z") == "b"
    assert given(["--src-size", "a"], "src", "z") == "z"
    assert given(["--src"], "src", "z") == "z"
    assert given(["--src=a=b"], "src", "z") == "a=b"


@pytest.mark.parametrize(
    "args, message",
    [
        (["--crop", "0"], r"--crop: expected a number in \[32, 16384\], got 0"),
        (["--phi", "1.5"], r"--phi: expected a number in \[0, 1\], got 1.5"),
        (["--src-size", "1280"], "--src-size: expected WIDTHxHEIGHT"),
        (
            ["--ignore-top", "12", "--ignore-bottom", "500"],
            "--ignore-top 12 and --ignore-bottom 500 leave no row: they",
        ),
        (["--method", "oracle", "--src", "gta5"], "--src cannot be gta5"),
        (["--method", "oracle", "--tgt", "folder:a", "--src", "folder:ab"], "--src cannot be folder:ab"),
        (
            ["--steps", "1500", "--bank-start", "1500"],
            "--steps 1500: must be above 1500, the step from which this method uses its bank",
        ),
        (["--steps", "1"], "train.py: --steps 1: must be above 1, the step from which"),
        (["--selecting", "off"], "nothing fills the bank that --instance-loss image and --regenerate-semantic smooth"),
        (["--method", "daformer", "--instance-loss", "image"], "nothing fills the bank that --instance-loss image"),
        (["--bank-fill", "2000"], "--bank-fill 2000: the steps that fill the bank come before --bank-start 1500"),
    ],
)
def test_values_no_run_could_mean_are_refused(args, message):
    with pytest.raises(SystemExit, match=message):
        recipes.from_command_line(args)


def test_a_method_without_a_bank_asks_for_no_steps_of_it():
    assert recipes.from_command_line(["--method", "daformer", "--steps", "10"]).optim.steps == 10
    random = ["--bank-init", "random", "--selecting", "off"]  # a bank that stays what it was is one
    assert recipes.from_command_line(random).instance.selecting == "off"


@pytest.mark.parametrize(
    "args, message",
    [
        (["--images", "a", "--json", "b"], "--json and --save-predictions are for scores"),
        (["--out", "a"], "--out is where --images go"),
        (["--confidence"], "--confidence is written for --images"),
        (["--size", "²x²"], "--size: expected WIDTHxHEIGHT"),
        *((["--window", str(n)], f"--window {n}: expected 0, or at least 32 pixels") for n in (1, 5, 16, 31)),
        (["--window", "-1"], r"--window: expected a number in \[0, 16384\], got -1"),
        (["--workers", "257"], r"--workers: expected a number in \[0, 256\], got 257"),
    ],
)
def test_what_evaluation_cannot_mean_is_refused(args, message):
    with pytest.raises(SystemExit, match=f"^eval.py: .*{message}"):
        read_command_line(EvalConfig, ["run", *args], "eval.py")


def test_an_unknown_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        recipes.from_command_line(["--tempreature", "0.2"])
    assert "--temperature" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--seed", str(2**64)],
        ["--seed", str(2**63)],
        ["--seed", "-1"],
        ["--crop", "3"],
        ["--workers", "-1"],
        ["--drop-path", "2"],
        ["--temperature", "inf"],
        ["--temperature", "nan"],
        ["--weight-decay", "-1"],
        ["--warmup", "-5"],
        ["--ignore-top", "-5"],
        ["--steps", "1" + "0" * 400],
        ["--tgt-size", "²x²"],
    ],
    ids=lambda args: "-".join(args)[:40],
)
def test_the_script_says_in_one_line_what_is_wrong(args):
    done = subprocess.run([sys.executable, "train.py", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode not in (0, -1)
    assert done.stderr.startswith(f"train.py: {args[0]}: expected ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_the_largest_seed_is_one():
    assert recipes.from_command_line(["--seed", str(2**63 - 1)]).run.seed == 2**63 - 1
