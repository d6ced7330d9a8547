"""``up replay``: the batch of a past step of a run, with the loss of each image, as a page and a table."""

from __future__ import annotations

import math
from pathlib import Path

from up.commands.arguments import positive
from up.commands.inputs import expect_checkpoint, expect_config, expect_writable
from up.commands.parser import CommandParser
from up.commands.tables import print_tables, table_of
from up.errors import UserError
from up.run_files import CONFIG, REPLAY
from up.text import count
from up.types import Record

_LINES = 20  # of the table on the terminal


def main(words: list[str]) -> int:
    """Replay a step of a run, or list its largest losses; returns the exit code."""
    parser = CommandParser("replay")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, or the YAML file of the run")
    parser.add_argument("--step", type=positive, help="step to replay, counted from 1 as in the log")
    parser.add_argument("--spikes", type=positive, nargs="?", const=10, metavar="N", help="list the N largest logged losses (10)")
    parser.add_argument("-c", "--ckpt", type=Path, help="checkpoint (default: the nearest with fewer steps than --step)")
    parser.add_argument("--images", type=positive, default=64, help="images that the page shows, the largest losses first")
    parser.add_argument("--ranks", type=positive, help="number of ranks of the run (default: as its run.json records)")
    parser.add_argument("--accept-data-change", action="store_true", help="replay even though the training data changed")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of replay.html and replay.json (default: RUN/replay/stepN)")
    parser.add_overrides(parser.add_argument_group("configuration"))
    arguments = parser.read(words[1:])
    if (arguments.step is None) == (arguments.spikes is None):
        parser.error("expected one of --step N and --spikes")
    run = run_folder(arguments.run, arguments.opts)
    if arguments.spikes is not None:
        return list_spikes(run, arguments.spikes)
    expect_checkpoint(arguments.ckpt)
    expect_config(run / CONFIG, arguments.opts)
    out = arguments.out or run / REPLAY / f"step{arguments.step}"
    expect_writable(out)
    from up.build.experiment import load_experiment
    from up.files import named_checkpoint
    from up.preview.replay import ReplayRequest, replay
    from up.preview.write import write_replay

    checkpoint = None if arguments.ckpt is None else named_checkpoint(arguments.ckpt)
    wanted = ReplayRequest(arguments.step, checkpoint, arguments.ranks, arguments.images, arguments.accept_data_change)
    page = replay(load_experiment(run / CONFIG, arguments.opts), run, wanted)
    for line in lines_of(page.content):
        print(line)
    print_losses(page.content["rows"])
    print("written:", *write_replay(out, page), sep="\n  ")
    return 0


def run_folder(path: Path, overrides: list[str]) -> Path:
    """Return the run folder that ``path`` is, or that its YAML file names. Raises ``UserError`` without a run."""
    if path.is_file():
        from up.schema.decode import load_config

        expect_config(path, overrides)
        path = load_config(path, overrides).config.saver.folder(path)
    if not (path / CONFIG).is_file():
        raise UserError(f"{path}: contains no config.yaml", expected="a run folder", fix="Train first, or name another folder.")
    return path


def list_spikes(run: Path, number: int) -> int:
    """Print the largest losses that a run logged; returns the exit code."""
    from up.preview.history import spikes, stopped

    table = table_of("step", "epoch", "loss", "times the median around it")
    for spike in spikes(run, number):
        table.add_row(f"{spike.step}", f"{spike.epoch:g}", f"{spike.loss:.4g}", f"{spike.times:.2f}")
    print_tables(table)
    if (line := stopped(run)) is not None:
        print(line)
    return 0


def lines_of(content: Record) -> list[str]:
    """Format the result of a replay for the terminal."""
    logged, images, ranks = content["logged"], len(content["rows"]), content["ranks"]
    lines = [
        f"step {content['step']:,} (epoch {content['epoch']}): {count(images, 'image')} on {count(ranks, 'rank')}",
        f"weights: {content['weights']['text']}",
    ]
    if logged["loss"] is None:
        lines.append(f"loss: {content['loss']:.6g} replayed; the run did not log this step")
    elif logged["from_step"] == logged["to_step"]:
        same = " (the same)" if logged["is_equal"] else ""
        lines.append(f"loss: {content['loss']:.6g} replayed, {logged['loss']:.6g} logged{same}")
    else:
        mean = f"{logged['loss']:.6g} logged, the mean of steps {logged['from_step']:,} to {logged['to_step']:,}"
        lines.append(f"loss: {content['loss']:.6g} replayed, {mean}")
    return [*lines, *(f"note: {note}" for note in content["notes"])]


def print_losses(rows: list[Record]) -> None:
    """Print the images with the largest losses."""
    table = table_of("loss", "rank", "micro-batch", "row", "file", "labels")
    for row in rows[:_LINES]:
        loss = "" if row["loss"] is None else f"{row['loss']:.4g}" if math.isfinite(row["loss"]) else str(row["loss"])
        table.add_row(loss, str(row["rank"]), str(row["micro_batch"]), str(row["row"]), row["file"], row["text"])
    print_tables(table)
