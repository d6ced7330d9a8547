"""``run.json``: the command, the environment, the origin of each value; starts of a resumed run add up."""

from __future__ import annotations

from pathlib import Path

import torch

from up.build.experiment import load_experiment
from up.build.record import read_record, record_run
from up.command_line import CommandLine
from up.run_files import RECORD

FILE = Path("configs/cls/quickstart.yaml")


def test_a_run_is_recorded(tmp_path: Path) -> None:
    experiment = load_experiment(FILE, [f"saver.save_dir={tmp_path}", "trainer.max_epoch=6"])
    for resumed, word in ((False, "a"), (True, "b")):
        record_run(experiment, CommandLine(("up",), ("train", word)), torch.device("cpu"), resumed=resumed)
    found = read_record(tmp_path)
    assert [start["command"] for start in found["starts"]] == ["up train a", "up train b"]
    assert found["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert found["origins"]["trainer.max_epoch"] == "--opts"
    file, _, line = found["origins"]["dataset.test.batch_sampler.kwargs.batch_size"].rpartition(":")
    assert file == str(FILE)
    assert "batch_size: 128" in FILE.read_text().splitlines()[int(line) - 1]
    assert found["origins"]["runtime.amp"] == "default"


def test_a_missing_or_damaged_record_is_empty(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    (tmp_path / RECORD).write_text("[1")
    assert read_record(tmp_path) == {}
