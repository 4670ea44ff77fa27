"""From a trained run to something in use, where nothing is but the wheel: train, score, report, label, export, share.

    python .ci/try_use.py dist

Sizes are tiny: what is tried is that every step finds what the one before it left. Label maps of the exported network,
made in another environment that holds onnxruntime, NumPy and Pillow alone, must be those of the network.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from try_packages import asked_for, declared, environment, pip_install, run

ROOT = Path(__file__).resolve().parent.parent
DRAW = """
from pathlib import Path
from dida.data.toy import Counts, generate
generate(Path("data"), counts=Counts(source=8, source_val=1, target=4, val=3, test=1))
"""
TRAIN = """
train --src toy-gta5 --tgt toy-cityscapes --steps 6 --bank-start 3 --bank-fill 2 --bank-every 1 --bank-size 40
--embed-dim 16 --crop 64 --batch-size 2 --workers 0 --log-every 3 --panel-every 0 --rare-class-pixels 1 --device cpu
--out run
"""
SHARE = """
import dida, numpy
network = dida.load("run", device="cpu")
network.save_pretrained("shared")
again = dida.load("shared", device="cpu")
picture = "pictures/a.png"
assert numpy.array_equal(network(picture), again(picture))
print(dida.__version__, len(again.classes), "classes")
"""
COMPARE = """
import numpy
from PIL import Image
for name in "ab":
    ours, theirs = (numpy.asarray(Image.open(f"{folder}/{name}.png")) for folder in ("labelled/train_ids", "by_onnx"))
    share = (ours != theirs).mean()
    assert share < 0.001, f"{name}: {share:.2%} of the pixels differ"
"""


def main(dist: Path) -> None:
    """Raises CalledProcessError for the first step that fails."""
    (wheel,) = dist.glob("*.whl")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary).resolve()
        python = environment(home / "of-wheel", asked_for(declared(wheel), extra="onnx"))
        pip_install(python, wheel)
        dida = python.with_name("dida")
        bare = environment(home / "of-onnxruntime", asked_for(["onnxruntime", "numpy", "pillow"]))

        step("draw", python, "-c", DRAW, cwd=home)
        pictures = sorted((home / "data/toy/cityscapes/leftImg8bit/val").rglob("*.png"))
        (home / "pictures").mkdir()
        for name, path in zip("ab", pictures, strict=False):
            (home / f"pictures/{name}.png").write_bytes(path.read_bytes())
        step("train", dida, *TRAIN.split(), cwd=home)
        step("score", dida, "eval", "run", "--json", "run/val.json", "--workers", "0", cwd=home)
        step("report", dida, "report", "run", "--workers", "0", "--device", "cpu", cwd=home)
        assert "<svg" in (home / "run" / "report.html").read_text(), "the report has no curves"
        step("label", dida, "eval", "run", "--images", "pictures", "--out", "labelled", cwd=home)
        step("export", dida, "export", "run", "--format", "onnx", "--checks", "4", cwd=home)
        example = ROOT / "examples" / "label_with_onnx.py"
        step("label with onnxruntime", bare, str(example), "run/network.onnx", "pictures", "by_onnx", cwd=home)
        step("compare", bare, "-c", COMPARE, cwd=home)
        step("share and load", python, "-c", SHARE, cwd=home)
        assert "| mIoU, 19 classes |" in (home / "shared" / "README.md").read_text(), "the card has no scores"


def step(name: str, program: Path, *arguments: str, cwd: Path) -> None:
    """Run a program, and say how long it took and what it said last."""
    begin = time.monotonic()
    try:
        said = run(program, *arguments, cwd=cwd, OMP_NUM_THREADS="1").strip().splitlines()
    except subprocess.CalledProcessError as error:
        print(error.stdout)
        raise
    print(f"{name} ({time.monotonic() - begin:.0f} s): {said[-1] if said else 'done'}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
