"""The training loop, whole. Everything that changes a number is a line of it; hooks only watch."""

from __future__ import annotations

from up.distributed.failures import Vote
from up.engine.session import TrainingSession
from up.optim import set_lr


def train(session: TrainingSession) -> Vote:
    """Train to the last step; resumes exactly where the newest checkpoint stands. Returns why it ended."""
    step = session.resume()
    verdict = Vote.GO
    for data in session.steps(from_step=step):
        verdict = session.vote(data)  # all ranks agree before any forward
        if verdict is not Vote.GO:
            break
        lr = set_lr(session.optimizer, session.schedule(step))
        for micro, batch in enumerate(data.batches):
            batch = session.prepare(batch, step, micro)
            with session.runner.gradient_sync(last=micro == data.last):
                with session.precision.autocast():
                    output = session.runner.training_step(batch, step)
                loss = session.meter.weigh(output, data.cut.shares[micro])  # times its images, or what it is the mean of
                session.precision.backward(loss)
        mean = session.meter.scale()  # where it is not the mean over images: world size / sum of the weights
        norm = session.precision.step(session.optimizer, session.clip, session.blame, mean)  # unscale, clip, step, zero
        step += 1
        session.ema.update(session.model, step)
        session.watch(step, data, lr, norm)
        if session.evaluate_every.is_due(step):
            session.evaluate(step)
        if session.owes_checkpoint(step):
            session.save(step)
    return session.finish(step, verdict)
