"""The training loop, whole. Everything that changes a number is a line of it; hooks only watch."""

from __future__ import annotations

from up.distributed.failures import Vote
from up.engine.session import TrainingSession
from up.engine.step import StepData
from up.optim import set_lr


def train(session: TrainingSession) -> Vote:
    """Train to the last step; resumes exactly where the newest checkpoint stands. Returns why it ended."""
    step = session.resume()
    verdict = Vote.GO
    for data in session.steps(from_step=step):
        verdict = session.vote(data)  # all ranks agree before any forward
        if verdict is not Vote.GO:
            break
        session.freeze(step)
        lr = set_lr(session.optimizer, session.schedule(step))
        session.runner.before_step(data, step)  # a search moves the architecture
        while not accumulate(session, data, step):
            session.split(data, step)  # out of memory: the same step again, in smaller micro-batches
        session.runner.seed_update(session.optimizer, step)  # draws of Kron and of optimizers of one's own
        mean = session.meter.scale()  # where it is not the mean over images: world size / sum of the weights
        norm = session.precision.step(session.optimizer, session.clip, session.blame(), mean)  # unscale, clip, step, zero
        step += 1
        session.runner.after_step(step)  # a search lets its population evolve
        session.ema.update(session.model, step)
        session.watch(step, data, lr, norm)
        if session.evaluate_every.is_due(step):
            session.evaluate(step)
        if session.owes_checkpoint(step):
            session.save(step)
    return session.finish(step, verdict)


def accumulate(session: TrainingSession, data: StepData, step: int) -> bool:
    """Add the gradients of all micro-batches of a step; returns False where one did not fit into memory, on any rank."""
    for part in session.parts(data, step):  # mixed, then cut where memory ran out before
        with session.memory.guard(), session.runner.gradient_sync(last=part.is_last):
            with session.precision.autocast():
                output = session.runner.training_step(part.batch, step)
            session.memory.agree(part)  # all ranks, before they exchange gradients
            loss = session.meter.weigh(output, part.share)  # times its images, or what it is the mean of
            session.precision.backward(loss)
        if session.memory.ran_out:
            return False
    return True
