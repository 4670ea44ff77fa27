"""What the numbers of a log line mean, for people: the legend of a run's lines and of its report.

Only the standard library is imported here.
"""

LOSS = "loss/"  # prefix of loss names among the scalars
WATCH = "watch/"  # ... and of what is seen when a run is looked at (dida/run/watch.py)
SHARE = WATCH + "share/"  # ... of each class, its share of the target's pixels

# Scalar of metrics.jsonl -> (a word for it, what it is).
TERMS: dict[str, tuple[str, str]] = {
    "loss/source": ("source", "cross-entropy on source pictures, of which the labels are known"),
    "loss/feature": ("feature", "distance of the encoder's features to those it had from ImageNet"),
    "loss/target": ("target", "cross-entropy of mixed pictures with pseudo-labels, weighted by confidence"),
    "loss/instance": ("instance", "instance loss: pixels against the bank's vectors of all classes"),
    "pseudo_coverage": ("confident", "share of target pixels that the teacher is surer of than the threshold"),
    "gradient_norm": ("gradient", "norm of the gradient of all losses together"),
    "weight_norm": ("weights", "norm of the student's weights"),
    "bank_fill": ("bank", "share of the bank's slots that hold a vector"),
    "lr": ("lr", "learning rate of the encoder"),
    "lr_head": ("lr of the head", "learning rate of the head"),
    "steps_per_second": ("it/s", "steps a second"),
    "data_wait": ("wait", "share of the time that a step waited for pictures"),
    "watch/agreement": ("agree", "share of the target's pixels that student and teacher label alike"),
    "watch/confident": ("sure", "share of the target's pixels that the teacher is surer of than the threshold"),
    "watch/entropy": ("entropy", "how unsure the student is of the target, as a share of the most there can be"),
    "watch/classes": ("classes", "how many equally frequent classes the teacher's labels of the target amount to"),
    "watch/drift": ("drift", "share of the target that changed its class since the last look, at least"),
    "memory_gib": ("mem", "most memory so far, of the GPU if there is one, in GiB"),
}


def is_off(name: str, value: float) -> bool:
    """Whether a term is exactly zero, so that it is off or has not begun: a loss, or the bank."""
    return value == 0.0 and (name.startswith(LOSS) or name == "bank_fill")


def word_of(name: str) -> str:
    """How a scalar is called on a line."""
    if network := _scored(name)[1]:
        return f"mIoU of the {network}"
    return TERMS[name][0] if name in TERMS else name.removeprefix(LOSS)


def meaning_of(name: str) -> str:
    """What a scalar is, in words; its name again where nobody has said."""
    if place := _scored(name)[0]:
        return f"on {place}"
    return TERMS[name][1] if name in TERMS else name


def _scored(name: str) -> tuple[str, str]:
    """("DOMAIN, SPLIT", "student" or "teacher") of a look's score; two times nothing of any other scalar."""
    place, _, network = name.removeprefix(WATCH).rpartition("/")
    if not name.startswith(WATCH) or name.startswith(SHARE) or network not in ("student", "teacher"):
        return "", ""
    domain, _, split = place.rpartition("_")  # the name of a domain may hold anything
    return f"{domain}, {split}", network
