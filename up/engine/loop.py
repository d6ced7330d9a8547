"""The training loop, whole. Everything that changes a number is a line of it; hooks only watch."""

from __future__ import annotations

from up.distributed.vote import Vote
from up.engine.session import Run
from up.optim import set_lr


def train(run: Run) -> Vote:
    """Train to the last update; resumes exactly where the newest checkpoint stands. Returns why it ended."""
    step = run.resume()
    verdict = Vote.GO
    for update in run.updates(from_step=step):
        verdict = run.vote(update)  # all ranks agree before any forward
        if verdict is not Vote.GO:
            break
        lr = set_lr(run.optimizer, run.schedule(step))
        for micro, batch in enumerate(update.batches):
            batch = run.prepare(batch, step, micro)
            with run.runner.gradient_sync(last=micro == update.last):
                with run.precision.autocast():
                    output = run.runner.training_step(batch, step)
                run.precision.backward(output.loss * update.weights[micro])
            run.meter.add(output, update.weights[micro])
        outcome = run.precision.step(run.optimizer, run.clip, run.all_finite)  # unscale, clip, finite on all ranks?, step, zero
        step += 1
        run.ema.update(run.model, step)
        run.watch(step, update, lr, outcome)
        if run.evaluate_every.is_due(step):
            run.evaluate(step)
        if run.owes_checkpoint(step):
            run.save(step)
    return run.finish(step, verdict)
