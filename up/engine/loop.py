"""The training loop, whole. Everything that changes a number is a line of it; hooks only watch."""

from __future__ import annotations

from up.distributed.vote import Vote
from up.engine.session import TrainingSession
from up.optim import set_lr


def train(session: TrainingSession) -> Vote:
    """Train to the last update; resumes exactly where the newest checkpoint stands. Returns why it ended."""
    step = session.resume()
    verdict = Vote.GO
    for update in session.updates(from_step=step):
        verdict = session.vote(update)  # all ranks agree before any forward
        if verdict is not Vote.GO:
            break
        lr = set_lr(session.optimizer, session.schedule(step))
        for micro, batch in enumerate(update.batches):
            batch = session.prepare(batch, step, micro)
            with session.runner.gradient_sync(last=micro == update.last):
                with session.precision.autocast():
                    output = session.runner.training_step(batch, step)
                session.precision.backward(output.loss * update.weights[micro])
            session.meter.add(output, update.weights[micro])
        outcome = session.precision.step(
            session.optimizer, session.clip, session.all_finite
        )  # unscale, clip, finite on all ranks?, step, zero
        step += 1
        session.ema.update(session.model, step)
        session.watch(step, update, lr, outcome)
        if session.evaluate_every.is_due(step):
            session.evaluate(step)
        if session.owes_checkpoint(step):
            session.save(step)
    return session.finish(step, verdict)
