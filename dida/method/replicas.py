"""Passes of several processes: each sees its own images, and the gradient is the mean of theirs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dida.machine.distributed import lost_peers_are_named
from dida.method.passes import Believed, Method


@dataclass(frozen=True)
class Replicated:
    """A pass whose student is one of several equal ones. After the last pass of a step all have the same gradient."""

    own: Callable[..., Any]
    student: DistributedDataParallel
    is_last: bool

    def __call__(self, student: nn.Module, *rest: Any) -> Any:
        assert student is self.student.module
        with nullcontext() if self.is_last else self.student.no_sync(), lost_peers_are_named():
            return self.own(self.student, *rest)


def replicated(method: Method[Believed], student: nn.Module) -> Method[Believed]:
    """A method whose gradients are averaged over processes, once a step. To be called by all of them, `student` equal.

    Each pass must use every parameter. The networks' norms and draws are `over_all_processes`, so no buffer differs.
    """
    shared = DistributedDataParallel(student, broadcast_buffers=False, gradient_as_bucket_view=True)
    own: tuple[Callable[..., Any], ...] = (method.source_pass, *method.target_passes)
    source, *target = (Replicated(each, shared, is_last=each is own[-1]) for each in own)
    return replace(method, source_pass=source, target_passes=tuple(target))
