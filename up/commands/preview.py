"""``up preview``: images as the net sees them, and the recipe over the whole run, as a page."""

from __future__ import annotations

from pathlib import Path

from up.commands.arguments import positive
from up.commands.inputs import expect_config, expect_training_files, expect_writable
from up.commands.parser import CommandParser


def main(words: list[str]) -> int:
    """Write the page of a step of a run that is still to be started; returns the exit code."""
    parser = CommandParser("preview")
    parser.add_argument("--step", type=positive, default=1, help="step whose batch is shown, counted from 1 as in the log")
    parser.add_argument("--images", type=positive, default=8, help="samples that are shown after each transform")
    parser.add_argument("--ranks", type=positive, default=1, help="number of ranks that the run will have; rank 0 is shown")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of preview.html and preview.json (default: preview/NAME)")
    parser.add_config()
    arguments = parser.read(words[1:])
    expect_config(arguments.config, arguments.opts)
    expect_training_files(arguments.config, arguments.opts)
    out = arguments.out or Path("preview", arguments.config.stem)
    expect_writable(out)
    from up.build.experiment import load_experiment
    from up.preview.content import preview
    from up.preview.write import write_preview

    experiment = load_experiment(arguments.config, arguments.opts)
    page = preview(experiment, step=arguments.step, images=arguments.images, ranks=arguments.ranks)
    content, batch = page.content, page.content["batch"]
    mixed = f", mixed by {batch['mixing']}" if batch["mixing"] else ""
    print(f"step {content['step']:,} (epoch {content['epoch']}) of {content['timeline']['steps']:,}: {batch['form']}{mixed}")
    for note in content["notes"]:
        print(f"note: {note}")
    print("written:", *write_preview(out, page), sep="\n  ")
    return 0
