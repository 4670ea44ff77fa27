"""python -m tests.bench.tables.chain FOLDER: a runner of three trainings in miniature, to be killed at any moment.

It imports nothing that takes long: a runner that is killed while it imports shows nothing.
"""

import sys
from pathlib import Path

from bench.tables.jobs import Jobs, Task
from dida.machine.signals import Signals

STEPS = 12
# Every task appends its steps, one by one, and goes on where it stopped.
WORKER = """
import sys, time
from pathlib import Path
path, steps = Path(sys.argv[1]), int(sys.argv[2])
done = len(path.read_text().split()) if path.exists() else 0
for step in range(done, steps):
    time.sleep(0.03)
    with path.open("a") as file:
        file.write(f"{step} ")
"""


def chain(folder: Path) -> list[Task]:
    """Two workers, and a third that needs the first."""

    def worker(name: str, after: Task | None = None) -> Task:
        path = folder / name
        command = [sys.executable, "-c", WORKER, str(path), str(STEPS)]
        done = lambda: path.exists() and len(path.read_text().split()) >= STEPS  # noqa: E731
        return Task(name, lambda: command, done, folder / f"{name}.log", after)

    first = worker("first")
    return [first, worker("second"), worker("third", first)]


if __name__ == "__main__":
    signals = Signals()
    Jobs(chain(Path(sys.argv[1])), 2, {}).run(signals)
    sys.exit(130 if signals.caught else 0)
