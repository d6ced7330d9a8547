"""Run every search of ``configs/search`` end to end in a minute or two each, on a few real digits instead of its own data.

    python tools/search_smoke.py [cloud device finetune_hpo augment]

The stages, spaces, constraints and algorithms are those of the shipped files; images, epochs, trials and widths are small. It shows
that a file runs from its first trial to its report, not that it finds anything.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from prepare_digits import prepare

DIGITS, RUNS = Path("data/digits"), Path("runs/search_smoke")
PER_CLASS = {"train": 8, "val": 2}
SEARCHES = {
    "cloud": [
        "search.workers=2",
        "search.stages.0.nas.trials=2",
        "search.stages.0.nas.set={trainer.max_epoch: 1}",
        "search.stages.0.nas.space={net.backbone.kwargs.depth: [18, 34], net.backbone.kwargs.base_channel: [8, 16]}",
        "search.stages.1.hpo.trials=2",
        "search.stages.1.hpo.max_epoch=3",
        "search.stages.1.hpo.control=0",  # the first stage has control rows
        "search.stages.2.augment.population=4",
        "search.stages.2.augment.rungs=1",  # `augment` has two
        "search.stages.2.augment.epochs_per_rung=1",
        "search.stages.2.augment.control=0",
        "search.stages.3.full_train.top=1",
    ],
    "device": [
        "dataset.train.batch_sampler.kwargs.batch_size=16",  # half of 60 images trains the weights of the supernet
        "search.stages.0.nas.max_epoch=3",
        "search.stages.0.nas.supernet={layers: 3, init_channels: 4, stem: small}",
        "search.stages.0.nas.runner={population: 4, warmup: 1, ga_interval: 1, number: 2, layers: 3, init_channels: 4}",
        "search.stages.1.full_train.top=1",
    ],
    "finetune_hpo": [
        "search.workers=2",
        "search.stages.0.hpo.trials=3",
        "search.stages.0.hpo.max_epoch=3",
        "saver.pretrain_model=null",
    ],
    "augment": [
        "search.stages.0.augment.population=4",
        "search.stages.0.augment.rungs=2",
        "search.stages.0.augment.epochs_per_rung=1",
        "search.stages.1.full_train.control=false",
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"searches to run (default: {' '.join(SEARCHES)})")
    names = parser.parse_args().names or list(SEARCHES)
    unknown = sorted(set(names) - set(SEARCHES))
    if unknown:
        parser.error(f"got {', '.join(unknown)}, expected {', '.join(SEARCHES)}")
    prepare(DIGITS)
    RUNS.mkdir(parents=True, exist_ok=True)
    for split, number in PER_CLASS.items():
        (RUNS / f"{split}.txt").write_text(few((DIGITS / f"{split}.txt").read_text(encoding="utf-8"), number), encoding="utf-8")
    for name in names:
        begun = time.perf_counter()
        searched(name)
        rows = list(csv.DictReader((RUNS / name / "full_train" / "candidates.csv").open(encoding="utf-8", newline="")))
        print(f"{name}: {len(rows)} candidates trained in full, {time.perf_counter() - begun:.0f} s", flush=True)


def few(lines: str, number: int) -> str:
    """Return the first ``number`` lines of each class of a list of images."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for line in lines.splitlines():
        by_class[line.rsplit(" ", 1)[1]].append(line)
    return "".join(f"{line}\n" for kept in by_class.values() for line in kept[:number])


def searched(name: str) -> None:
    """Run one search from the beginning; ends the process with its exit code if it fails."""
    overrides = [*small(RUNS / name), *SEARCHES[name]]
    command = [sys.executable, "-m", "up", "search", "--config", f"configs/search/{name}.yaml", "--opts", *overrides]
    ended = subprocess.run(command, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


def small(run: Path) -> list[str]:
    """Return the overrides that put a few small images in the place of the data, for a short training on the CPU."""
    data = {"train": RUNS / "train.txt", "test": RUNS / "val.txt"}
    places = [(f"dataset.{split}", path) for split, path in data.items()]
    return [
        f"saver.save_dir={run}",
        "runtime.device=cpu",
        "trainer.max_epoch=2",
        "search.holdout=0.25",
        "dataset.train.dataset.kwargs.transformer.0.kwargs.size=32",
        "dataset.test.dataset.kwargs.transformer.0.kwargs.size=36",
        "dataset.test.dataset.kwargs.transformer.1.kwargs.size=32",
        *(f"{place}.dataset.kwargs.meta_file={path}" for place, path in places),
        *(f"{place}.dataset.kwargs.meta_type=imagenet" for place, _ in places),
        *(f"{place}.dataset.kwargs.image_reader.kwargs.image_dir={DIGITS}/images" for place, _ in places),
        *(f"{place}.batch_sampler.kwargs.batch_size=32" for place, _ in places),
        *(f"{place}.dataloader.kwargs.num_workers=0" for place, _ in places),
    ]


if __name__ == "__main__":
    main()
