"""Inputs for every op, small enough for the Triton interpreter, plus the one size at which benches run.

A `Scene` is the sizes and the one unpleasant trait of an input; `call(op, scene)` turns it into the op's arguments. The
numbers depend on the scene's name only, so a failing case can be repeated alone; DIDA_SEED, any text, makes others of
the same kind. Tests, opcheck and benches share them.

Letters in names say the layout: B images, C classes, D channels, K bank slots, N pixels, HW image, hw feature grid.
"""

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255
SEED = os.environ.get("DIDA_SEED", "")
GRADIENT = {"bank_similarity": 0, "instance_loss": 0, "scatter": 0, "gather": 0}  # op -> its differentiable argument


@dataclass(frozen=True)
class Scene:
    """Sizes, and at most a few departures from the ordinary, each a word that the factories below look for."""

    name: str
    seed: str = SEED
    B: int = 2
    C: int = 5
    D: int = 8
    K: int = 13
    hw: tuple[int, int] = (3, 4)
    HW: tuple[int, int] = (6, 8)
    temperature: float = 0.1
    slots: str = "shuffled"  # shuffled | some_empty (even classes only)
    z: str = "soft"  # soft | hard (exact 0 and 1) | ones | slotless (some pixels wholly on classes without slots)
    valid: str = "most"  # most | few (some rows have none) | middle (of the last image) | none | one_image | all
    weights: str = "ones"  # of valid pixels: ones | uneven (three orders of magnitude)
    log_prior: str = "none"  # none | uneven (from e^-8 to 1)
    region: int = 1  # nodes of a side that share a class
    embed: str = "clustered"  # clustered | zeros (a patch of nodes is exactly zero)
    layout: str = "plain"  # plain | channels_last | strided | misaligned
    threshold: int = 2
    momentum: float = 0.9


class Call(NamedTuple):
    """`op(*args, **options)`."""

    args: tuple[Any, ...]
    options: dict[str, Any]


SCENES = {
    scene.name: scene
    for scene in (
        Scene("ordinary"),
        Scene("one_pixel", B=1, hw=(1, 1), HW=(1, 1), valid="all"),
        Scene("one_slot", K=1),
        Scene("one_row_per_class", K=5),
        Scene("fewer_slots_than_classes", K=3),
        Scene("many_slots", K=40, C=7, D=16),
        Scene("empty_classes", slots="some_empty"),
        Scene("slotless_z", slots="some_empty", z="slotless"),
        Scene("hard_z", z="hard"),
        Scene("z_of_ones", z="ones"),
        Scene("nothing_valid", valid="none"),
        Scene("few_valid", hw=(4, 5), HW=(16, 20), valid="few"),
        Scene("far_valid", B=1, hw=(6, 12), HW=(24, 48), valid="few", weights="uneven"),
        Scene("middle_valid", hw=(1, 95), HW=(2, 190), valid="middle"),  # whole programs of the kernels have no weight
        Scene("weighted", weights="uneven"),
        Scene("with_prior", weights="uneven", log_prior="uneven", K=40),
        Scene("with_prior_same_grid", hw=(5, 6), HW=(5, 6), weights="uneven", log_prior="uneven"),
        Scene("with_prior_slotless", slots="some_empty", z="slotless", log_prior="uneven"),
        Scene("one_image_invalid", valid="one_image"),
        Scene("zero_embedding", hw=(4, 4), HW=(8, 8), embed="zeros"),
        Scene("one_node_row", hw=(1, 5), HW=(4, 20)),
        Scene("one_node_column", hw=(5, 1), HW=(10, 2)),
        Scene("same_grid", hw=(5, 6), HW=(5, 6)),
        Scene("stride_4", B=1, hw=(3, 3), HW=(12, 12)),
        Scene("uneven_ratio", hw=(3, 4), HW=(7, 9)),
        Scene("odd_channels", D=5),
        Scene("one_class", C=1, K=4),
        Scene("channels_last", layout="channels_last"),
        Scene("strided", layout="strided"),
        Scene("misaligned", layout="misaligned"),
        Scene("warm", temperature=1.0),
        Scene("cold", temperature=0.05),
        Scene("coldest", temperature=0.01),
        Scene("coldest_hard_z", temperature=0.01, z="hard", log_prior="uneven"),
        Scene("coldest_slotless_same_grid", hw=(5, 6), HW=(5, 6), temperature=0.01, slots="some_empty", z="slotless"),
        Scene("triple_points", hw=(6, 6), HW=(6, 6), threshold=3),
        Scene("forgetful_bank", momentum=0.0, slots="some_empty"),
    )
}
MAIN = Scene("main", B=2, C=19, D=256, K=300, hw=(128, 128), HW=(512, 512), momentum=0.999)


def call(op: str, scene: Scene, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Call:
    """Arguments of `op` in this scene. `dtype` is for embeddings and probabilities; the bank is at least float32."""
    made = CALLS[op](_Maker(scene, dtype))
    return changed(made, lambda x: laid_out(x.to(device), scene.layout))


def cast(made: Call, dtype: torch.dtype) -> Call:
    """The same call with every floating argument in `dtype`; in float64 it states the truth of the rounded inputs."""
    return changed(made, lambda x: x.to(dtype) if x.is_floating_point() else x)


def changed(made: Call, change: Callable[[Tensor], Tensor]) -> Call:
    """The same call with every tensor changed, options included."""
    args = tuple(change(x) if isinstance(x, Tensor) else x for x in made.args)
    return Call(args, {name: change(x) if isinstance(x, Tensor) else x for name, x in made.options.items()})


def resized(scene: Scene, **sizes: Any) -> Scene:
    """`scene` with other sizes, under a name that says so (the name seeds the numbers)."""
    return replace(scene, name=f"{scene.name}-{'-'.join(f'{k}{v}' for k, v in sizes.items())}", **sizes)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another place: strides and alignments that a kernel must not assume away."""
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
    if layout == "misaligned":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x


class _Maker:
    """The parts that calls are put together from: embeddings near class centres, so that no softmax is flat."""

    def __init__(self, scene: Scene, dtype: torch.dtype):
        self.scene, self.dtype = scene, dtype
        self.rng = torch.Generator().manual_seed(zlib.crc32((scene.name + scene.seed).encode()))
        self.centre_CD = self.normal(scene.C, scene.D)
        sides = (-(-side // scene.region) for side in scene.hw)
        regions_Bhw = self.integers(scene.C, scene.B, *sides)
        enlarged_Bhw = regions_Bhw.repeat_interleave(scene.region, 1).repeat_interleave(scene.region, 2)
        self.node_class_Bhw = enlarged_Bhw[:, : scene.hw[0], : scene.hw[1]]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng, dtype=torch.float64)

    def integers(self, end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=self.rng)

    def label_K(self) -> Tensor:
        s = self.scene
        label_K = torch.arange(s.K) % s.C
        if s.slots == "some_empty":
            label_K = label_K // 2 * 2
        return label_K[torch.randperm(s.K, generator=self.rng)]

    def bank_KD(self, label_K: Tensor) -> Tensor:
        bank_KD = 3 * (self.centre_CD[label_K] + 0.7 * self.normal(self.scene.K, self.scene.D))
        return bank_KD.to(torch.promote_types(self.dtype, torch.float32))

    def embed_BDhw(self, noise: float) -> Tensor:
        near_BhwD = self.centre_CD[self.node_class_Bhw]
        embed_BDhw = (near_BhwD + noise * self.normal(*near_BhwD.shape)).permute(0, 3, 1, 2).contiguous()
        if self.scene.embed == "zeros":
            embed_BDhw[:, :, 1:3, 1:3] = 0  # the pixels between these four nodes have no direction
        return embed_BDhw.to(self.dtype)

    def embed_ND(self) -> Tensor:
        return self.embed_BDhw(0.8).permute(0, 2, 3, 1).flatten(0, 2).contiguous()

    def pixel_class_BHW(self) -> Tensor:
        node_B1hw = self.node_class_Bhw[:, None].double()
        return F.interpolate(node_B1hw, size=self.scene.HW, mode="nearest")[:, 0].long()

    def z_BCHW(self, label_K: Tensor) -> Tensor:
        s = self.scene
        near_BCHW = F.one_hot(self.pixel_class_BHW(), s.C).permute(0, 3, 1, 2).double()
        z_BCHW = (3 * near_BCHW + self.normal(s.B, s.C, *s.HW)).softmax(1)
        if s.z == "hard":
            z_BCHW = near_BCHW
        if s.z == "ones":
            z_BCHW = torch.ones_like(z_BCHW)
        if s.z == "slotless":
            has_slots_C = torch.zeros(s.C).index_fill(0, label_K, 1)
            on_slotless_BCHW = F.one_hot((has_slots_C == 0).long().argmax(), s.C)[None, :, None, None].double()
            lost_B1HW = self.integers(3, s.B, 1, *s.HW) == 0
            z_BCHW = torch.where(lost_B1HW, on_slotless_BCHW, z_BCHW)
        return z_BCHW.contiguous().to(self.dtype)

    def valid_BHW(self) -> Tensor:
        s = self.scene
        valid_BHW = self.integers(5, s.B, *s.HW) > 0
        if s.valid == "few":
            valid_BHW &= self.integers(40, s.B, *s.HW) == 0
        if s.valid == "middle":
            valid_BHW[:-1], valid_BHW[-1, :, : s.HW[1] // 3], valid_BHW[-1, :, 2 * s.HW[1] // 3 :] = False, False, False
        if s.valid == "none":
            valid_BHW[:] = False
        if s.valid == "one_image":
            valid_BHW[0] = False
        if s.valid == "all":
            valid_BHW[:] = True
        if s.valid != "none":  # by chance none would count in a scene of one or two pixels, which would test nothing
            valid_BHW[-1, -1, -1] |= ~valid_BHW.any()
        return valid_BHW

    def weight_BHW(self) -> Tensor:
        valid_BHW = self.valid_BHW()
        weight_BHW = valid_BHW.double()
        if self.scene.weights == "uneven":
            weight_BHW *= 10 ** -(3 * torch.rand(valid_BHW.shape, generator=self.rng, dtype=torch.float64))
        return weight_BHW.to(self.dtype)

    def log_prior(self) -> dict[str, Tensor]:
        """The option of that name, where the scene has one."""
        if self.scene.log_prior == "none":
            return {}
        log_prior_C = -8 * torch.rand(self.scene.C, generator=self.rng, dtype=torch.float64)
        return {"log_prior_C": log_prior_C.to(torch.promote_types(self.dtype, torch.float32))}

    def label_BHW(self) -> Tensor:
        label_BHW = self.pixel_class_BHW()
        if self.scene.valid == "none":
            return torch.full_like(label_BHW, IGNORE)
        return torch.where(self.valid_BHW(), label_BHW, IGNORE)


def _bank_similarity(make: _Maker) -> Call:
    return Call((make.embed_ND(), make.bank_KD(make.label_K())), {"temperature": make.scene.temperature})


def _instance_loss(make: _Maker) -> Call:
    label_K = make.label_K()
    args = (
        make.embed_BDhw(1.2),
        make.embed_BDhw(0.8),
        make.z_BCHW(label_K),
        make.weight_BHW(),
        make.bank_KD(label_K),
        label_K,
    )
    return Call(args, {"temperature": make.scene.temperature} | make.log_prior())


def _scatter(make: _Maker) -> Call:
    label_K = make.label_K()
    semantic_NC = make.z_BCHW(label_K).permute(0, 2, 3, 1).flatten(0, 2).contiguous()
    return Call((semantic_NC, label_K), {})


def _gather(make: _Maker) -> Call:
    N = make.pixel_class_BHW().numel()
    q_NK = (4 * make.normal(N, make.scene.K)).softmax(1).to(make.dtype)
    return Call((q_NK, make.label_K()), {"classes": make.scene.C})


def _class_similarity(make: _Maker) -> Call:
    label_K = make.label_K()
    options = {"classes": make.scene.C, "temperature": make.scene.temperature, "size": make.scene.HW}
    return Call((make.embed_BDhw(0.8), make.bank_KD(label_K), label_K), options | make.log_prior())


def _boundary_mask(make: _Maker) -> Call:
    return Call((make.label_BHW(),), {"classes": make.scene.C, "threshold": make.scene.threshold})


def _bank_update(make: _Maker) -> Call:
    label_K = make.label_K()
    boundary_BHW = make.integers(3, make.scene.B, *make.scene.HW) == 0
    args = (make.bank_KD(label_K), label_K, make.embed_BDhw(0.8), make.label_BHW(), boundary_BHW)
    return Call(args, {"classes": make.scene.C, "momentum": make.scene.momentum})


CALLS: dict[str, Callable[[_Maker], Call]] = {
    "bank_similarity": _bank_similarity,
    "instance_loss": _instance_loss,
    "scatter": _scatter,
    "gather": _gather,
    "class_similarity": _class_similarity,
    "boundary_mask": _boundary_mask,
    "bank_update": _bank_update,
}
