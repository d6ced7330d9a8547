"""The parser of all commands: a configuration by position or by flag, overrides anywhere, flags of United Perception."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from up.commands.catalog import COMMANDS, OF_DATA
from up.distributed.env import rank_in_environment
from up.distributed.signals import LAUNCHER_PID
from up.text import did_you_mean

OVERRIDES = ("-o", "--opts")
YAML_SUFFIXES = (".yaml", ".yml")


class Ignored(NamedTuple):
    """A flag of United Perception that is ignored: its number of values, and the reason."""

    values: int
    reason: str


_ONE_PROCESS = "this command runs in one process"
UP_FLAGS = {
    "--nocudnn": Ignored(0, "torch chooses cuDNN's algorithms"),
    "--no_running_config": Ignored(0, "the run folder always gets config.yaml"),
    "--cfg_type": Ignored(1, "there is one configuration syntax"),
    "--test_gpu": Ignored(0, "runtime.device chooses the device"),
    "--async": Ignored(0, "images are loaded and gradients are averaged asynchronously anyway"),
    "--backend": Ignored(1, _ONE_PROCESS),
    "--ng": Ignored(1, _ONE_PROCESS),
    "--num_gpus_per_machine": Ignored(1, _ONE_PROCESS),
    "--nm": Ignored(1, _ONE_PROCESS),
    "--num_machines": Ignored(1, _ONE_PROCESS),
    "--launch": Ignored(1, _ONE_PROCESS),
    "--port": Ignored(1, _ONE_PROCESS),
    "--fork-method": Ignored(1, "this command starts no loader workers"),
    "--phase": Ignored(1, "only train has phases"),
    "--display": Ignored(1, "this command logs no training steps"),
    "--allow_dead_parameter": Ignored(0, "this command trains nothing"),
}
"""Flags of UP's commands. A command that defines such a flag gives it a meaning."""


_METAVARS = {"Path": "PATH", "int": "N", "positive": "N", "natural": "N", "pixels": "N", "finite": "NUMBER", "amount": "NUMBER"}


class PlainHelp(argparse.RawDescriptionHelpFormatter):
    """Help that shows a default once, and the kind of each value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _METAVARS.get(getattr(action.type, "__name__", ""), "VALUE")

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default in (None, False, argparse.SUPPRESS) or isinstance(action.default, list)
        return text if silent or "(default" in text or not action.option_strings else f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """The arguments of ``up NAME``, or of a subcommand of it; flags may have ``-`` or ``_`` between words."""

    def __init__(self, name: str, subcommand: str = "", more: str = "") -> None:
        command = OF_DATA[subcommand] if subcommand else COMMANDS[name]
        summary = f"{command.summary[0].upper()}{command.summary[1:]}."
        epilog = "\n\n".join(filter(None, [f"example: {command.example}", more]))
        super().__init__(prog=f"up {name} {subcommand}".rstrip(), description=summary, epilog=epilog, formatter_class=PlainHelp)
        self._has_config = self._needs_config = False
        self._among = ""
        self.elsewhere: Mapping[str, str] = {}
        """Flags of other commands, and the command line that takes each."""

    def add_config(self, *, required: bool = True, among: str = "", what: str = "the YAML file") -> None:
        """Add ``FILE.yaml``, ``--config FILE.yaml`` and overrides; ``among`` is the positional list that the file may be in."""
        self._has_config, self._needs_config, self._among = True, required, among
        if not among:
            self.add_argument("file", nargs="?", metavar="FILE.yaml", help=what)
        group = self.add_argument_group("configuration")
        group.add_argument("--config", metavar="FILE.yaml", help="the YAML file; `--config` itself may be left out")
        self.add_overrides(group)

    def add_overrides(self, group: argparse._ArgumentGroup) -> None:
        """Add overrides of the configuration to ``group``."""
        group.add_argument(
            *OVERRIDES,
            nargs="*",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            help="override values of the configuration; repeatable, at any place. Paths are dotted, values are YAML: "
            "trainer.max_epoch=10, net.0.kwargs.frozen_layers=[0,1], hooks.grad_clipper.kwargs.max_norm=5; "
            "+hooks={type: auto_save_best} appends",
        )

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse ``words``; ``config`` is a path or None. Exits with 2 and one line for what is wrong."""
        rest, overrides = self._separated(words)
        arguments = self.parse_intermixed_args(rest)
        if OVERRIDES[0] in self._option_string_actions:
            arguments.opts = [*overrides, *arguments.opts]
        if self._has_config:
            arguments.config = self._config_of(arguments)
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr, with near names for an unknown flag; exit code 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message = self._about_unknown(unknown.split()[0])
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"{self.prog}: {message}{end} See {self.prog} --help.\n")

    def _about_unknown(self, word: str) -> str:
        flag = _spelling(word.partition("=")[0])
        if flag in self.elsewhere:
            return f"unknown argument {word!r}. Use it with {self.elsewhere[flag]}"
        of_file = " Set values of the YAML file by -o KEY=VALUE." if OVERRIDES[0] in self._option_string_actions else ""
        near = did_you_mean(flag, self._option_string_actions) or did_you_mean(flag, self.elsewhere) + of_file
        return f"unknown argument {word!r}.{near}"

    def _separated(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Split off the words after ``-o`` and ``--opts``; flags that the command ignores are dropped with a line.

        Words after ``--`` are paths even if they begin with a dash.
        """
        own = {_spelling(option): option for option in self._option_string_actions}
        rest: list[str] = []
        overrides: list[str] = []
        collecting = wants_value = False  # of ``key value``
        following = iter(words)
        for word in following:
            if word == "--":
                rest += (f"./{path}" if path.startswith("-") else path for path in following)
                break
            name, equals, value = word.partition("=")
            option = own.get(_spelling(name)) if word.startswith("-") else None
            if option in OVERRIDES:
                collecting, wants_value = True, False
                overrides += [value] if equals else []
            elif option is not None:
                collecting = False
                rest.append(f"{option}{equals}{value}")
            elif word.startswith("--") and not wants_value and self._is_meaningless(name, own):
                collecting = False
                if UP_FLAGS[_UP_SPELLING[_spelling(name)]].values and not equals:
                    next(following, None)
            elif collecting and (wants_value or equals or not _is_file(word)):
                wants_value = not wants_value and not equals
                overrides.append(word)
            else:
                collecting = False
                self._expect_known(name, own)
                rest.append(word)
        return rest, overrides

    def _is_meaningless(self, flag: str, own: Container[str]) -> bool:
        """Whether a flag is one of UP's that this command does not define; if so, report it."""
        known = _UP_SPELLING.get(_spelling(flag))
        if known is None or _spelling(flag) in own:
            return False
        if speaks_for_all():
            print(f"{flag} is accepted and ignored: {UP_FLAGS[known].reason}.", file=sys.stderr)
        return True

    def _expect_known(self, word: str, own: Iterable[str]) -> None:
        """Report an unknown flag before argparse reports missing arguments; argparse accepts abbreviations."""
        if word.startswith("--") and len(word) > 2 and not any(option.startswith(_spelling(word)) for option in own):
            self.error(f"unrecognized arguments: {word}")

    def _config_of(self, arguments: argparse.Namespace) -> Path | None:
        """Return the configuration of ``--config``, or the one among the positional words, which is removed there."""
        if self._among:
            words: list[str] = getattr(arguments, self._among)
            found = [word for word in words if Path(word).suffix.lower() in YAML_SUFFIXES]
            setattr(arguments, self._among, [word for word in words if word not in found])
        else:
            found = [arguments.file] if arguments.file else []
        given = [*found, *([arguments.config] if arguments.config else [])]
        if len(given) > 1:
            self.error(f"got {len(given)} configurations, {' and '.join(given)}, expected one")
        if not given and self._needs_config:
            self.error(f"no configuration is named, expected {self.prog} FILE.yaml")
        return Path(given[0]) if given else None


def speaks_for_all() -> bool:
    """Whether this process prints what all ranks of a launch know: its launcher, or rank 0 if that is another program."""
    return rank_in_environment() == 0 and LAUNCHER_PID not in os.environ


def _is_file(word: str) -> bool:
    """Whether a word after ``-o key=value`` is a file, not the next key."""
    return "/" in word or Path(word).suffix.lower() in YAML_SUFFIXES or Path(word).is_file()


def _spelling(flag: str) -> str:
    """Spell a flag with ``-`` for ``_``."""
    return flag.replace("_", "-")


_UP_SPELLING = {_spelling(flag): flag for flag in UP_FLAGS}
