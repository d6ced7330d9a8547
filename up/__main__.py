"""The command line: look up a command by name and import its module."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from up import __version__
from up.commands.catalog import ALIASES, COMMANDS, GROUPS
from up.commands.streams import prepare_streams
from up.text import did_you_mean


def usage() -> str:
    """Return the text of ``python -m up --help``."""
    lines = [
        f"up {__version__}: image classifiers from one YAML file",
        "",
        "usage: python -m up COMMAND … (or up COMMAND …); up COMMAND --help lists the arguments of one",
    ]
    for group in GROUPS:
        lines += ["", group]
        for name, command in COMMANDS.items():
            if command.group == group:
                lines += [f"  {name:<12}{command.summary}", f"  {'':<12}  {command.example}"]
    lines += ["", "first steps: make quickstart, or up train FOLDER with one folder of photos per class"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (0 done, 1 bug, 2 user input, 3 numerical, 74 storage, 75 preempted)."""
    prepare_streams()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(__version__)
        return 0
    name = ALIASES.get(arguments[0], arguments[0])
    if name not in COMMANDS:
        print(f"up: no command is called {arguments[0]!r}.{did_you_mean(name, COMMANDS)} See python -m up --help.", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name].target.partition(":")
    from up.commands.outcome import run_command
    from up.distributed.env import let_idle_threads_sleep
    from up.process_memory import collect_seldom

    let_idle_threads_sleep()
    collect_seldom()
    return run_command(lambda words: getattr(import_module(module), function)(words), arguments)


if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:
        from up.distributed.signals import end_process

        end_process(code)
    sys.exit(code)
