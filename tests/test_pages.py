"""What the pages say can be found: every link, path, module, option, test and make target that they name is there.

A page is Markdown that people read: README.md, CHANGELOG.md and docs/. Names are looked for in `code` and in indented
blocks. Checked is what looks like a part of this tree; what is the reader's own (data/, runs/, RUN) is not.
"""

import ast
import importlib.util
import re
import sys
import typing
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch

import dida_kernels
from dida import assemble, recipes
from dida.config import Config
from dida.data.loader import batches
from dida.options import flag
from dida.options.evaluation import EvalConfig
from dida.options.export import ExportConfig
from dida.options.report import ReportConfig
from dida.step import train_step
from tests.golden.curves import SMALL, make_files
from tests.option_types import option_types
from tests.test_paper_map import claims

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
TREE = ("dida", "dida_kernels", "csrc", "bench", "examples", "tests", "docs", ".ci")  # what a path of ours begins with
SOURCES = (".py", ".md", ".cpp", ".cu", ".h", ".toml", ".cff")  # a file that ends so is ours wherever it is said to be
README_LINES, ROAD_FILES = 150, 10

# Programs whose options are not ours to have.
FOREIGN = {"pip", "git", "make", "pytest", "ruff", "setup.py"}
# Named because it is gone.
GONE = {"bench/instance_level": "the page says which commit had it, and that its numbers are of that commit"}


@cache
def text(page: str) -> str:
    return (ROOT / page).read_text()


def spans(markdown: str) -> list[str]:
    """What stands in `code`, and every line of an indented block; not what is rendered from records."""
    markdown = re.sub(r"<!-- results:.*?<!-- /results -->", "", markdown, flags=re.S)
    indented = [line for line in markdown.splitlines() if line.startswith("    ")]
    prose = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    code = [span for paragraph in prose.split("\n\n") for span in re.findall(r"`([^`]+)`", paragraph)]
    return [" ".join(span.split()) for span in indented + code]


def words(page: str) -> list[str]:
    return [word.strip(",;:()[]\"'") for span in spans(text(page)) for word in span.split()]


# ---- links and paths -----------------------------------------------------------------------------------------------


def links(markdown: str) -> list[str]:
    """Targets of links and pictures that are no addresses of the web, anchors left out."""
    found = re.findall(r"\]\(([^)\s]+)\)", markdown) + re.findall(r"^\[[^\]]+\]: (\S+)", markdown, flags=re.M)
    return [link.partition("#")[0] for link in found if "://" not in link]


def paths(page: str) -> Iterator[str]:
    """Words that look like paths of this tree: they begin with a folder of it, or end as a source file does."""
    for word in words(page):
        word = word.partition("::")[0].rstrip("/")
        if word.split("/")[0] in TREE and "/" in word:
            yield word
        elif word.endswith(SOURCES) and not word.startswith("."):  # .py alone is a kind of file
            yield word


def is_there(path: str) -> bool:
    """Whether a path exists; one without a folder may be anywhere in the tree."""
    if (ROOT / path).exists():
        return True
    return "/" not in path and any(next((ROOT / top).rglob(path), None) for top in TREE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert [link for link in links(text(page)) if link and not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    assert sorted({path for path in paths(page) if not is_there(path)} - GONE.keys()) == []


@pytest.mark.parametrize("path", GONE)
def test_what_is_said_to_be_gone_is_named_and_gone(path):
    assert any(path in paths(page) for page in PAGES)
    assert not is_there(f"{path}/__init__.py")


def test_the_house_names_every_folder_of_source():
    tops = [ROOT / top for top in TREE if top not in ("tests", ".ci")]
    folders = {path.parent.relative_to(ROOT).as_posix() for top in tops for path in top.rglob("*.py")}
    named = {span.split()[0].rstrip("/") for span in spans(text("docs/contributing.md")) if "/" in span.split()[0]}
    assert folders | {"csrc", "docs", "tests/golden", "tests/reference"} <= named | {"dida", "dida_kernels", "bench"}


# ---- modules, tests, make targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist_and_those_to_be_run_can_be(page):
    for module in re.findall(r"-m ((?:dida|dida_kernels|bench|tests)[\w.]*)", "\n".join(spans(text(page)))):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("page", PAGES)
def test_tests_exist(page):
    functions = set(re.findall(r"^def (test_\w+)", "\n".join(p.read_text() for p in ROOT.glob("tests/**/*.py")), re.M))
    named = {word.partition("::")[2] or word for word in words(page) if re.fullmatch(r"(\S+::)?test_\w+", word)}
    assert named <= functions


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"^make ([a-z-]+)", "\n".join(spans(text(page))), re.M)) <= targets


# ---- options -------------------------------------------------------------------------------------------------------


def options_of(kind: type) -> dict[str, typing.Any]:
    """Flag -> type, groups dissolved."""
    return {flag(name): hint for name, hint in option_types(kind)}


@cache
def written_in(top: str) -> frozenset[str]:
    """Flags that programs below a folder declare: for argparse in quotes, for tyro as fields of their options."""
    found = set()
    for path in (ROOT / top).rglob("*.py"):
        found |= set(re.findall(r'"(--[a-z][a-z-]*)"', path.read_text()))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
                found |= {flag(line.target.id) for line in node.body if isinstance(line, ast.AnnAssign)}
            elif isinstance(node, ast.FunctionDef) and node.name == "main":
                found |= {flag(argument.arg) for argument in node.args.args}
    return frozenset(found)


def program(span: str) -> str | None:
    """The program that a line of code starts, without its folder; None for a line that starts none."""
    match = re.match(r"(?:\w+=\S+ )*(?:\S*python(?: -m)? )?(\S+)", span)
    name = match[1].rsplit("/")[-1] if match else ""
    return None if name.startswith("-") or not match else name


def known(span: str) -> set[str] | None:
    """The flags that may stand in a piece of code; None where they are another program's."""
    name, train, score = program(span), set(options_of(Config)), set(options_of(EvalConfig))
    commands = options_of(ExportConfig) | options_of(ReportConfig)
    written = {name if on else name.replace("--", "--no-") for name in commands for on in (True, False)}
    if name in FOREIGN:
        return None
    if name == "train.py":
        return train
    if name == "eval.py":
        return score
    if (name and name.startswith("bench.")) or span.startswith("python bench/"):
        return set(written_in("bench"))
    if name and name.startswith("tests."):
        return set(written_in("tests"))
    return train | score | written | written_in("bench") | written_in("dida")


def said_to_ours(span: str) -> str:
    """Without what is said to torchrun, which starts our programs, and to SLURM."""
    return re.sub(r"^#SBATCH .*|^.*torchrun .*?(?=train\.py|eval\.py)", "", span)


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page):
    for span in map(said_to_ours, spans(text(page))):
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span))
        allowed = known(span.partition("#")[0])
        assert allowed is None or flags <= allowed | {"--help"}, span


@pytest.mark.parametrize("page", PAGES)
def test_words_given_to_options_are_choices(page):
    """`--sampling cbs`, and `a|b|c` for any of them; capitals stand for something of the reader's."""
    choices = {name: typing.get_args(hint) for name, hint in options_of(Config).items()
               if typing.get_origin(hint) is typing.Literal}  # fmt: skip
    for name, value in re.findall(r"(--[a-z][a-z-]*)[ =]([a-z0-9|]+)", "\n".join(spans(text(page)))):
        assert name not in choices or set(value.split("|")) <= set(choices[name]), (name, value)


@pytest.mark.parametrize("page", PAGES)
def test_train_takes_the_commands_that_are_shown(page):
    for span in spans(text(page)):
        command = span.partition("#")[0].split()
        if command[:2] == ["python", "train.py"] and not any(word.isupper() for word in command):
            recipes.from_command_line(command[2:])


# ---- what a page says of the code and of numbers -------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(text("README.md").splitlines()) <= README_LINES


def test_the_paper_map_says_where_equations_are():
    """The README's table names the function of each equation, and each equation of the paper stands in it once."""
    said = re.findall(r"(Eq\. \(\d+\)|Algorithm \d+) `(\w+)`", text("README.md"))
    assert sorted(said) == sorted((equation, where.partition(":")[2]) for equation, where in claims())


def test_the_page_of_the_kernels_has_every_op():
    rows = [line for line in text("docs/kernels.md").splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} == set(dida_kernels.OPS)


@pytest.mark.parametrize("section", re.split(r"^## ", text("docs/performance.md"), flags=re.M)[1:])
def test_numbers_of_performance_stand_in_the_files_that_are_named(section):
    section = re.sub(r"<!-- results:.*?<!-- /results -->", "", section, flags=re.S)  # rendered, see test_report.py
    files = [ROOT / "docs" / link for link in links(section) if "bench/results/" in link]
    held = numbers("\n".join(path.read_text() for path in files))
    assert numbers(re.sub(r"`[^`]*`|\]\([^)]*\)", "", section)) - held == set()


def numbers(markdown: str) -> set[float]:
    """Every number, of whatever notation: 1,643 is 1643, and 738.990 is 738.99."""
    found = re.findall(
        r"(?<![\w.])\d[\d,]*(?:\.\d+)?", re.sub(r"\bsm_\d+|\b(?:B|mit_b)\d\b|MiT-B\d|float\d+", "", markdown)
    )
    return {float(number.replace(",", "")) for number in found}


def test_a_typed_number_is_seen():
    assert numbers("11,144 MiB, 738.990 ms, K = 300.") == {11144, 738.99, 300}
    assert numbers("sm_80, float32, MiT-B5") == set()


# ---- the road ------------------------------------------------------------------------------------------------------


def files_from_disk_to_loss(folder: Path) -> set[str]:
    """The files of the packages whose functions run in one step of DIDA, from the picture on disk to the last loss."""
    make_files(folder)
    options = SMALL | {"data_root": folder, "weights": folder / "mit_b0.pth", "bank_init": "random", "bank_start": 0}
    config = recipes.from_command_line(list(chain(*((flag(name), str(value)) for name, value in options.items()))))
    parts = assemble.assemble(config)
    stream = batches(parts.pairs, batch_size=2, start=0, stop=1, workers=0, device=torch.device("cpu"))
    seen: set[str] = set()

    def note(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if (
            event == "call"
            and path.is_relative_to(ROOT)
            and path.relative_to(ROOT).parts[0] in ("dida", "dida_kernels")
        ):
            seen.add(path.relative_to(ROOT).as_posix())

    # The losses are there when the optimizer steps: what follows is no part of the road.
    parts.state.optimizer.register_step_pre_hook(lambda *_: sys.setprofile(None))
    sys.setprofile(note)
    try:
        with dida_kernels.backend("equation"):
            batch, _ = next(stream)
            train_step(parts.state, batch, parts.method)
    finally:
        sys.setprofile(None)
    return seen


def test_the_road_from_disk_to_loss_is_named_in_full(tmp_path):
    """The README names the files that a reader opens, at most ten; contributing names every other one that runs."""
    readme, contributing = (" ".join(text(page).split()) for page in ("README.md", "docs/contributing.md"))
    opened = re.findall(r"\]\(([^)]+)\)", re.search(r"From disk to loss, ten files: (.*?)\. ", readme)[1])
    beside = re.findall(
        r"`([^`]+)`", re.search(r"Beside the ten files.*?: (.*?) What brings a run there", contributing)[1]
    )
    assert len(opened) <= ROAD_FILES
    assert sorted(opened + beside) == sorted(files_from_disk_to_loss(tmp_path))


# ---- the version ---------------------------------------------------------------------------------------------------


def test_one_version_and_one_paper():
    version = re.search(r'^version = "(.+)"', text("pyproject.toml"), re.M)[1]
    citation = text("CITATION.cff")
    assert re.search(r"^version: (.+)", citation, re.M)[1] == version
    assert f"\n## [{version}] - " in text("CHANGELOG.md")
    title = re.search(r"preferred-citation:.*?title: \"(.+?)\"", citation, re.S)[1]
    assert text("README.md").count(title) == 2  # where it is introduced, and in the BibTeX
    assert "Yao, Dongyu and Li, Boheng" in text("README.md")


# ---- these tests see what they are for -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "markdown, found",
    [
        ("[a](b.md), ![c](../d.png#e), [f](https://g.h)", ["b.md", "../d.png"]),
        ("[a]: b/c.md", ["b/c.md"]),
    ],
)
def test_links_are_seen(markdown, found):
    assert links(markdown) == found


def test_code_is_seen():
    assert spans("a `--b\nc` d\n\n    python e.py --f\n\n<!-- results:g -->\n`h`\n<!-- /results -->") == [
        "python e.py --f",
        "--b c",
    ]


@pytest.mark.parametrize(
    "span, wrong",
    [
        ("python train.py --tgtt x", "--tgtt"),
        ("python train.py --images x", "--images"),  # of eval.py
        ("python eval.py RUN --method dida", "--method"),  # of train.py
        ("python -m bench.tables --phi 1", "--phi"),
        ("--no-such-option", "--no-such-option"),
    ],
)
def test_an_option_of_another_program_is_seen(span, wrong):
    assert wrong not in known(span)


def test_options_of_every_kind_of_program_are_known():
    assert {"--bank-size", "--src"} <= known("python train.py")
    assert {"--render", "--slots"} <= known("python -m bench.tables")
    assert {"--jobs", "--data-root"} <= written_in("dida")
    assert known("git clone --depth 1 .") is None
    assert importlib.util.find_spec("dida.config") is not None
