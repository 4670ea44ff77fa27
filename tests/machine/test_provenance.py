"""What a number depends on besides the options is written down, and told apart where it differs."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import torch

from dida.machine.provenance import SOURCE, TREE, environment, package_version, source_commit, source_digest


def test_the_commit_is_that_of_the_checkout_or_unknown(tmp_path, monkeypatch):
    monkeypatch.delenv("DIDA_COMMIT", raising=False)
    assert source_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()  # not a repository that git can read
    assert source_commit(tmp_path) is None
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        assert len(source_commit(checkout)["commit"]) == 40
        monkeypatch.setenv("DIDA_COMMIT", "0123")  # of copies only
        assert source_commit(checkout)["commit"] != "0123"


def test_results_that_change_are_no_change_of_the_source(tmp_path):
    def git(*command):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)

    (tmp_path / "bench/results").mkdir(parents=True)
    files = tmp_path / "bench/results/record.json", tmp_path / "code.py"
    for file in files:
        file.write_text("1")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "all")
    files[0].write_text("2")
    assert source_commit(tmp_path)["dirty"] is False
    files[1].write_text("2")
    assert source_commit(tmp_path)["dirty"] is True


def test_asking_git_takes_no_lock_that_a_signal_would_leave(tmp_path):
    index = tmp_path / ".git/index"
    for command in (["init", "--quiet"], ["add", "."]):
        (tmp_path / "code.py").write_text("1")
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    mail = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), *mail, "commit", "--quiet", "--message", "all"], check=True)
    os.utime(tmp_path / "code.py", (1, 1))  # what git would write down that it has looked at again
    before = index.read_bytes()
    assert source_commit(tmp_path)["dirty"] is False
    assert index.read_bytes() == before


def test_a_copy_without_git_is_of_the_commit_that_it_was_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DIDA_COMMIT", "0123")
    assert source_commit(tmp_path) == {"commit": "0123", "dirty": False}


def test_the_environment_is_json():
    json.dumps(environment(), allow_nan=False)


def test_the_environment_says_what_ran_and_where():
    found = environment()
    assert found["digest"] == source_digest()
    assert found["torch"] == torch.__version__
    assert {"git", "argv", "python", "triton", "cuda", "gpu", "cpu", "cores", "platform", "kernels"} <= set(found)
    assert package_version("torch") is not None
    assert package_version("no-such-package") is None


def test_the_digest_is_of_all_that_trains_and_scores(tmp_path):
    """Any byte or name of the source changes it, whatever else lies in the checkout does not."""
    for name in SOURCE:
        copy = shutil.copytree if (TREE / name).is_dir() else shutil.copy
        copy(TREE / name, tmp_path / name)
    digest = source_digest(tmp_path)
    assert digest == source_digest() != source_digest(tmp_path / "dida")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "more.py").write_text("x = 1")
    (tmp_path / "dida" / "notes.txt").write_text("no source")
    assert source_digest(tmp_path) == digest
    seen = {digest}
    for path in ("train.py", "eval.py", "dida/step.py", "dida_kernels/equations.py", "csrc/new.cu"):
        with (tmp_path / path).open("a") as file:
            file.write("\n")
        seen.add(source_digest(tmp_path))
    assert len(seen) == 6
    (tmp_path / "dida" / "step.py").rename(tmp_path / "dida" / "stride.py")
    assert source_digest(tmp_path) not in seen
