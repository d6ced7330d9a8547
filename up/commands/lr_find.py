"""``up lr-find``: a learning-rate range test, drawn and written as JSON."""

from __future__ import annotations

from pathlib import Path

from up.commands.arguments import at_most, positive
from up.commands.inputs import expect_config, expect_training_files, expect_writable
from up.commands.parser import CommandParser
from up.errors import UserError
from up.files import make_folder, write_bytes, write_json


def main(words: list[str]) -> int:
    """Train with learning rates that grow from step to step, print suggestions, and write the curve; returns the exit code."""
    parser = CommandParser("lr-find")
    parser.add_argument("--steps", type=at_most(100_000, positive), default=100, help="number of learning rates, one a step")
    parser.add_argument("--min", type=float, default=1e-7, help="first learning rate")
    parser.add_argument("--max", type=float, default=10.0, help="last learning rate; the test ends before it if the loss diverges")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of lr_find.json and lr_find.png (default: lr_find/NAME)")
    parser.add_config()
    arguments = parser.read(words[1:])
    from up.config.argument import LARGEST_LR

    if not 0 < arguments.min < arguments.max <= LARGEST_LR:
        expected = f"two numbers above 0, rising, at most {LARGEST_LR:g}"
        raise UserError("--min and --max", got=[arguments.min, arguments.max], expected=expected)
    expect_config(arguments.config, arguments.opts)
    expect_training_files(arguments.config, arguments.opts)
    out = arguments.out or Path("lr_find", arguments.config.stem)
    expect_writable(out)
    from up.build.experiment import load_experiment
    from up.build.lr_find import curve_of, find_lr
    from up.figures import missing_matplotlib

    experiment = load_experiment(arguments.config, arguments.opts)
    found = find_lr(experiment, steps=arguments.steps, low=arguments.min, high=arguments.max)
    make_folder(out)
    write_json(out / "lr_find.json", found.as_json())
    print(f"curve: {out / 'lr_find.json'}")
    if (missing := missing_matplotlib("the plot")) is None:
        write_bytes(out / "lr_find.png", curve_of(found))
        print(f"plot:  {out / 'lr_find.png'}")
    else:
        print(f"note: {missing}")
    for line in found.lines():
        print(line)
    return 0
