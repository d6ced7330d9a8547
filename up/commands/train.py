"""``up train``: YAML to a trained, evaluated checkpoint."""

from __future__ import annotations

from up.assembly.run import assemble, record_failure
from up.commands.arguments import add_config, command_parser, without_meaningless
from up.experiment import load_experiment
from up.runner.loop import train
from up.runner.stop import listening
from up.runner.vote import Vote


def main(words: list[str]) -> int:
    """Train as the configuration says; returns the exit code."""
    parser = command_parser(
        "train", "Train from a YAML file. Run the same command again to go on after a kill (saver.auto_resume)."
    )
    parser.add_argument("-e", "--evaluate", action="store_true", help="evaluate only, as `up eval`")
    parser.add_argument("--phase", choices=("train", "eval"), default="train", help="eval is the same as --evaluate")
    parser.add_argument("--display", type=int, metavar="N", help="updates between lines of the log (default: trainer.log_interval)")
    parser.add_argument("--allow_dead_parameter", action="store_true", help="let parameters go without a gradient")
    parser.add_argument("--fork-method", choices=("fork", "spawn"), help="how worker processes are started")
    add_config(parser)
    arguments = parser.parse_args(without_meaningless(words[1:]))
    if arguments.evaluate or arguments.phase == "eval":
        from up.commands.eval import main as evaluate

        return evaluate(["eval", "--config", str(arguments.config), "--opts", *arguments.opts])
    overrides = list(arguments.opts)
    if arguments.display is not None:
        overrides.append(f"trainer.log_interval={arguments.display}")
    if arguments.allow_dead_parameter:
        overrides.append("runtime.allow_dead_parameter=true")
    if arguments.fork_method is not None:
        overrides.append(f"dataset.train.dataloader.kwargs.fork_method={arguments.fork_method}")
    experiment = load_experiment(arguments.config, overrides)
    with listening() as stop:
        run = assemble(experiment, stop)
        with record_failure(run):
            verdict = train(run)
    return 0 if verdict is Vote.GO else stop.exit_code
