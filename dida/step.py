"""One iteration of DIDA (Sec. III-B), as one straight line.

source ------------------------> student -> L_src, L_FD
target -> weak view -> teacher -> z, e^a -+-> gather, smooth  -> z-hat -> pseudo-label --+
                          bank -----------+-> scatter, scale  -> q-hat --------------+   |
source + target -> ClassMix -> strong view -> student -> L_ins (against q-hat) <-----+   |
                                                      -> L_tgt (against the label) <-----+
"""

import torch
from torch import Tensor

from dida.batch import Adaptation, Batch, Trace
from dida.method import Method, StepRandom
from dida.state import TrainState
from dida_kernels.equations import segmentation_loss, self_training_loss


def train_step(state: TrainState, batch: Batch, method: Method) -> Trace:
    """Advance `state` by one iteration, in place; nothing here waits for the device.

    The gradient is that of L_src + L_FD + L_tgt + lambda_ins L_ins, taken in two parts because the source graph is then
    freed before the mixed one is built.
    """
    student, source = state.student, batch.source
    rng = state.step_rng()  # a function of (seed, step), so a resumed run draws the same

    # The source, supervised: see Eq. (1).
    on_source = student(source.image)
    losses = {
        "source": segmentation_loss(on_source.logits, source.label),
        "feature": method.feature_distance(on_source, source),
    }
    sum(losses.values()).backward()

    # The target: agree with the teacher per class and per bank instance.
    target_losses, adaptation = TARGET_HALF[method.target_half](state, batch, method, rng)

    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()

    # What changes slowly changes last: the teacher by averaging, the bank by its rule (see Eq. (11)).
    method.update_teacher(state.teacher, student, state.step)
    method.update_bank(state.bank, on_source.embed.detach(), source.label, state.step, rng)
    state.step += 1
    return Trace({name: loss.detach() for name, loss in (losses | target_losses).items()}, adaptation)


def adapt(
    state: TrainState, batch: Batch, method: Method, rng: StepRandom
) -> tuple[dict[str, Tensor], Adaptation | None]:
    """The target half of the step: add the gradient of L_tgt + lambda_ins L_ins."""
    # What do the teacher and the bank believe about the target?  (Sec. III-C, III-D)
    with torch.no_grad():
        seen = state.teacher(method.weak_view(batch.target, rng))
        belief = method.regenerate(seen, state.bank, step=state.step)
        pseudo = method.label_target(belief)
        mixed = method.mixed_view(batch.source, batch.target, pseudo, rng)

    # The student answers on the strong view: see Eq. (3), (6).
    on_mixed = state.student(mixed.image)
    losses = {
        "target": self_training_loss(on_mixed.logits, mixed.label, mixed.weight),
        "instance": method.instance_loss(on_mixed, belief, mixed, state.bank, rng),
    }
    sum(losses.values()).backward()
    return losses, Adaptation(belief, pseudo, mixed)


def abstain(
    state: TrainState, batch: Batch, method: Method, rng: StepRandom
) -> tuple[dict[str, Tensor], Adaptation | None]:
    """No target half: source-only training and the oracle."""
    return {}, None


TARGET_HALF = {"adapt": adapt, "abstain": abstain}
