"""One iteration of DIDA (Sec. III-B), as one straight line.

source ------------------------> student -> L_src, L_FD                                        `source_pass`
target -> weak view -> teacher -> z, e^a -+-> gather, smooth  -> z-hat -> pseudo-label --+
                          bank -----------+-> scatter, scale  -> q-hat --------------+   |     `believe`
source + target -> ClassMix -> strong view -> student -> L_ins (against q-hat) <-----+   |
                                                      -> L_tgt (against the label) <-----+     `target_passes`
"""

from dida.batch import Batch, Trace
from dida.method.passes import Method
from dida.optim import weight_norm
from dida.state import TrainState


def train_step(state: TrainState, batch: Batch, method: Method) -> Trace:
    """Advance `state` by one iteration, in place; nothing here waits for the device.

    The gradient is that of L_src + L_FD + L_tgt + lambda_ins L_ins, taken pass by pass.
    """
    rng = state.step_rng()  # a function of (seed, step), so a resumed run draws the same

    student, teacher = state.working.refreshed()  # those of the state, or what computes for them
    source = method.source_pass(student, batch.source)
    target = method.believe(teacher, state.bank, state.shares, batch, state.step, rng)
    answers = [answer(student, state.bank, batch, target, rng) for answer in method.target_passes]
    state.working.collect()

    gradient = method.clip_gradient(state.student)  # its norm, before it is clipped
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.schedule.step()

    # What changes slowly changes last: teacher and class shares by averaging, the bank by its rule (see Eq. (11)).
    method.update_teacher(state.teacher, state.student, state.step)
    method.update_bank(state.bank, source.embed, batch.source.label, state.step, rng)
    method.update_shares(state.shares, target)
    state.step += 1
    losses = source.losses | {name: loss for answer in answers for name, loss in answer.losses.items()}
    assert len(losses) == len(source.losses) + sum(len(answer.losses) for answer in answers)  # names differ
    return Trace(losses, target, tuple(answer.view for answer in answers), gradient, weight_norm(state.student))
