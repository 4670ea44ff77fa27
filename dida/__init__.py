"""Domain-adaptive semantic segmentation: train with `dida train`, use what was trained with `dida.load`.

    import dida
    network = dida.load("runs/...")          # a run, a checkpoint, a published file, user/name on the hub
    labels = network("street.png")           # [H, W] uint8: places in network.classes

Nothing slow is imported before it is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dida.data.classes import ClassSet
    from dida.use.network import Network, load

__all__ = ["ClassSet", "Network", "__version__", "load"]

_HOMES = {"ClassSet": "dida.data.classes", "Network": "dida.use.network", "load": "dida.use.network"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dida-segmentation")
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dida' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
