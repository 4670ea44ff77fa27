"""Starting from another network, which may tell other classes apart: what `--init` takes over."""

from torch import Tensor, nn

from dida.batch import IGNORE
from dida.config import ModelConfig
from dida.data.classes import ClassSet
from dida.options import flag
from dida.state import load_weights
from dida.use.stored import Stored, read_stored

CLASSIFIER = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")  # of a Segmentor; a row per class


def start_from_init(student: nn.Module, model: ModelConfig, class_set: ClassSet) -> str:
    """Give a student the weights of the network `model.init`, in place. Returns what was taken, in words.

    Raises FileNotFoundError, or ValueError for what is no network or does not fit.
    """
    assert model.init is not None  # or there is nothing to start from
    try:
        stored = read_stored(model.init)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--init {error}") from error
    except ValueError as error:
        raise ValueError(f"--init {error}") from error
    weights, taken = _for_classes(stored, class_set, student)
    source = f"--init {stored.path}"
    expected = f"{model.backbone} with --embed-dim {model.embed_dim} and --head {model.head}"
    theirs, names = stored.config.model, ("backbone", "embed_dim", "head")
    if stored.family and any(getattr(theirs, name) != getattr(model, name) for name in names):
        options = " ".join(f"{flag(name)} {getattr(theirs, name)}" for name in names)
        raise ValueError(f"{source}: not the weights of {expected}; say {options} to start from it")
    load_weights(student, weights, source=source, expected=expected)
    return f"{source}: {taken}"


def _for_classes(stored: Stored, class_set: ClassSet, student: nn.Module) -> tuple[dict[str, Tensor], str]:
    """The weights of a stored student for another class set, and what was taken in words.

    Rows of the classifier are matched by name; classes that the other lacks keep the rows of `student`. Of a file with
    one network alone, that one is taken.
    """
    weights, theirs = dict(next(iter(stored.weights.values()))), stored.class_set
    mine_of = class_set.translation(theirs)[: len(theirs)]
    rows = [(int(mine), row) for row, mine in enumerate(mine_of) if mine != IGNORE]
    own = student.state_dict()
    for name in CLASSIFIER:
        matched = own[name].clone()
        if name in weights and weights[name].shape[1:] == matched.shape[1:]:  # else load_weights says what does not fit
            for mine, row in rows:
                matched[mine] = weights[name][row]
            weights[name] = matched
    found = {mine for mine, _ in rows}
    new = [name for c, name in enumerate(class_set.names) if c not in found]
    dropped = [theirs.names[row] for row, mine in enumerate(mine_of) if mine == IGNORE]
    parts = [f"encoder, head and {len(found)} of {len(class_set)} classes taken"]
    parts += [f"new: {', '.join(new)}"] if new else []
    parts += [f"left out: {', '.join(dropped)}"] if dropped else []
    return weights, "; ".join(parts)
