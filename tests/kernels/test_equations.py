"""Section III worked by hand: numbers small enough to check on paper, and identities that hold for any input."""

import math

import pytest
import torch
from torch import Tensor

from dida_kernels.equations import (
    IGNORE,
    bank_similarity,
    bank_update,
    boundary_mask,
    class_similarity,
    confident,
    gather,
    instance_loss,
    pseudo_label,
    scale,
    scatter,
    segmentation_loss,
    self_training_loss,
    smooth,
)
from tests.cases import SCENES, call, resized

LOG2, LOG3, LOG4 = math.log(2), math.log(3), math.log(4)


def tensor(values: list, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def image(rows: list) -> Tensor:
    """[H][W] -> [1, H, W]"""
    return torch.tensor(rows)[None]


def close(got: Tensor, expected: list | float | Tensor) -> None:
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=1e-12, atol=1e-12)


# ---- Eq. (1) to (3) ------------------------------------------------------------------------------------------------

# Two classes, four pixels; the probabilities of class 1 are 1/2, 3/4, 1/2, 1/4.
LOGITS_BCHW = tensor([[[[0, 0], [0, LOG3]], [[0, LOG3], [0, 0]]]])


def test_eq_1_is_the_mean_over_all_pixels_with_ignored_ones_as_zero():
    label = image([[1, 1], [IGNORE, 1]])
    close(segmentation_loss(LOGITS_BCHW, label), (LOG2 + math.log(4 / 3) + 0 + LOG4) / 4)


def test_eq_1_is_zero_when_all_is_ignored():
    close(segmentation_loss(LOGITS_BCHW, torch.full((1, 2, 2), IGNORE)), 0.0)


def test_eq_2_is_the_most_probable_class():
    assert pseudo_label(LOGITS_BCHW.softmax(1)).tolist() == [[[0, 1], [0, 0]]]


def test_eq_3_weights_each_pixel_by_its_confidence():
    weight = confident(tensor([[[0.5, 0.75], [0.5, 0.75]]]), 0.75)
    assert weight.tolist() == [[[0, 1], [0, 1]]]  # reaching the threshold is enough
    close(self_training_loss(LOGITS_BCHW, image([[0, 1], [0, 1]]), weight), (math.log(4 / 3) + LOG4) / 4)


# ---- Eq. (4) to (6) ------------------------------------------------------------------------------------------------

AXES_KD = tensor([[2, 0], [0, 5]])  # orthogonal, of unequal length: only directions count


def test_eq_4_and_5_are_the_softmax_of_the_cosine():
    q_NK = bank_similarity.reference(tensor([[3, 0], [0, 1], [1, 1]]), AXES_KD, temperature=1 / LOG3)
    close(q_NK, [[3 / 4, 1 / 4], [1 / 4, 3 / 4], [1 / 2, 1 / 2]])


def test_eq_4_and_5_do_not_see_the_length_of_embeddings_or_slots():
    (embed, bank), options = call("bank_similarity", SCENES["ordinary"], dtype=torch.float64)
    lengths_K1 = torch.arange(1, len(bank) + 1)[:, None]
    close(
        bank_similarity.reference(7 * embed, lengths_K1 * bank, **options),
        bank_similarity.reference(embed, bank, **options),
    )


def test_a_zero_embedding_is_similar_to_no_slot():
    for dtype in (torch.float64, torch.float16):
        q_NK = bank_similarity.reference(torch.zeros(1, 2, dtype=dtype), AXES_KD.to(dtype), temperature=0.1)
        assert q_NK.tolist() == [[0.5, 0.5]]


def test_an_embedding_without_a_direction_has_no_gradient_and_takes_none_from_the_others():
    for dtype, short in ((torch.float64, 1e-13), (torch.float32, 0.0), (torch.float16, 1e-5)):
        embed = torch.tensor([[0, 0], [short, 0], [3, 4]], dtype=dtype, requires_grad=True)
        q_NK = bank_similarity.reference(embed, AXES_KD.to(dtype), temperature=1.0)
        q_NK[:, 0].sum().backward()
        assert q_NK[:2].tolist() == [[0.5, 0.5]] * 2
        assert embed.grad[:2].tolist() == [[0, 0]] * 2
        # q_0 = sigmoid(c_0 - c_1) with c = (0.6, 0.8), so its derivative to e is q_0 q_1 (b_0 - b_1 + 0.2 c) / 5.
        expected = q_NK[2].prod().item() * torch.tensor([1.12, -0.84]) / 5
        torch.testing.assert_close(embed.grad[2].float(), expected, rtol=4 * torch.finfo(dtype).eps + 1e-6, atol=0)


def test_a_broken_embedding_is_not_taken_for_one_without_a_direction():
    assert bank_similarity.reference(tensor([[math.nan, 0]]), AXES_KD, temperature=1.0).isnan().all()


def one_pixel_loss(
    student: list, teacher: list, z: list, label_K: list, *, weight: float = 1.0, log_prior: list | None = None
) -> Tensor:
    student_1D11, teacher_1D11, z_1C11 = (tensor(x)[None, :, None, None] for x in (student, teacher, z))
    args = (student_1D11, teacher_1D11, z_1C11, tensor([[[weight]]]), AXES_KD, torch.tensor(label_K))
    log_prior_C = None if log_prior is None else tensor(log_prior)
    return instance_loss.reference(*args, temperature=1 / LOG3, log_prior_C=log_prior_C)


def test_eq_6_is_the_cross_entropy_of_the_two_levels():
    # q of the teacher = (3/4, 1/4); z (1/4, 3/4) scales it to q_hat = (1/2, 1/2); q of the student = (1/4, 3/4).
    close(one_pixel_loss([0, 1], [1, 0], [0.25, 0.75], [0, 1]), -(math.log(1 / 4) + math.log(3 / 4)) / 2)
    # A z of ones leaves q_hat = (3/4, 1/4).
    close(one_pixel_loss([0, 1], [1, 0], [1, 1], [0, 1]), -(3 * math.log(1 / 4) + math.log(3 / 4)) / 4)


def test_a_class_prior_multiplies_the_students_q():
    # q of the student = (1/4, 3/4) times (3, 1) = (1/2, 1/2); the teacher's q_hat stays (3/4, 1/4).
    close(one_pixel_loss([0, 1], [1, 0], [1, 1], [0, 1], log_prior=[LOG3, 0]), math.log(2))
    # A constant more changes nothing, nor does a class without slots.
    close(one_pixel_loss([0, 1], [1, 0], [1, 1, 0], [0, 1], log_prior=[LOG3 - 5, -5, 70]), math.log(2))


def test_a_class_prior_multiplies_what_the_bank_says_of_a_class():
    embed_1D11, label_K = tensor([0, 1])[None, :, None, None], torch.tensor([1, 0])
    options = {"classes": 3, "temperature": 1 / LOG3, "size": (1, 1), "log_prior_C": tensor([0, LOG3, 70])}
    # (1/4, 3/4) over the slots is (3/4, 1/4) over the classes, times (1, 3).
    close(class_similarity.reference(embed_1D11, AXES_KD, label_K, **options).flatten(), [0.5, 0.5, 0])


def test_eq_6_leaves_out_pixels_that_do_not_count():
    assert one_pixel_loss([0, 1], [1, 0], [0.25, 0.75], [0, 1], weight=0.0) == 0
    assert one_pixel_loss([0, 1], [1, 0], [0, 1], [0, 0]) == 0  # all mass on class 1, which has no slot
    # MASS says how much of it must be on slots: of z, whatever it sums to and however far the slots are.
    assert one_pixel_loss([0, 1], [1, 0], [0.9e-6, 1], [0, 0]) == 0
    close(one_pixel_loss([0, 1], [1, 0], [2.2e-6, 2], [0, 0]), -(3 * math.log(1 / 4) + math.log(3 / 4)) / 4)


def test_weights_make_a_mean_of_pixels():
    args, options = call("instance_loss", SCENES["weighted"], dtype=torch.float64)
    student, teacher, z, weight, bank, label_K = args
    assert 0 < (weight > 0).sum() < weight.numel()
    total = torch.zeros((), dtype=torch.float64)
    for b, y, x in weight.nonzero().tolist():
        only = torch.zeros_like(weight)
        only[b, y, x] = 7.0  # alone, a pixel is its own mean
        total += weight[b, y, x] * instance_loss.reference(student, teacher, z, only, bank, label_K, **options)
    for factor in (1.0, 1e-9):  # of all weights: it cancels
        scaled = (student, teacher, z, factor * weight, bank, label_K)
        close(instance_loss.reference(*scaled, **options), total / weight.sum())


def test_eq_6_averages_over_the_pixels_that_count():
    args, options = call("instance_loss", SCENES["slotless_z"], dtype=torch.float64)
    student, teacher, z, weight, bank, label_K = args
    one_by_one = []
    for b, y, x in weight.nonzero().tolist():
        if z[b, label_K.unique(), y, x].sum() > 0:
            only = torch.zeros_like(weight)
            only[b, y, x] = 1
            one_by_one.append(instance_loss.reference(student, teacher, z, only, bank, label_K, **options))
    assert 0 < len(one_by_one) < weight.sum()
    close(instance_loss.reference(*args, **options), torch.stack(one_by_one).mean())


def test_eq_6_enlarges_embeddings_before_it_normalises_them():
    """Half way between nodes (4, 0) and (0, 4 sqrt 3) lies (2, 2 sqrt 3): the longer one pulls harder."""
    student_1D12 = tensor([[[[4, 0]], [[0, 4 * math.sqrt(3)]]]])
    z_1C13 = torch.ones(1, 2, 1, 3, dtype=torch.float64)
    middle = tensor([[[0, 1, 0]]])
    args = (student_1D12, student_1D12, z_1C13, middle, AXES_KD, torch.tensor([0, 1]))
    weight = tensor([1 / 2, math.sqrt(3) / 2]).mul(LOG3).softmax(0)  # cos 60 and cos 30 degrees
    close(instance_loss.reference(*args, temperature=1 / LOG3), -(weight * weight.log()).sum())


# ---- Eq. (7) to (10) -----------------------------------------------------------------------------------------------

Q_NK, LABEL_K = tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([1, 0, 1])
Z_NC = tensor([[0.2, 0.8], [1.0, 0.0]])


def test_eq_7_unfolds_classes_onto_slots():
    close(scatter.reference(Z_NC, LABEL_K), [[0.8, 0.2, 0.8], [0, 1, 0]])


def test_eq_8_scales_and_renormalises():
    q_hat_NK, defined_N = scale(Q_NK, scatter.reference(Z_NC, LABEL_K))
    close(q_hat_NK, [[0.40 / 0.62, 0.06 / 0.62, 0.16 / 0.62], [0, 1, 0]])
    assert defined_N.tolist() == [True, True]


def test_eq_8_is_undefined_where_no_slot_has_mass():
    q_hat_NK, defined_N = scale(Q_NK[:1], torch.zeros(1, 3, dtype=torch.float64))
    assert defined_N.tolist() == [False]
    close(q_hat_NK, [[0.0, 0.0, 0.0]])


def test_eq_9_sums_slots_per_class():
    close(gather.reference(Q_NK, LABEL_K, classes=3), [[0.3, 0.7, 0], [0.1, 0.9, 0]])


def test_eq_10_is_a_convex_combination():
    close(smooth(Z_NC, tensor([[0.6, 0.4], [0.5, 0.5]]), 0.75), [[0.3, 0.7], [0.875, 0.125]])


def regenerated(scene_name: str = "ordinary") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, z, the slots' classes and q_hat of a random input."""
    (q_NK, label_K), _ = call("gather", SCENES[scene_name], dtype=torch.float64)
    (z_NC, _), _ = call("scatter", SCENES[scene_name], dtype=torch.float64)
    return q_NK, z_NC, label_K, scale(q_NK, scatter.reference(z_NC, label_K))[0]


@pytest.mark.parametrize("name", ["ordinary", "empty_classes", "hard_z"])
def test_gather_and_scatter_are_adjoint(name):
    q_NK, z_NC, label_K, _ = regenerated(name)
    q_ga_NC = gather.reference(q_NK, label_K, classes=z_NC.shape[1])
    close((q_NK * scatter.reference(z_NC, label_K)).sum(1), (q_ga_NC * z_NC).sum(1))


@pytest.mark.parametrize("name", ["ordinary", "empty_classes"])
def test_gathering_the_scaled_level_scales_the_gathered_one(name):
    q_NK, z_NC, label_K, q_hat_NK = regenerated(name)
    classes = z_NC.shape[1]
    expected_NC, _ = scale(z_NC, gather.reference(q_NK, label_K, classes=classes))
    close(gather.reference(q_hat_NK, label_K, classes=classes), expected_NC)


def test_inside_a_class_scaling_keeps_the_proportions():
    q_NK, _, label_K, q_hat_NK = regenerated()
    for c in label_K.unique():
        q, q_hat = q_NK[:, label_K == c], q_hat_NK[:, label_K == c]
        close(q_hat / q_hat.sum(1, keepdim=True), q / q.sum(1, keepdim=True))


def test_smoothed_classes_sum_to_one_and_phi_one_changes_nothing():
    q_NK, z_NC, label_K, _ = regenerated()
    q_ga_NC = gather.reference(q_NK, label_K, classes=z_NC.shape[1])
    close(smooth(z_NC, q_ga_NC, 0.9).sum(1), torch.ones(len(z_NC)))
    assert torch.equal(smooth(z_NC, q_ga_NC, 1.0), z_NC)


def test_permuting_slots_changes_nothing():
    (*maps, bank, label_K), options = call("instance_loss", SCENES["empty_classes"], dtype=torch.float64)
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(1))
    close(
        instance_loss.reference(*maps, bank[order], label_K[order], **options),
        instance_loss.reference(*maps, bank, label_K, **options),
    )
    (embed, bank, label_K), options = call("class_similarity", SCENES["ordinary"], dtype=torch.float64)
    close(
        class_similarity.reference(embed, bank[order], label_K[order], **options),
        class_similarity.reference(embed, bank, label_K, **options),
    )


def test_a_bank_of_equal_slots_leaves_the_order_of_the_classes():
    """All slots alike and equally many per class: q_ga is 1/C, so smoothing shrinks z without reordering it."""
    scene = resized(SCENES["one_row_per_class"], K=10)
    (embed, bank, _), options = call("class_similarity", scene, dtype=torch.float64)
    label_K = torch.arange(10) % scene.C
    q_ga = class_similarity.reference(embed, bank[:1].expand_as(bank), label_K, **options)
    close(q_ga, torch.full_like(q_ga, 1 / scene.C))
    z = call("instance_loss", scene, dtype=torch.float64).args[2]
    assert torch.equal(smooth(z, q_ga, 0.9).argsort(1), z.argsort(1))


# ---- Algorithm 1 ---------------------------------------------------------------------------------------------------


def boundary(rows: list, threshold: int = 2) -> list:
    return boundary_mask.reference(image(rows), classes=4, threshold=threshold)[0].int().tolist()


def test_algorithm_1_marks_both_sides_of_a_border():
    assert boundary([[0, 0, 1, 1]] * 3) == [[0, 1, 1, 0]] * 3


def test_algorithm_1_reaches_diagonally():
    assert boundary([[0, 0, 0], [0, 0, 0], [0, 0, 1]]) == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_algorithm_1_does_not_wrap_around_the_edges():
    assert boundary([[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]]) == [[0, 0, 1, 1]] * 3


def test_algorithm_1_neither_counts_nor_marks_ignored_pixels():
    assert boundary([[0, IGNORE, 0]] * 3) == [[0, 0, 0]] * 3
    assert boundary([[0, IGNORE, 1]] * 3) == [[0, 0, 0]] * 3  # 0 and 1 do not share a window around a valid centre
    assert boundary([[0, 1, IGNORE]] * 3) == [[1, 1, 0]] * 3


def test_algorithm_1_as_printed_keeps_triple_points_only():
    rows = [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [2, 2, 2, 2, 2]]
    assert boundary(rows, threshold=3) == [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0]]
    assert boundary([[0, 1], [0, 1]], threshold=3) == [[0, 0], [0, 0]]


def test_algorithm_1_keeps_images_apart():
    labels = torch.tensor([[[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    assert not boundary_mask.reference(labels, classes=2).any()


# ---- Eq. (11) ------------------------------------------------------------------------------------------------------


def update(embed_HW: list, label_HW: list, boundary_HW: list, *, momentum: float = 0.5, classes: int = 3) -> Tensor:
    """One channel, one image, three slots with the values 10, 20, 30 of the classes 0, 1, 2."""
    maps = tensor([[embed_HW]]), image(label_HW), image(boundary_HW).bool()
    bank_KD = tensor([[10], [20], [30]])
    return bank_update.reference(bank_KD, torch.arange(3), *maps, classes=classes, momentum=momentum)


def test_eq_11_averages_the_means_of_boundary_and_interior():
    # Class 0: boundary mean 8, interior mean (1 + 3) / 2, so e_avg = 5. Class 1: boundary alone, 6. Class 2: interior
    # alone, 4.
    got = update([[8, 1, 3], [6, 4, 99]], [[0, 0, 0], [1, 2, IGNORE]], [[1, 0, 0], [1, 0, 1]])
    close(got, [[7.5], [13], [17]])


def test_eq_11_leaves_absent_classes_as_they_are_bit_for_bit():
    args, options = call("bank_update", SCENES["ordinary"])
    bank, label_K, embed, labels, boundary_BHW = args
    labels = torch.where(labels == 2, IGNORE, labels)
    got = bank_update.reference(bank, label_K, embed, labels, boundary_BHW, **options)
    present_K = torch.isin(label_K, labels.unique())
    assert torch.equal(got[~present_K], bank[~present_K])
    assert (got[present_K] != bank[present_K]).any(1).all()


def test_eq_11_reads_every_image_with_its_own_labels():
    embed_BDhw = tensor([[[[1.0, 2.0]]], [[[3.0, 4.0]]]])
    labels = torch.tensor([[[0, 1]], [[1, 0]]])
    none = torch.zeros_like(labels, dtype=torch.bool)
    got = bank_update.reference(torch.zeros(2, 1), torch.arange(2), embed_BDhw, labels, none, classes=2, momentum=0.0)
    close(got, [[(1 + 4) / 2], [(2 + 3) / 2]])


def test_eq_11_with_momentum_one_keeps_and_with_zero_replaces():
    maps = [[8, 8, 8]], [[0, 1, 2]], [[0, 0, 0]]
    close(update(*maps, momentum=1.0), [[10], [20], [30]])
    close(update(*maps, momentum=0.0), [[8], [8], [8]])


def test_eq_11_changes_nothing_in_place():
    args, options = call("bank_update", SCENES["ordinary"])
    before = args[0].clone()
    bank_update.reference(*args, **options)
    assert torch.equal(args[0], before)
