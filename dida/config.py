"""Every option of a run: what it means, its unit and its default, which is the paper's unless it says otherwise.

`recipes.py` holds the named sets (methods, the toy), `dida/options` reads and checks them. Only the standard library is
imported here, so that `--help` answers at once.
"""

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from dida.options import COUNT, COUNT_OR_NONE, DIVISOR, SHARE, Above, AtLeast, Range, check_values, flag, parse_size

MethodName = Literal["source", "dacs", "daformer", "dida", "oracle"]
RecipeName = Literal["paper", "advised"]


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    src: str = "gta5"
    """Labelled source: gta5, synthia, urbansyn, cityscapes, loveda-urban, toy-gta5, folder:PATH; several with +."""
    tgt: str = "cityscapes"
    """Unlabelled target: cityscapes, foggy-cityscapes, acdc, dark-zurich, bdd100k, mapillary, loveda-rural,
    toy-cityscapes or folder:PATH."""
    data_root: Path = Path("data")
    """Folder that holds the data sets as they were downloaded."""
    src_size: str = "1280x720"
    """WxH in pixels that a source picture is scaled into, its ratio kept (GTA5 becomes 1280x704)."""
    tgt_size: str = "1024x512"
    """WxH in pixels that a target picture is scaled into, its ratio kept; also the size of evaluation."""
    enlarge: bool = True
    """Blow pictures up that are smaller than these sizes; those of folder: keep their own size by default."""
    crop: Annotated[int, Range(32, 1 << 14)] = 512
    """Side of the square training crop, in pixels."""
    batch_size: Annotated[int, Range(1, 4096)] = 2
    """Source crops and as many target crops in one step."""
    workers: Annotated[int, Range(0, 256)] = 4
    """Processes that load data; results do not depend on it."""
    cache: Path | None = None
    """Folder that keeps scaled pictures and labels, for this run and others: read in a tenth of the time or less."""
    rare_class_sampling: bool = True
    """Draw source pictures by rare classes instead of uniformly."""
    rare_class_temperature: Annotated[float, DIVISOR] = 0.01
    """Temperature of the class probabilities softmax((1 - frequency) / T)."""
    rare_class_pixels: Annotated[int, COUNT_OR_NONE] = 3000
    """Pixels of a class, at the label's own size, that make a picture a candidate for it."""
    rare_class_share: Annotated[float, SHARE] = 0.0
    """The same as a share of the label's pixels, which then takes its place; 0: pixels count (folder: has 0.0015)."""
    rare_class_crop_share: Annotated[float, SHARE] = 0.5
    """A crop is drawn again (10 times at most) until it holds this share of the pixels above."""
    source_colour: Literal["plain", "distort"] = "plain"
    """Colours of source crops: as they are, or distorted as the family does for source-only and oracle."""
    max_class_share: Annotated[float, SHARE] = 0.75
    """A source crop is drawn again (10 times at most) while one class covers more than this share; 1 is off."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: str = "mit_b5"
    """mit_b0 .. mit_b5, or a timm model with maps [B, C, h, w] at strides 4, 8, 16 and 32 (such as pvt_v2_b0)."""
    head: Literal["daformer", "segformer"] = "daformer"
    """What reads the stages: DAFormer's context-aware fusion, or SegFormer's, which looks at one pixel alone."""
    weights: str = "auto"
    """ImageNet weights of the encoder: auto (from the hub), none, or a .pth/.safetensors file. Pictures are normalised
    as for those of the tag that --backbone names, by default timm's first."""
    init: Path | None = None
    """Network that student and teacher start from, all of it: whatever eval.py takes for RUN (of a run its student)."""
    embed_dim: Annotated[int, Range(1, 1 << 14)] = 256
    """Channels D of the head's fused map, which are the instance embeddings."""
    drop_path: Annotated[float, Range(0, 1, high_open=True)] = 0.1
    """Stochastic depth of the encoder's last block (linear from 0)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and linear decay."""

    steps: Annotated[int, COUNT] = 40_000
    """Optimizer steps of the whole run."""
    lr: Annotated[float, Above(0)] = 6e-5
    """Peak learning rate of the encoder."""
    head_lr_factor: Annotated[float, Above(0)] = 10.0
    """The head learns this many times faster."""
    weight_decay: Annotated[float, AtLeast(0)] = 0.01
    """Decoupled weight decay; norm layers of the encoder have none."""
    warmup: Annotated[int, COUNT_OR_NONE] = 1500
    """Steps of linear warm-up (multiplied with the decay)."""
    clip_gradient: Annotated[float, AtLeast(0)] = 0.0
    """A gradient whose norm, over all parameters, is larger than this is scaled down to it; 0 is off."""


@dataclass(frozen=True)
class SpeedConfig:
    """How a step is computed; for what it learns none of it matters but for rounding."""

    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    """Numbers of the networks: fp32; tf32, whose products a GPU rounds; bf16; auto is tf32 where the GPU has it."""
    compile: bool = False
    """Compile the blocks of a mit_* encoder: a minute or two before the first step, then shorter steps on a GPU."""
    checkpoint_activations: bool = False
    """Compute the maps within the blocks of a mit_* encoder again in backward: less memory, more time."""
    accumulate: Annotated[int, Range(1, 4096)] = 1
    """Parts of a batch that are in memory one after another; results are those of one, but for batch norm."""


@dataclass(frozen=True)
class SelfTrainingConfig:
    """Sec. III-A: the teacher, its pseudo-labels, the two views, and the baseline's feature distance."""

    self_training: bool = True
    """Learn from pseudo-labels of the target; off is source-only."""
    teacher_momentum: Annotated[float, SHARE] = 0.999
    """alpha of the teacher's moving average, reached by min(1 - 1/(step + 2), alpha)."""
    teacher_norm: Literal["batch", "averaged"] = "batch"
    """Batch norm of the teacher: statistics of its own batch (the family's habit), or the student's running ones."""
    threshold: Annotated[float, SHARE] = 0.968
    """tau: a pixel is confident when its probability reaches this."""
    pseudo_weight: Literal["batch", "image", "pixel"] = "batch"
    """Weight of pseudo-labels: share of confident pixels in the batch, in the image, or 0/1 per pixel."""
    confidence: Literal["teacher", "regenerated"] = "teacher"
    """Whose maximum meets the threshold: the teacher's z, or the regenerated z-hat (the paper taken literally)."""
    ignore_top: Annotated[int, Range(0, 511)] = 15
    """Rows at the top of a target crop whose pseudo-labels are not used, in 1/512 of the crop."""
    ignore_bottom: Annotated[int, Range(0, 511)] = 120
    """Rows at the bottom of a target crop whose pseudo-labels are not used (the car's hood), in 1/512 of the crop."""
    mix_classes: Literal["batch", "image"] = "batch"
    """ClassMix draws half of the classes found in the whole source batch, or in each image."""
    jitter_chance: Annotated[float, SHARE] = 0.8
    """Probability per step that the mixed images get colour jitter."""
    jitter_strength: Annotated[float, SHARE] = 0.2
    """Half-width of the brightness, contrast, saturation and hue factors."""
    blur_chance: Annotated[float, SHARE] = 0.5
    """Probability per step that the mixed images are blurred, each with sigma in 0.15 .. 1.15 pixels."""
    weak_view: Literal["plain", "photometric"] = "plain"
    """What the teacher sees: the crop itself, or a photometrically changed copy."""
    feature_weight: Annotated[float, AtLeast(0)] = 0.005
    """lambda_FD of the ImageNet feature distance; 0 is off, and it is off when there are no encoder weights."""


@dataclass(frozen=True)
class InstanceConfig:
    """Sec. III-C to III-E: the instance bank, the instance loss, and regeneration."""

    instance_loss: Literal["image", "stride4", "off"] = "image"
    """L_ins at image resolution, at the features' resolution, or not at all."""
    instance_weight: Annotated[float, AtLeast(0)] = 1.0
    """lambda_ins."""
    instance_weights: Literal["all", "root", "balanced"] = "all"
    """What target pixels weigh in L_ins: all alike; balanced: every class of the batch alike; root: half-way."""
    instance_prior: Literal["none", "student", "both"] = "none"
    """Class prior (running shares of the pseudo-labels) in the softmax over the bank: in the student's q, or also in
    the teacher's where it stands alone or is smoothed. With weights it has the power that they leave."""
    temperature: Annotated[float, DIVISOR] = 0.1
    """t of the softmax over the bank."""
    regenerate_semantic: Literal["smooth", "scale", "none"] = "smooth"
    """z-hat: the class level corrected by the bank (Table V, rows)."""
    regenerate_instance: Literal["scale", "smooth", "none"] = "scale"
    """q-hat: the instance level corrected by the class level (Table V, columns)."""
    phi: Annotated[float, SHARE] = 0.9
    """Share of the teacher's own class level in z-hat when smoothing; 1 is off."""
    instance_phi: Annotated[float, SHARE] = 0.9
    """Share of the teacher's own instance level in q-hat when smoothing (not printed in the paper)."""
    bank_size: Annotated[int, Range(1, 10**7)] = 300
    """K, slots of the bank."""
    sampling: Literal["cbs", "rs", "ils", "nu"] = "cbs"
    """Slots per class: balanced, by pixel frequency, by inverse frequency, or by frequency and never updated."""
    selecting: Literal["bps", "avg", "km", "rs", "off"] = "bps"
    """Pixels that make a class's vector: boundary and interior, all, a K-means centre, one at random; off: no bank."""
    clusters: Annotated[int, Range(1, 1000)] = 1
    """K-means clusters of each class's interior, for `bps` and `km`: the largest one counts; 1 is all of it."""
    boundary_classes: Annotated[int, Range(1, 9)] = 2
    """Distinct classes in the 3x3 window that make a boundary pixel (Algorithm 1 prints 3)."""
    bank_momentum: Annotated[float, SHARE] = 0.999
    """omega of the bank's moving average."""
    bank_every: Annotated[int, COUNT] = 50
    """u, steps between two updates of the bank."""
    bank_init: Literal["source", "random"] = "source"
    """What slots hold at first: real source embeddings, or random unit vectors."""
    bank_start: Annotated[int, COUNT_OR_NONE] = 1500
    """Step at which the bank is used and L_ins and regeneration begin; it is filled just before."""
    bank_fill: Annotated[int, COUNT_OR_NONE] = 500
    """Steps before `bank_start` whose source embeddings fill the slots."""


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what it writes."""

    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of everything random; with the step it determines every sample and draw."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """The run folder itself; by default runs/<date>_<method>_<src>2<tgt>_<backbone>_s<seed>."""
    log_every: Annotated[int, COUNT] = 50
    """Steps between two log lines."""
    panel_every: Annotated[int, COUNT_OR_NONE] = 1000
    """Steps between two pictures; 0 is never."""
    save_every: Annotated[int, COUNT] = 1000
    """Steps between two checkpoints (one is always written at the end)."""
    keep: Annotated[int, COUNT_OR_NONE] = 2
    """Newest checkpoints that stay on disk; 0 keeps all."""
    eval_every: Annotated[int, COUNT_OR_NONE] = 0
    """Steps between two looks at how the networks do: the score on the source (its val pictures, where it has some),
    and of the target what needs no label; 0 is never."""
    eval_target_labels: bool = False
    """With --eval-every: score on the target's val pictures too. Their labels are then seen, and whoever chooses a
    checkpoint by them has used them."""
    tracker: Literal["none", "wandb", "trackio"] = "none"
    """A service that gets the curves too, beside metrics.jsonl and TensorBoard's file; its library must be there."""


@dataclass(frozen=True)
class Config:
    """Domain-adaptive semantic segmentation: train on a labelled source and an unlabelled target.

    The defaults shown are those of the --method, --recipe, --src, --tgt and --steps that are given beside --help-all.
    """

    EVERYDAY: ClassVar = (
        "src", "tgt", "data_root", "method", "steps", "crop", "batch_size", "backbone", "weights", "device", "out",
        "resume", "check_data",
    )  # fmt: skip

    method: MethodName = "dida"
    """source, dacs, daformer and dida are steps of one another; oracle learns from the target's labels."""
    recipe: RecipeName = "paper"
    """Options of the instance level: as the paper prints them, or as experiments advise (the toy's default)."""
    config: Path | None = None
    """Saved options to start from: a config.json, a run folder or a checkpoint; what is said beside it changes them."""
    resume: Path | None = None
    """Run folder to continue exactly where it stopped, or a checkpoint in it (RUN/checkpoints/FILE) to go back to; its
    own options are used, and --steps may be larger than it was."""
    new_data: bool = False
    """With --resume: go on although pictures were added to the data, taken away or renamed since; samples change."""
    check_data: bool = False
    """Read all files of both domains, report what is wrong with them, and stop."""
    debug: bool = False
    """Show the traceback of an error, not its message alone."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    teach: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    instance: InstanceConfig = field(default_factory=InstanceConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def check(self) -> None:
        """Raise ValueError for values that no run could mean, alone or together, naming option and expectation."""
        check_values(self)
        for name in ("src_size", "tgt_size"):
            parse_size(getattr(self.data, name), option=flag(name))
        if self.teach.ignore_top + self.teach.ignore_bottom >= 512:
            raise ValueError(
                f"--ignore-top {self.teach.ignore_top} and --ignore-bottom {self.teach.ignore_bottom} leave no row: "
                "they are 512ths of the crop"
            )
        if self.method == "oracle" and self.data.src not in (self.data.tgt, f"{self.data.tgt}-oracle"):
            raise ValueError(f"--method oracle learns from --tgt {self.data.tgt}, so --src cannot be {self.data.src}")
        self._check_bank()

    def _check_bank(self) -> None:
        inst = self.instance
        asked = [name for name, off in _ASKS_THE_BANK.items() if getattr(inst, name) != off]
        if asked and inst.bank_start >= self.optim.steps:
            raise ValueError(
                f"--steps {self.optim.steps}: must be above {inst.bank_start}, the step from which this method uses "
                "its bank (--bank-start)"
            )
        if asked and inst.selecting == "off" and inst.bank_init == "source":
            used = " and ".join(f"{flag(name)} {getattr(inst, name)}" for name in asked)
            raise ValueError(f"--selecting off: nothing fills the bank that {used} would ask")
        if inst.selecting != "off" and inst.bank_init == "source":
            if not 0 < inst.bank_fill <= inst.bank_start:
                raise ValueError(
                    f"--bank-fill {inst.bank_fill}: the steps that fill the bank come before --bank-start "
                    f"{inst.bank_start}, so there are 1 to {inst.bank_start} of them"
                )


_ASKS_THE_BANK = {"instance_loss": "off", "regenerate_semantic": "none"}
MAY_CHANGE = {  # on --resume
    "data_root", "workers", "cache", "device", "log_every", "panel_every", "save_every", "keep", "eval_every",
    "eval_target_labels", "tracker",
    "precision", "compile", "checkpoint_activations",
}  # fmt: skip
MAY_GROW = {"steps"}  # on --resume: a run is extended, never cut short
OF_ONE_COMMAND = ("config", "resume", "new_data", "check_data", "debug")  # no options of the run


RENAMED = {"instance_pixels": "instance_weights"}  # in saved configs: what an option was called before


def of_run(config: Config) -> Config:
    """The options of the run itself, without those that only say what one command does with it."""
    defaults = Config()
    return dataclasses.replace(config, **{name: getattr(defaults, name) for name in OF_ONE_COMMAND})


def differing(before: Config, after: Config) -> list[str]:
    """Names of the run's options that differ and may not, sorted."""
    a, b = (flat(of_run(config)) for config in (before, after))
    grown = {name for name in MAY_GROW if b[name] > a[name]}
    return sorted({name for name in a if a[name] != b[name]} - MAY_CHANGE - grown)


def to_dict(config: Config) -> dict[str, Any]:
    """A JSON-able form that `from_dict` reads back unchanged."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(values: Any) -> Config:
    """The inverse of `to_dict`. Raises ValueError for options that this version does not know, and for values that no
    option could have."""
    config = _build(Config, values)
    check_values(config)
    return config


def _build(kind: type[Any], values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"expected an object with the options of {kind.__name__}, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    if unknown := set(values) - set(fields):
        raise ValueError(f"unknown options {sorted(unknown)} in a saved config: it was written by another version")
    read = {}
    for name, value in values.items():
        kind_of = fields[name].type
        if isinstance(kind_of, type) and dataclasses.is_dataclass(kind_of):
            value = _build(kind_of, value)
        elif isinstance(value, str) and kind_of in (Path, Path | None):
            value = Path(value)
        read[name] = value
    return kind(**read)


def changed(config: Any, /, **values: Any) -> Any:
    """A copy with options replaced, each found by its name in whichever group has it.

    Raises ValueError for a name that no option has, with the nearest that one has.
    """
    groups = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    known = {f.name: group for group, c in groups.items() if dataclasses.is_dataclass(c) for f in dataclasses.fields(c)}
    for name, value in values.items():
        if name in groups:
            groups[name] = value
        elif name in known:
            groups[known[name]] = dataclasses.replace(groups[known[name]], **{name: value})
        else:
            near = difflib.get_close_matches(name, [*known, *groups], 1)
            raise ValueError(f"no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return dataclasses.replace(config, **groups)


def flat(config: Config) -> dict[str, Any]:
    """Option name -> value, groups dissolved, as the command line has them."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        out.update(vars(value) if dataclasses.is_dataclass(value) else {f.name: value})
    return out
