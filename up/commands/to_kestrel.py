"""``up to_kestrel``: a checkpoint as a package, checked from pixel to logit."""

from __future__ import annotations

import shlex
from pathlib import Path

from up.command_line import CommandLine
from up.commands.exporting import add_export, experiment_of, exported, parsed
from up.commands.next_steps import listed, next_commands, with_package
from up.commands.parser import CommandParser
from up.errors import UserError


def main(words: list[str]) -> int:
    """Export, compare with torch, verify the package, write it; returns the exit code."""
    parser = CommandParser("to_kestrel")
    parser.add_argument("--save-to", type=Path, help="output folder (default: to_kestrel.save_to, else the run folder)")
    parser.add_argument("--strict-kestrel", action="store_true", help="write only the members that Kestrel reads")
    parser.add_argument("--to", choices=("kestrel", "triton"), default="kestrel", help="a package, or a Triton model repository")
    add_export(parser)
    arguments = parsed(parser, words)
    if arguments.to == "triton" and arguments.strict_kestrel:
        raise UserError("--strict-kestrel: leaves out members of a package; --to triton writes none. Leave one of them out.")
    experiment = experiment_of(arguments)
    from up.deploy.exporter import write_kestrel
    from up.deploy.kestrel import package_path
    from up.deploy.triton import repository_files, write_repository

    settings = experiment.config.to_kestrel
    folder = arguments.save_to or Path(settings.save_to or experiment.folder)
    path = package_path(folder, settings)
    made = exported(experiment, arguments, folder)
    if arguments.to == "triton":
        write_repository(repository_files(made.manifest, made.model), folder / made.manifest.name)
        print(f"written: {folder / made.manifest.name}")
        print("next:", *listed({"serve": shlex.join(["tritonserver", f"--model-repository={folder}"])}), sep="\n")
        return 0
    for line in write_kestrel(made, settings, path, strict=arguments.strict_kestrel):
        print(line)
    print(f"written: {path} ({path.stat().st_size:,} bytes)")
    print(*next_commands(CommandLine.typed(words), with_package(path)), sep="\n")
    return 0
