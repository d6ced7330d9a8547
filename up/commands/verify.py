"""``up verify``: does a package keep its promises?"""

from __future__ import annotations

import os
from pathlib import Path

from up.commands.arguments import command_parser
from up.deploy.package import open_package
from up.errors import UserError


def main(words: list[str]) -> int:
    """Check members, hashes, schema, labels, graph and test vectors; returns the exit code."""
    parser = command_parser("verify", "Check a package: members, hashes, labels, graph, and the outputs for its test vectors.")
    parser.add_argument("package", type=Path, metavar="FILE.tar", help="a package of `up to_kestrel`, or a graph of `up to_onnx`")
    parser.add_argument("--meta", type=Path, help="also measure top-1 (mAP for sets of labels) on the images that this file lists")
    parser.add_argument("--meta-type", "--meta_type", default="imagenet", help="how the meta file is written")
    parser.add_argument("--image-dir", "--image_dir", help="what the names in it are relative to (default: its folder)")
    parser.add_argument("--provider", default="cpu", help="what runs the graph: cpu, cuda, tensorrt")
    arguments = parser.parse_args(words[1:])
    package = open_package(arguments.package)
    from up.deploy.verify import verify

    for line in verify(package, provider=arguments.provider):
        print(line)
    if arguments.meta is not None:
        from up.deploy.accuracy import accuracy

        threads = min(8, os.cpu_count() or 1)
        lines = accuracy(
            package, arguments.meta, arguments.image_dir, arguments.meta_type, provider=arguments.provider, threads=threads
        )
        for line in lines:
            print(line)
    elif arguments.image_dir is not None:
        raise UserError("--image-dir: is where the images of --meta are; name such a file too.")
    print(f"{arguments.package}: good")
    return 0
