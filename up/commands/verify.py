"""``up verify``: check a package."""

from __future__ import annotations

from pathlib import Path

from up.command_line import CommandLine
from up.commands.inputs import expect_package
from up.commands.next_steps import next_commands, with_package
from up.commands.parser import CommandParser
from up.errors import UserError

_META_TYPES = {".csv": "csv", ".tsv": "csv", ".json": "custom_cls", ".jsonl": "custom_cls"}  # as those of `up eval --test`


def main(words: list[str]) -> int:
    """Check members, hashes, schema, labels, graph and test vectors; returns the exit code."""
    parser = CommandParser("verify")
    parser.add_argument("package", type=Path, metavar="FILE.tar", help="a package of `up to_kestrel`, or a graph of `up to_onnx`")
    parser.add_argument(
        "--meta",
        type=Path,
        help="also compute the metrics of the task (classification: top-1, or mAP) on this meta file or folder of labelled images",
    )
    default = "default: image_folder for a folder, csv for .csv and .tsv, custom_cls for .json and .jsonl, else imagenet"
    parser.add_argument("--meta-type", help=f"format of the meta file ({default})")
    parser.add_argument("--image-dir", help="folder that its file names are relative to (default: the meta file's)")
    parser.add_argument("--provider", default="cpu", help="execution provider of onnxruntime: cpu, cuda, tensorrt, auto")
    arguments = parser.read(words[1:])
    expect_package(arguments.package, "")
    meta, meta_type = arguments.meta, arguments.meta_type
    if meta is not None and not meta.exists():
        raise UserError(f"--meta {meta}: no such file or folder. Name a meta file, or a folder of class folders.")
    if meta is None and meta_type is not None:
        raise UserError("--meta-type: needs --meta FILE, whose format it names.")
    if meta is None and arguments.image_dir is not None:
        raise UserError("--image-dir: needs --meta FILE, whose images are in that folder.")
    from up.bundle.package import open_package
    from up.bundle.verify import verify

    package = open_package(arguments.package)
    for line in verify(package, provider=arguments.provider):
        print(line)
    if meta is not None:
        from up.deploy.measure import accuracy

        meta_type = meta_type or ("image_folder" if meta.is_dir() else _META_TYPES.get(meta.suffix.lower(), "imagenet"))
        print(*accuracy(package, meta, arguments.image_dir, meta_type, provider=arguments.provider), sep="\n")
    print(f"OK: {arguments.package} is valid")
    print(*next_commands(CommandLine.typed(words), with_package(arguments.package, verified=True)), sep="\n")
    return 0
