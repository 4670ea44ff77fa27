"""From a config to the parts of a run. The only place where options meet the classes that they choose between.

A word of the command line is a key of one of the tables below; tests hold their keys to the choices of the config.
"""

import copy
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dida.config import Config, InstanceConfig, SelfTrainingConfig
from dida.data import domains
from dida.data.classes import ClassSet
from dida.data.pairs import Pairs, View
from dida.data.rare_class import RareClasses, rare_classes
from dida.data.scaled_files import CachedFiles, ScaledFiles
from dida.data.sources import Sources, labelled_sources
from dida.data.statistics import Statistics
from dida.machine.device import find_device
from dida.machine.distributed import ALONE, World
from dida.method import discrimination, prior, regeneration, sampling, teacher, views
from dida.method.bank import BankRule, InstanceBank, NoBankRule, Select
from dida.method.feature_distance import FeatureDistance, NoFeatureDistance, feature_distance
from dida.method.passes import Abstain, Believe, Method, MixedPass, SourcePass
from dida.method.replicas import replicated
from dida.models.daformer import DAFormerHead
from dida.models.pretrained import load_backbone
from dida.models.segformer import SegFormerHead
from dida.models.segmentor import Segmentor, require_any_size
from dida.models.whole_batch import over_all_processes
from dida.optim import ClipGradient, build_optimizer, build_schedule, gradient_norm
from dida.options import parse_size
from dida.precision import Arithmetic, choose_precision
from dida.run.panel import Panel
from dida.run.resume import begun_run, go_on
from dida.run.transfer import start_from_init
from dida.run.watch import Watch, build_watch
from dida.state import TrainState

_log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a run is made of."""

    state: TrainState
    method: Method
    pairs: Pairs
    panel: Panel
    device: torch.device
    arithmetic: Arithmetic
    watch: Watch | None = None  # what is looked at now and then, if anything

    @property
    def class_set(self) -> ClassSet:
        """The run's classes are those of its source."""
        return self.pairs.source.class_set


def assemble(config: Config, world: World = ALONE) -> Parts:
    """All parts of a run; one to resume goes on from its newest checkpoint, or the one that is named.

    Each of several processes of a `world` has all parts, which still have to be joined, see `join`.

    Raises OSError or ValueError for data, weights, devices or options that are not there or do not fit.
    """
    begun = begun_run(config) if config.resume else None  # first: what was edited is named, not what it breaks
    _require_equal_parts(config, world)
    if config.run.eval_target_labels and not (config.run.eval_every or config.resume):
        raise ValueError("--eval-target-labels scores when a run looks at itself: it needs --eval-every N")
    device = find_device(config.run.device)
    pairs, pixels_C = build_pairs(config)
    class_set = pairs.source.class_set
    torch.manual_seed(config.run.seed)
    student, imagenet = load_networks(config, class_set, device)
    _require_statistics(config, student)
    arithmetic = choose_arithmetic(config, device)
    state = build_state(config, class_set, pixels_C, device, student=student, world=world)
    if begun:
        go_on(state, begun, config, pairs)
    method = build_method(config, class_set, imagenet=imagenet, world=world)
    panel = Panel(class_set, config.instance.boundary_classes, config.instance.temperature)
    watch = build_watch(config, pairs.source, pairs.target) if config.run.eval_every else None
    return Parts(state, method, pairs, panel, device, arithmetic, watch)


def join(parts: Parts) -> Parts:
    """The parts of one process to those of a run of several: norms and draws are over the images of all, gradients
    averaged. To be called by all of them at once.
    """
    state, world = parts.state, parts.state.world
    if world is ALONE:
        return parts
    for network in (state.student, state.teacher):
        over_all_processes(network, world)
    state.working = parts.arithmetic.working(state.student, state.teacher, world)
    return parts._replace(method=replicated(parts.method, state.working.called[0]))


def _require_equal_parts(config: Config, world: World) -> None:
    batch, accumulate = config.data.batch_size, config.speed.accumulate
    if batch % (world.size * accumulate):
        who = [f"{world.size} processes"] if world.size > 1 else []
        who += [f"the {accumulate} parts of --accumulate"] if accumulate > 1 else []
        raise ValueError(
            f"--batch-size {batch}: {' and '.join(who)} share it equally, so it is a multiple of "
            f"{world.size * accumulate}"
        )


def _require_statistics(config: Config, student: Segmentor) -> None:
    """Raise ValueError where a batch norm of the encoder would see one number, which has no variance."""
    crop, batch = config.data.crop, config.data.batch_size // config.speed.accumulate
    if crop <= 32 and batch == 1 and any(isinstance(module, nn.BatchNorm2d) for module in student.backbone.modules()):
        raise ValueError(
            f"--crop {crop} with one picture at a time: the coarsest map of {config.model.backbone} is one pixel, too "
            "few for its batch norm; raise one of the two"
        )


# ---- data ----------------------------------------------------------------------------------------------------------


def build_pairs(config: Config) -> tuple[Pairs, Tensor]:
    """The endless stream of samples, and the source's pixels per class [C] int64. Raises OSError or ValueError."""
    data = config.data
    source = labelled_sources(data.src, data.data_root, "train")
    target = domains.unlabelled(data.tgt, data.data_root, "train")
    statistics = source.statistics()
    crop = (data.crop, data.crop)
    pairs = Pairs(
        source,
        target,
        seed=config.run.seed,
        source_view=View(
            parse_size(data.src_size, option="--src-size"),
            crop,
            data.max_class_share,
            distort_colours=data.source_colour == "distort",
            enlarge=data.enlarge,
        ),
        target_view=View(parse_size(data.tgt_size, option="--tgt-size"), crop, enlarge=data.enlarge),
        rare_classes=_rare_classes(config, source, statistics) if data.rare_class_sampling else None,
        reader=CachedFiles(data.cache) if data.cache else ScaledFiles(),
    )
    return pairs, torch.from_numpy(statistics.pixels.sum(0))


def _rare_classes(config: Config, source: Sources, statistics: Statistics) -> RareClasses:
    data = config.data
    in_shares = data.rare_class_share > 0
    return rare_classes(
        statistics.pixels,
        source.class_set.names,
        temperature=data.rare_class_temperature,
        min_pixels=data.rare_class_share * statistics.total if in_shares else data.rare_class_pixels,
        min_crop_ratio=data.rare_class_crop_share,
        min_crop_pixels=data.rare_class_crop_share * data.rare_class_share * data.crop**2 if in_shares else None,
        weight_F=source.weight_F,
    )


def choose_arithmetic(config: Config, device: torch.device) -> Arithmetic:
    """Raises ValueError for a precision that the device does not have."""
    speed = config.speed
    precision, why = choose_precision(speed.precision, device)
    return Arithmetic(precision, why, speed.compile, speed.checkpoint_activations, speed.accumulate)


# ---- networks and state --------------------------------------------------------------------------------------------


def build_student(config: Config, class_set: ClassSet) -> Segmentor:
    """A network with random weights, on the CPU. Raises ValueError for a backbone that is not there or does not fit."""
    model = config.model
    return Segmentor(model.backbone, len(class_set), model.embed_dim, model.drop_path, HEADS[model.head])


def load_networks(config: Config, class_set: ClassSet, device: torch.device) -> tuple[Segmentor, nn.Module | None]:
    """The student, and the encoder of the feature distance where there are ImageNet weights to stay close to."""
    model = config.model
    student = build_student(config, class_set)
    require_any_size(student.backbone, model.backbone, config.data.crop)
    keeps_close = _keeps_close(config, class_set)
    if keeps_close or not config.resume:  # a resumed run has weights of its own
        _log.info(load_backbone(student.backbone, model.backbone, model.weights))
    imagenet = copy.deepcopy(student.encoder()).to(device) if keeps_close else None
    if model.init and not config.resume:
        _log.info(start_from_init(student, model, class_set))
    return student, imagenet


def _keeps_close(config: Config, class_set: ClassSet) -> bool:
    """Whether there is a feature distance; says so where it was asked for and cannot be."""
    if config.teach.feature_weight == 0:
        return False
    if not class_set.things:
        _log.info("feature distance off: it compares things, and none of the classes is said to be one")
        return False
    if config.model.weights == "none":
        _log.info("feature distance off: with --weights none there are no ImageNet features to stay close to")
        return False
    return True


def build_state(
    config: Config,
    class_set: ClassSet,
    pixels_C: Tensor,
    device: torch.device,
    *,
    student: nn.Module | None = None,
    world: World = ALONE,
) -> TrainState:
    """All that changes during training, before the first step.

    `pixels_C`: the source's pixels per class, which slots of the bank depend on. `student`: by default a new one.
    Raises ValueError for a bank with fewer slots than the source has classes.
    """
    student = (student or build_student(config, class_set)).to(device).train()
    inst, optim = config.instance, config.optim
    slots_K = sampling.slot_labels(SLOTS[inst.sampling], inst.bank_size, pixels_C)
    bank = InstanceBank(slots_K, config.model.embed_dim, len(class_set))
    if inst.bank_init == "random":
        bank.fill_random(torch.Generator().manual_seed(config.run.seed))
    averaged = teacher.as_teacher(student, config.teach.teacher_norm)
    optimizer = build_optimizer(
        student, lr=optim.lr, head_lr_factor=optim.head_lr_factor, weight_decay=optim.weight_decay
    )
    return TrainState(
        student=student,
        teacher=averaged,
        working=choose_arithmetic(config, device).working(student, averaged),
        bank=bank.to(device),
        shares=prior.ClassShares(len(class_set)).to(device),
        optimizer=optimizer,
        schedule=build_schedule(optimizer, steps=optim.steps, warmup=optim.warmup),
        seed=config.run.seed,
        world=world,
    )


# ---- Sec. III ------------------------------------------------------------------------------------------------------


def build_method(
    config: Config, class_set: ClassSet, *, imagenet: nn.Module | None = None, world: World = ALONE
) -> Method:
    """The strategies that a config names.

    `imagenet` is the encoder of the feature distance, None where there are no ImageNet weights.
    """
    teach, C = config.teach, len(class_set)
    distance: FeatureDistance | NoFeatureDistance = NoFeatureDistance()
    if imagenet is not None and teach.feature_weight > 0:
        arithmetic = choose_arithmetic(config, next(imagenet.parameters()).device)
        distance = feature_distance(
            arithmetic.frozen(imagenet), weight=teach.feature_weight, things=class_set.things, classes=C, world=world
        )
    # A teacher that is never asked about a picture has no statistics of its own.
    averages = teach.teacher_norm == "averaged" or not teach.self_training
    return Method(
        source_pass=SourcePass(distance),
        believe=_build_believe(config, world) if teach.self_training else Abstain(),
        target_passes=(_build_mixed_pass(config, C, world),) if teach.self_training else (),
        clip_gradient=ClipGradient(config.optim.clip_gradient) if config.optim.clip_gradient else gradient_norm,
        update_teacher=teacher.AverageTeacher(teach.teacher_momentum, buffers=averages),
        update_bank=_build_bank_rule(config.instance, C),
        update_shares=_build_shares_rule(config, world),
    )


def _build_shares_rule(config: Config, world: World) -> prior.AverageShares | prior.KeepShares:
    asked = config.teach.self_training and config.instance.instance_prior != "none"
    return prior.AverageShares(world=world) if asked else prior.KeepShares()


def _build_believe(config: Config, world: World) -> Believe:
    teach, inst = config.teach, config.instance
    no_instance_level = inst.instance_loss == "off"
    return Believe(
        weak_view=WEAK_VIEWS[teach.weak_view](_build_photometric(teach)),
        regenerate=regeneration.Regenerate(
            semantic=SEMANTIC_RULES[inst.regenerate_semantic](inst),
            instance=regeneration.NoInstance() if no_instance_level else INSTANCE_RULES[inst.regenerate_instance](inst),
            prior=PRIORS[inst.instance_prior](1 - WEIGHT_POWERS[inst.instance_weights]),
            start=inst.bank_start,
        ),
        label_target=teacher.LabelTarget(
            threshold=teach.threshold,
            weigh=PSEUDO_WEIGHTS[teach.pseudo_weight](world),
            of_regenerated=teach.confidence == "regenerated",
            ignore_top=teach.ignore_top,
            ignore_bottom=teach.ignore_bottom,
            world=world,
        ),
    )


def _build_mixed_pass(config: Config, classes: int, world: World) -> MixedPass:
    teach, inst = config.teach, config.instance
    loss: discrimination.InstanceLoss | discrimination.NoInstanceLoss = discrimination.NoInstanceLoss()
    if inst.instance_loss != "off":
        loss = discrimination.InstanceLoss(
            inst.instance_weight,
            inst.temperature,
            grid=GRIDS[inst.instance_loss],
            weigh=discrimination.ClassWeights(classes, WEIGHT_POWERS[inst.instance_weights], world),
            world=world,
        )
    mixed_view = views.ClassMix(classes, teach.mix_classes == "image", _build_photometric(teach))
    return MixedPass(mixed_view, loss)


def _build_photometric(teach: SelfTrainingConfig) -> views.Photometric:
    return views.Photometric(teach.jitter_chance, teach.jitter_strength, teach.blur_chance)


def _build_bank_rule(inst: InstanceConfig, classes: int) -> BankRule | NoBankRule:
    if inst.selecting == "off":
        return NoBankRule()
    from_source = inst.bank_init == "source"
    return BankRule(
        select=SELECTIONS[inst.selecting](classes, inst),
        classes=classes,
        momentum=1.0 if inst.sampling == "nu" else inst.bank_momentum,  # NU: never updated after it was filled
        every=inst.bank_every,
        start=inst.bank_start if from_source else 0,
        fill=inst.bank_fill if from_source else 0,
    )


HEADS: dict[str, type[DAFormerHead]] = {"daformer": DAFormerHead, "segformer": SegFormerHead}
WEAK_VIEWS: dict[str, Callable[[views.Photometric], views.WeakView]] = {
    "plain": lambda photometric: views.PlainView(),
    "photometric": views.PhotometricView,
}
PSEUDO_WEIGHTS: dict[str, Callable[[World], teacher.Weigh]] = {
    "batch": teacher.ShareOfBatch,
    "image": lambda world: teacher.ShareOfImage(),
    "pixel": lambda world: teacher.PerPixel(),
}
SEMANTIC_RULES: dict[str, Callable[[InstanceConfig], regeneration.SemanticRule]] = {
    "smooth": lambda inst: regeneration.SmoothSemantic(inst.phi, inst.temperature),
    "scale": lambda inst: regeneration.ScaleSemantic(inst.temperature),
    "none": lambda inst: regeneration.KeepSemantic(),
}
INSTANCE_RULES: dict[str, Callable[[InstanceConfig], regeneration.InstanceRule]] = {
    "scale": lambda inst: regeneration.ScaleInstance(),
    "smooth": lambda inst: regeneration.SmoothInstance(inst.instance_phi),
    "none": lambda inst: regeneration.KeepInstance(),
}
GRIDS: dict[str, discrimination.AtImage | discrimination.AtStride4] = {
    "image": discrimination.AtImage(),
    "stride4": discrimination.AtStride4(),
}
WEIGHT_POWERS = {"all": 0.0, "root": 0.5, "balanced": 1.0}  # of 1 / pixels of the class; the prior has the rest
PRIORS: dict[str, Callable[[float], prior.Prior]] = {
    "none": lambda power: prior.NoPrior(),
    "student": prior.StudentPrior,
    "both": prior.BothPriors,
}
SLOTS = {  # slots per class; NU fills its bank by frequency and never changes it
    "cbs": sampling.balanced_slots,
    "rs": sampling.slots_by_frequency,
    "ils": sampling.slots_by_inverse_frequency,
    "nu": sampling.slots_by_frequency,
}
SELECTIONS: dict[str, Callable[[int, InstanceConfig], Select]] = {
    "bps": lambda classes, inst: sampling.BoundaryAndInterior(classes, inst.boundary_classes, inst.clusters),
    "avg": lambda classes, inst: sampling.AllPixels(),
    "km": lambda classes, inst: sampling.CentreOnly(classes, inst.boundary_classes, inst.clusters),
    "rs": lambda classes, inst: sampling.OneAtRandom(),
}
