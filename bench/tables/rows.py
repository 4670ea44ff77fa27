"""What is measured: the rows of the paper's tables, each a set of train.py's options, with the paper's number beside.

A row is written down once, whatever data it runs on. Of the paper only GTA5 -> Cityscapes and SYNTHIA -> Cityscapes
exist; the toy runs the same rows and its numbers are not to be compared with the paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dida.use.paper import MEAN_IOU

TrainOptions = Mapping[str, Any]  # of train.py, by name


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    name: str  # of its records: file-safe, and never used for other options
    label: str
    options: TrainOptions
    paper: TrainOptions = field(default_factory=dict)  # mIoU as printed, by benchmark
    printed: str = ""  # the method whose classes are printed, where the row has another name
    warm: bool = True  # branches from the seed's shared warm start, where the benchmark has one
    paired: bool = True  # is compared with the row above, where its table compares neighbours
    over: str = ""  # the row of its table that it is compared with, by name, instead of the row above
    gone: str = ""  # the last commit whose train.py has all of its options: its records are shown, it is not run
    told: str = ""  # the level that is told the target's true labels, see bench/told.py


class Table(NamedTuple):
    """Rows that belong together, and what each is compared with."""

    title: str
    rows: tuple[Row, ...]
    against: Row | None = None  # as its recipe has it; None: each is compared with the row above
    note: str = ""
    sweeps: str = ""  # the option that its rows give several values, to be drawn as a curve


class Benchmark(NamedTuple):
    """Domains and schedule that all rows of a table share."""

    title: str
    src: str
    tgt: str
    classes: int  # that the headline is a mean over
    warm_steps: int  # source-only steps before all rows of a seed branch off; 0: every row starts from scratch
    branch_steps: int
    reported: str  # split; on another one choices are made
    note: str = ""  # on what all its tables say
    own_val: str = ""  # a domain like the source, to see whether the warm start learnt the source at all
    warm_of: str = ""  # the benchmark whose warm starts are taken: those never see a target
    stages: Mapping[str, TrainOptions] = field(default_factory=dict)


# Options that only the stages of a benchmark need, on top of what the recipe says: warm is the shared start, branch
# what follows it, scratch a run without warm start (the oracle's on the toy, all of them on real data).
NO_STAGE_OPTIONS: Mapping[str, TrainOptions] = {"warm": {}, "branch": {}, "scratch": {}}

# A branch starts from a trained student: a lower rate, and a bank that can be filled at once. Batches of two, as in the
# paper, make it twice as fast, and there are hundreds of branches.
_BRANCH: TrainOptions = {"batch_size": 2, "lr": 1e-3, "warmup": 20, "bank_start": 50, "bank_fill": 50}

_TOY = Benchmark(
    title="toy-streets (toy-gta5 → toy-cityscapes)",
    src="toy-gta5",
    tgt="toy-cityscapes",
    classes=19,
    warm_steps=600,
    branch_steps=400,
    reported="test",
    note="No network here starts from ImageNet weights, so DAFormer has no feature distance to them.",
    own_val="toy-gta5-val",
    stages={"branch": _BRANCH},
)

# ImageNet weights from the package index (bench/lite0.py), and with them DAFormer's feature distance.
_LITE0: TrainOptions = {"backbone": "tf_efficientnet_lite0", "weights": "data/lite0.safetensors"}
_PRETRAINED = _LITE0 | {"feature_weight": 0.005}

_FROM_IMAGENET = _TOY._replace(
    title="toy-streets from ImageNet weights (toy-gta5 → toy-cityscapes)",
    note="EfficientNet-Lite0 with its ImageNet weights, and DAFormer's feature distance to them.",
    stages={"warm": _LITE0, "branch": _BRANCH | _PRETRAINED, "scratch": _LITE0},
)

BENCHMARKS = {
    "toy": _TOY,
    "toy-night": _TOY._replace(title="toy-streets by night (toy-gta5 → toy-night)", tgt="toy-night", warm_of="toy"),
    "toy-fog": _TOY._replace(title="toy-streets in fog (toy-gta5 → toy-fog)", tgt="toy-fog", warm_of="toy"),
    "toy-pretrained": _FROM_IMAGENET,
    "toy-pretrained-night": _FROM_IMAGENET._replace(
        title="toy-streets by night from ImageNet weights (toy-gta5 → toy-night)",
        tgt="toy-night",
        warm_of="toy-pretrained",
    ),
    "toy-pretrained-fog": _FROM_IMAGENET._replace(
        title="toy-streets in fog from ImageNet weights (toy-gta5 → toy-fog)", tgt="toy-fog", warm_of="toy-pretrained"
    ),
    "gta5": Benchmark("GTA5 → Cityscapes", "gta5", "cityscapes", 19, 0, 40_000, "val", stages=NO_STAGE_OPTIONS),
    "synthia": Benchmark(
        "SYNTHIA → Cityscapes", "synthia", "cityscapes", 16, 0, 40_000, "val", stages=NO_STAGE_OPTIONS
    ),
}


def _printed(method: str) -> dict[str, float]:
    return {source: means[method] for source, means in MEAN_IOU.items()}


def _dida(name: str, label: str, gta5: float | None = None, **options: Any) -> Row:
    """DIDA with some options changed."""
    paper = {} if gta5 is None else {"gta5": gta5}
    return Row(f"dida_{name}", label, {"method": "dida", **options}, paper)


# The methods that branch off it see the source's own colours, so the shared start does as well.
WARM = Row("warm", "warm start", {"method": "source", "source_colour": "plain"}, warm=False, paired=False)
SOURCE_PLAIN = Row("source-plain", "source only, colours as they are", {"method": "source", "source_colour": "plain"})
SOURCE_ONLY = Row("source", "source only, colours distorted", {"method": "source", "source_colour": "distort"})
DACS = Row("dacs", "DACS", {"method": "dacs"}, _printed("dacs"))
DAFORMER = Row("daformer", "DAFormer", {"method": "daformer"}, _printed("daformer"))
DIDA = Row("dida", "DIDA", {"method": "dida"}, _printed("dida"))
ORACLE = Row("oracle", "oracle (target labels)", {"method": "oracle"}, warm=False, paired=False)

_NO_REGENERATION = {"regenerate_semantic": "none", "regenerate_instance": "none"}

_RULES = {"smooth": "smoothing", "scale": "scaling"}
_REGENERATIONS = tuple(
    _dida(f"regenerate-{z}-{q}", f"ẑ {_RULES[z]}, q̂ {_RULES[q]}", was, regenerate_semantic=z, regenerate_instance=q)
    for z, q, was in (("smooth", "smooth", 70.9), ("smooth", "scale", 71.0), ("scale", "smooth", 70.5),
                      ("scale", "scale", 70.3))
)  # fmt: skip

_SCALED = {"regenerate_semantic": "scale", "regenerate_instance": "scale"}
_REVERSED = {"regenerate_semantic": "scale", "regenerate_instance": "smooth"}


_RACE = "0be0dde24098"  # where candidates were chosen between; what lost there is no option any more


# Rows to choose between spell out all that a recipe may set: once chosen, it is what the recipe says.
_RULES_THEN = {"regenerate_semantic": "smooth", "regenerate_instance": "scale", "phi": 0.7}


def _candidate(name: str, label: str, *, gone: str = "", **options: Any) -> Row:
    """All pixels, the prior on the student's side and lambda 0.3, with some options changed."""
    cure = {"instance_weights": "all", "instance_weight": 0.3, "instance_prior": "student"}
    return replace(_dida(f"candidate-{name}", label, **_RULES_THEN | cure | options), gone=gone)


FIRST_REPAIR = _dida(
    "first-repair", "the first repair: balanced pixels, no prior, λ = 0.1",
    instance_weights="balanced", instance_weight=0.1, instance_prior="none", **_RULES_THEN,
)  # fmt: skip

_WHOLE = _candidate("prior-0.3", "prior on the student's side, λ = 0.3")
_WHOLE_SCALED = _candidate("prior-scale", "prior on the student's side, ẑ and q̂ scaling", **_SCALED)
_SCALED_ROOT = _candidate("scale-root", "ẑ and q̂ scaling, weights to the power 1/2", instance_weights="root", **_SCALED)
SCALED_ALONE = _dida("regenerate-scale-alone", "ẑ scaling, no L_ins", regenerate_semantic="scale", instance_loss="off")

PAPER = _dida("recipe-paper", "the paper's recipe", recipe="paper")
PAPER_ALONE = _dida("recipe-paper-alone", "the paper's regeneration, no L_ins", recipe="paper", instance_loss="off")
_WITH_PRIOR = {"instance_weights": "root", "instance_weight": 0.3, "instance_prior": "student"}
PRIOR = _dida(
    "prior", "the paper's regeneration, L_ins with a class prior",
    **_WITH_PRIOR, regenerate_semantic="smooth", regenerate_instance="scale", phi=0.9,
)  # fmt: skip
PRIOR_SCALED = _dida("prior-scaled", "ẑ scaling, L_ins with a class prior", **_WITH_PRIOR, **_SCALED)


def _told(row: Row, level: str, label: str) -> Row:
    return replace(row, name=f"{row.name}_told-{level}", label=label, told=level, paper={})


TABLES = {
    "methods": Table(
        "Methods (Tables I and II)",
        (
            SOURCE_PLAIN, SOURCE_ONLY, DACS, DAFORMER,
            replace(PAPER, label="DIDA, as printed", paper=_printed("dida"), printed="dida"),
            replace(PRIOR, label="DIDA, as advised: L_ins with a class prior", over="daformer"),
            ORACLE,
        ),
        note="DAFormer is the same trainer with bank, L_ins and regeneration off. Source only and the oracle "
        "distort colours as the paper's family does, the shared start does not. All rows here have one network; the "
        "paper's number for DACS belongs to another (DeepLab-v2 with ResNet-101).",
    ),
    "3": Table(
        "Which instances fill the bank (Table III)",
        (
            _dida("sampling-nu", "sampling NU", 68.6, sampling="nu"),
            _dida("sampling-rs", "sampling RS", 69.5, sampling="rs"),
            _dida("sampling-ils", "sampling ILS", 69.0, sampling="ils"),
            _dida("selecting-rs", "selecting RS", 69.5, selecting="rs"),
            _dida("selecting-avg", "selecting AVG", 69.7, selecting="avg"),
            _dida("selecting-km", "selecting KM", 69.6, selecting="km"),
            _dida("cbs-bps", "sampling CBS, selecting BPS", 71.0, sampling="cbs", selecting="bps"),
        ),
        DIDA,
    ),
    "4": Table(
        "Smoothing weight φ (Table IV)",
        tuple(_dida(f"phi-{phi}", f"φ = {phi}", was, phi=phi, regenerate_semantic="smooth") for phi, was in
              ((0, None), (0.8, 70.2), (0.9, 71.0), (0.95, 70.3), (1, 69.0))),
        DIDA,
        "The paper prints “fail” at φ = 0.",
    ),
    "5": Table(
        "Regeneration: class level / instance level (Table V)",
        _REGENERATIONS,
        DIDA,
    ),
    "regeneration": Table(
        "What each regeneration adds to DAFormer (rows of Table V)",
        (
            *_REGENERATIONS,
            SCALED_ALONE,
        ),
        DAFORMER,
        "DAFormer is the same trainer with bank, L_ins and regeneration off; the paper smooths ẑ and scales q̂.",
    ),
    "6": Table(
        "Momentum of the bank ω (Table VI)",
        tuple(_dida(f"omega-{omega}", f"ω = {omega}", was, bank_momentum=omega) for omega, was in
              ((0, 68.9), (0.9, 70.3), (0.99, 70.6), (0.999, 71.0), (1, 69.4))),
        DIDA,
    ),
    "7": Table(
        "Components (Table VII)",
        (
            Row("daformer", "– (DAFormer)", {"method": "daformer"}, {"gta5": 68.3}),
            _dida("part-ins", "L_ins", 69.2, sampling="rs", selecting="rs", **_NO_REGENERATION),
            _dida("part-ins-cbs", "L_ins + CBS", 69.7, selecting="rs", **_NO_REGENERATION),
            _dida("part-ins-cbs-bps", "L_ins + CBS + BPS", 70.2, **_NO_REGENERATION),
            Row("dida", "L_ins + CBS + BPS + regeneration", {"method": "dida"}, {"gta5": 71.0}),
        ),
        note="The paper does not say what stands in for CBS and BPS where they are missing; here both are random (RS).",
    ),
    "recipes": Table(
        "DIDA as printed, and with a class prior",
        (PAPER, PAPER_ALONE, PRIOR, SCALED_ALONE, PRIOR_SCALED),
        DAFORMER,
        "DAFormer is the same trainer with bank, L_ins and regeneration off. All have the toy's schedule.",
    ),
    "loss": Table(
        "What L_ins adds, all else equal",
        (
            replace(PAPER_ALONE, paired=False), PAPER,
            replace(PAPER_ALONE, paired=False), PRIOR,
            replace(SCALED_ALONE, paired=False), PRIOR_SCALED,
        ),
    ),
    "limits": Table(
        "What true labels of the target would bring",
        (
            PRIOR_SCALED,
            _told(PRIOR_SCALED, "instance", "…, told the truth in q̂"),
            _told(PRIOR_SCALED, "both", "…, told the truth in ẑ and q̂"),
            _told(DAFORMER, "semantic", "DAFormer, told the truth in ẑ"),
        ),
        DAFORMER,
        "What is told no method could know: each row bounds what a correction of these labels can bring, all else "
        "equal, the weights of the pixels included.",
    ),
    "precision": Table(
        "Numbers of 16 bits in the networks (--precision)",
        (_dida("bf16", "DIDA, bf16", precision="bf16"),),
        DIDA,
        "On a CPU --precision auto is fp32. Both are scored in fp32.",
    ),
    "candidates": Table(
        "What the instance level could be: candidates, chosen between on val",
        (
            FIRST_REPAIR,
            _candidate("printed", "as printed: all pixels, no prior, λ = 1", instance_weight=1, instance_prior="none"),
            _candidate("alone", "regeneration alone, no L_ins", instance_loss="off"),
            _WHOLE,
            _candidate("prior-1", "…, λ = 1", instance_weight=1),
            _candidate("prior-3", "…, λ = 3", instance_weight=3),
            _candidate("both-0.3", "prior on both sides, λ = 0.3", instance_prior="both"),
            _candidate("both-reversed", "…, ẑ scaling, q̂ smoothing", instance_prior="both", **_REVERSED),
            _candidate("both-smooth", "…, ẑ and q̂ smoothing", instance_prior="both", regenerate_instance="smooth"),
            _WHOLE_SCALED,
            _candidate("root", "prior and weights, both to the power 1/2", instance_weights="root"),
            _candidate("cold", "t = 0.05", temperature=0.05),
            _candidate("warm", "t = 0.2", temperature=0.2),
            _candidate("phi", "φ = 0.9", phi=0.9),
            _candidate("omega", "ω = 0.99", bank_momentum=0.99),
            _candidate("often", "u = 2", bank_every=2),
            _candidate("late", "the bank from step 150", bank_start=150, bank_fill=50),
            _candidate("kept", "slots stay as they were filled", sampling="nu"),
            _candidate("replaced", "a new vector replaces the oldest", gone=_RACE, bank_update="replace"),
            _candidate(
                "pixels", "a new vector of one pixel does", gone=_RACE, bank_update="replace", selecting="rs"
            ),
            _candidate(
                "many-pixels", "…, K = 3 000", gone=_RACE, bank_update="replace", selecting="rs", bank_size=3000
            ),
            _candidate("projection", "embeddings of their own, 64 channels", gone=_RACE, projection=64),
        ),
        DAFORMER,
        "Seeds from 100 up. Where a row does not say otherwise: all pixels, ẑ smoothing with φ = 0.7, q̂ scaling, "
        "t = 0.1, ω = 0.9, u = 10. A row with … has what the row above it has; from t = 0.05 on, rows are the prior on "
        "the student's side, λ = 0.3, with that changed.",
    ),
    "combinations": Table(
        "What the instance level could be: what won among the candidates, together; chosen between on val",
        (
            _candidate("prior-1-scale", "λ = 1, ẑ and q̂ scaling", instance_weight=1, **_SCALED),
            _candidate("scale-cold", "ẑ and q̂ scaling, t = 0.05", temperature=0.05, **_SCALED),
            _SCALED_ROOT,
            _candidate("root-1", "λ = 1, weights to the power 1/2", instance_weight=1, instance_weights="root"),
            _candidate(
                "all", "λ = 1, ẑ and q̂ scaling, weights to the power 1/2, t = 0.05",
                instance_weight=1, instance_weights="root", temperature=0.05, **_SCALED,
            ),
        ),
        DAFORMER,
        "Seeds from 100 up. Where a row does not say otherwise: the prior on the student's side, λ = 0.3, all pixels, "
        "ẑ smoothing with φ = 0.7, q̂ scaling, t = 0.1.",
    ),
    "finalists": Table(
        "What the instance level could be: the best, also from ImageNet weights; chosen between on val",
        (FIRST_REPAIR, SCALED_ALONE, _WHOLE, _WHOLE_SCALED, _SCALED_ROOT),
        DAFORMER,
        "Seeds from 100 up. Where a row does not say otherwise: λ = 0.3, ẑ smoothing with φ = 0.7, q̂ scaling, t = 0.1.",
    ),
    "8a": Table(
        "Size of the bank K (Fig. 8a)",
        tuple(_dida(f"k-{k}", f"K = {k:,}".replace(",", " "), bank_size=k) for k in
              (50, 100, 200, 300, 500, 1000, 10_000)),
        DIDA,
        "The paper draws this curve without printing its values; its settings have K = 300.",
        sweeps="bank_size",
    ),
    "8b": Table(
        "Steps between two updates of the bank u (Fig. 8b)",
        tuple(_dida(f"u-{u}", f"u = {u}", 71.0 if u == 50 else None, bank_every=u) for u in (25, 50, 100, 200, 500)),
        DIDA,
        "The paper prints only the best value of this curve, that of u = 50.",
        sweeps="bank_every",
    ),
}  # fmt: skip
