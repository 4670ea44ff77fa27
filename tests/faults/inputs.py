"""Bad inputs of every kind, one process each, and what came of them."""

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import data, operations, options, outputs, saved
from tests.faults.places import Places
from tests.faults.trial import Case, Outcome, tried
from tests.page_block import tried_on

__all__ = ["ROOMS", "Count", "table", "tried_in"]
ROOMS: dict[str, Callable[[Places], Iterator[Case]]] = {
    "options": options.option_cases,
    "config": options.config_cases,
    "data": data.data_cases,
    "checkpoints": saved.checkpoint_cases,
    "weights": saved.weight_cases,
    "ops": operations.operation_cases,
    "outputs": outputs.output_cases,
    "programs": outputs.program_cases,
}


@dataclass
class Count:
    """Outcomes of a room."""

    room: str
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def wrong(self) -> int:
        return self.outcomes.total() - self.outcomes["refused"] - self.outcomes["taken"]


def tried_in(rooms: list[str], folder: Path, jobs: int) -> list[Count]:
    """Try all cases of these rooms; what is not right is printed as it comes."""
    if not rooms:
        return []
    folder.mkdir()
    places, counts = Places.make(folder), {room: Count(room) for room in rooms}
    cases = [case for room in rooms for case in ROOMS[room](places)]
    for outcome in _all_tried(cases, jobs):
        count, case = counts[outcome.case.room], outcome.case
        count.outcomes[outcome.what] += 1
        if not outcome.right:
            print(f"{case.room}, {case.name}: {outcome.what}\n{outcome.said[-1000:]}", flush=True)
    for count in counts.values():
        print(f"{count.room}: {dict(count.outcomes)}", flush=True)
    return list(counts.values())


def _all_tried(cases: list[Case], jobs: int) -> Iterator[Outcome]:
    """By several processes, which find the cases where they were when they were forked: no case can be sent."""
    fork = multiprocessing.get_context("fork")
    outcomes = fork.SimpleQueue()

    def every(job: int) -> None:
        for number in range(job, len(cases), jobs):
            outcome = tried(cases[number])
            outcomes.put((number, outcome.what, outcome.said))

    workers = [fork.Process(target=every, args=(job,)) for job in range(jobs)]
    for worker in workers:
        worker.start()
    for _ in cases:
        number, what, said = outcomes.get()
        yield Outcome(cases[number], what, said)
    for worker in workers:
        worker.join()


def table(counts: list[Count]) -> str:
    """As Markdown."""
    lines = [
        "| inputs | tried | refused in one message | taken, rightly | traceback | silent | hung | another fault |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total = Count("all")
    for count in counts:
        total.outcomes += count.outcomes
    for count in (*counts, total):
        found = count.outcomes
        named = [found[what] for what in ("traceback", "silent", "hung")]
        lines.append(
            f"| {count.room} | {found.total()} | {found['refused']} | {found['taken']} | "
            + " | ".join(map(str, (*named, count.wrong - sum(named))))
            + " |"
        )
    return "\n".join(lines) + f"\n\n{tried_on()}.\n"
