"""The commands, without importing any of them."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A subcommand: ``module:function``, its group in the help, a summary and an example."""

    target: str
    group: str
    summary: str
    example: str


COMMANDS = {
    "train": Command(
        "up.commands.train:main", "train", "train from a YAML file or a folder of photos; resume a stopped run", "up train photos/"
    ),
    "finetune": Command(
        "up.commands.finetune:main",
        "train",
        "fine-tune a network on images; all settings are chosen, explained and written",
        "up finetune --train photos/",
    ),
    "search": Command(
        "up.commands.search:main",
        "train",
        "search networks, hyper-parameters and augmentation, then train the best",
        "up search pipe.yaml",
    ),
    "check": Command(
        "up.commands.check:main", "data", "check a YAML file and its data in seconds, without training", "up check photos.yaml"
    ),
    "data": Command(
        "up.commands.data:main", "data", "check, split or cache images, and find probable label errors", "up data check photos/"
    ),
    "preview": Command(
        "up.commands.preview:main",
        "data",
        "show images after each transform, the mixed batch, and the recipe over the whole run",
        "up preview photos.yaml --step 100",
    ),
    "eval": Command(
        "up.commands.eval:main", "evaluate", "evaluate a checkpoint on the test data, with reports per class", "up eval photos.yaml"
    ),
    "report": Command(
        "up.commands.report:main",
        "evaluate",
        "write a page about a run: curves, classes, confusions, worst mistakes, calibration",
        "up report runs/photos",
    ),
    "compare": Command(
        "up.commands.compare:main",
        "evaluate",
        "compare runs on the same images: differences, tests, flipped images",
        "up compare runs/a runs/b",
    ),
    "predict": Command(
        "up.commands.predict:main", "evaluate", "print class names and scores for images", "up predict photos.yaml new/*.jpg"
    ),
    "to_onnx": Command(
        "up.commands.export:to_onnx", "deploy", "export a checkpoint as an ONNX file, compared with torch", "up to_onnx photos.yaml"
    ),
    "to_kestrel": Command(
        "up.commands.export:to_kestrel", "deploy", "export a checkpoint as a package, or for Triton", "up to_kestrel photos.yaml"
    ),
    "verify": Command(
        "up.commands.verify:main", "deploy", "check a package: hashes, labels, graph, test vectors", "up verify model_1.0.0.tar"
    ),
    "serve": Command(
        "up.commands.serve:main", "deploy", "serve a package over HTTP, with a page to try images on", "up serve model_1.0.0.tar"
    ),
    "replay": Command(
        "up.commands.replay:main",
        "inspect",
        "show the batch of a past step with the loss of each image, or the largest losses of a run",
        "up replay runs/photos --step 812",
    ),
    "show": Command(
        "up.commands.show:main", "inspect", "show the effective configuration, the parts or the schema", "up show components loss"
    ),
    "lr-find": Command(
        "up.commands.lr_find:main", "inspect", "find a learning rate by a range test on the real data", "up lr-find photos.yaml"
    ),
    "models": Command(
        "up.commands.models:main", "inspect", "list timm's networks and their published weights", "up models convnext --pretrained"
    ),
    "flops": Command(
        "up.commands.flops:main", "inspect", "count parameters, multiply-adds and activations", "up flops photos.yaml -i 3x224x224"
    ),
    "bench": Command(
        "up.commands.bench:main", "inspect", "measure speed and memory next to others, or those of your recipe", "up bench loader"
    ),
}
OF_DATA = {
    "cache": Command(
        "up.commands.data_cache:main",
        "data",
        "cache images of a YAML file, a folder or a list, resized once, in one file that training reads without decoding",
        "up data cache photos.yaml",
    ),
    "check": Command(
        "up.commands.data_check:main",
        "data",
        "read every image: unreadable files, duplicates, leaks between data sets, two labels of one image, outliers",
        "up data check photos/",
    ),
    "split": Command(
        "up.commands.data_split:main",
        "data",
        "split images into lists for training, validation and test, or into folds; near duplicates stay in one part",
        "up data split photos/ --val 20% --test 10%",
    ),
    "issues": Command(
        "up.commands.data_issues:main",
        "data",
        "find probable label errors by the predictions of a run, or of k folds of it",
        "up data issues runs/photos --folds 5",
    ),
}
"""The subcommands of ``up data``."""
GROUPS = ("train", "data", "evaluate", "deploy", "inspect")
ALIASES = {"inference": "predict"}
