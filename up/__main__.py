"""The command line: a name to the module that does the work, imported when it is asked for."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from up import __version__

COMMANDS = {
    "train": ("up.commands.train:main", "train from a YAML file; resumes where a killed run stood"),
    "eval": ("up.commands.eval:main", "evaluate a checkpoint on the test data, with reports per class"),
    "predict": ("up.commands.predict:main", "class names and scores for images or folders"),
    "to_onnx": ("up.commands.to_onnx:main", "export a checkpoint as one ONNX file, proved against torch"),
    "to_kestrel": ("up.commands.to_kestrel:main", "export a checkpoint as a package, or for Triton (--to triton)"),
    "verify": ("up.commands.verify:main", "check a package: members, hashes, labels, graph, test vectors"),
    "check": ("up.commands.check:main", "prove a config in seconds: names, types, files, shapes through net and loss"),
    "show": ("up.commands.show:main", "show config | components | schema"),
    "flops": ("up.commands.flops:main", "parameters, multiply-adds and activations of a network"),
}
ALIASES = {"inference": "predict"}


def usage() -> str:
    """The text of ``python -m up --help``."""
    lines = [
        f"up {__version__}: image classifiers from one YAML file",
        "",
        "usage: python -m up COMMAND [--help] …",
        "",
    ]
    lines += [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "first steps: make quickstart; python -m up check --config configs/cls/quickstart.yaml"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (0 done, 1 our bug, 2 the user's input, 3 numerical, 74 storage, 75 preempted)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(__version__)
        return 0
    name = ALIASES.get(arguments[0], arguments[0])
    if name not in COMMANDS:
        from up.text import did_you_mean

        print(
            f"up: no command is called {arguments[0]!r}.{did_you_mean(name, COMMANDS)} See python -m up --help.",
            file=sys.stderr,
        )
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    from up.commands.outcome import run_command
    from up.environment import let_idle_threads_sleep

    let_idle_threads_sleep()
    return run_command(getattr(import_module(module), function), arguments)


if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:
        from up.runner.stop import end_process

        end_process(code)
    sys.exit(code)
