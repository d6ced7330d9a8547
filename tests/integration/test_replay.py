"""``up replay``: the batch that a past step trained on, its loss as it was logged, and the loss of each image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.harness.ranks import Cluster
from tests.harness.runs import Config, everything_on, of_16_pixels, records, train
from tests.harness.tiny import tiny_config
from up.__main__ import main
from up.data.records import Batch
from up.engine.session import TrainingSession
from up.preview.batch import digests

Write = Callable[[Config], str]
Digests = dict[str, dict[str, str]]


def replay(run: Path, out: Path, *words: str) -> Config:
    assert main(["replay", str(run), "--out", str(out), *words]) == 0
    found: Config = json.loads((out / "replay.json").read_text())
    return found


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digests]:
    """A run with everything that is random, three epochs, each saved and each step logged, and what its loop got."""
    folder, seen = tmp_path_factory.mktemp("replayed"), Digests()
    prepare = TrainingSession.prepare

    def hooked(self: TrainingSession, batch: Batch, step: int, micro: int) -> Batch:
        prepared = prepare(self, batch, step, micro)
        seen[f"{step + 1} {micro}"] = digests(prepared)
        return prepared

    config = tiny_config(images, folder / "run")
    everything_on(config)
    of_16_pixels(config)
    config["trainer"] |= {"max_epoch": 3, "keep_last": "all"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingSession, "prepare", hooked)
        assert train(str(folder / "config.yaml")) == 0
    return folder / "run", seen


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_step_that_begins_with_known_weights_has_the_logged_loss(
    step: int, trained: tuple[Path, Digests], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, seen = trained
    page = replay(run, tmp_path, "--step", str(step))
    logged = next(record for record in records(run, "train") if record["step"] == step)
    assert page["loss"] == logged["loss"]
    assert page["logged"] == {"loss": logged["loss"], "from_step": step, "to_step": step, "is_equal": True}
    assert {row["name"]: row["replayed"] for row in page["scalars"]} == {
        row["name"]: row["logged"] for row in page["scalars"] if row["logged"] is not None
    }
    assert page["weights"]["checkpoint"] == (None if step == 1 else str(run / f"ckpt_e{step // 3}.pth"))
    assert page["weights"]["distance"] == 0
    assert [batch["sha256"] for batch in page["batches"]] == [seen[f"{step} {micro}"] for micro in (0, 1)]
    losses = [row["loss"] for row in page["rows"]]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / len(losses) == pytest.approx(page["loss"], rel=1e-5)
    assert page["rows"][0]["file"] in capsys.readouterr().out


def test_other_steps_have_the_nearest_weights_before_them(trained: tuple[Path, Digests], tmp_path: Path) -> None:
    run, seen = trained
    page = replay(run, tmp_path, "--step", "6")
    assert (page["weights"]["checkpoint"], page["weights"]["distance"]) == (str(run / "ckpt_e1.pth"), 2)
    assert [batch["sha256"] for batch in page["batches"]] == [seen[f"6 {micro}"] for micro in (0, 1)]
    assert page["loss"] != page["logged"]["loss"]
    assert not page["logged"]["is_equal"]
    named = replay(run, tmp_path, "--step", "6", "--ckpt", str(run / "ckpt_e3.pth"))
    assert (named["weights"]["step"], named["weights"]["distance"]) == (9, -4)
    assert named["loss"] != page["loss"]


def test_ranks_and_micro_batches_are_the_whole_step(
    config: Config, write: Write, cluster: Callable[[], Cluster], run: Path, tmp_path: Path
) -> None:
    everything_on(config)
    of_16_pixels(config)
    del config["runtime"]["amp"]
    config["trainer"] |= {"max_epoch": 2, "keep_last": "all"}
    config["dataset"]["train"]["batch_sampler"]["kwargs"]["batch_size"] = 5
    cluster().run()
    (last,) = [record for record in records(run, "train") if record["step"] == 4]
    page = replay(run, tmp_path / "page", "--step", "4")
    assert page["loss"] == pytest.approx(last["loss"], rel=1e-6)
    assert (page["ranks"], len(page["rows"])) == (2, 16)
    assert [(batch["rank"], batch["micro_batch"]) for batch in page["batches"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({row["index"] for row in page["rows"]}) == 16
    assert main(["replay", str(run), "--out", str(tmp_path / "other"), "--step", "4", "--ranks", "1"]) == 2


def test_changed_data_are_named(write: Write, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = tmp_path / "images"
    shutil.copytree(images, copied)
    config = tiny_config(copied, run)
    assert train(write(config), "trainer.max_epoch=1") == 0
    page = replay(run, tmp_path / "page", "--step", "2")
    assert not any(str(copied) in note for note in page["notes"])
    first = page["rows"][0]
    Image.new("RGB", (32, 32)).save(copied / first["file"])
    again = replay(run, tmp_path / "page", "--step", "2")
    assert any(first["file"] in note for note in again["notes"])
    meta = copied / "train.txt"
    meta.write_text("".join(meta.read_text().splitlines(keepends=True)[::-1]))
    capsys.readouterr()
    assert main(["replay", str(run), "--step", "2", "--out", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert "--accept-data-change" in said
    assert str(meta) in said
    assert not (tmp_path / "new").exists()
    assert str(meta) in replay(run, tmp_path / "new", "--step", "2", "--accept-data-change")["notes"][0]


def test_spikes_and_a_loss_that_is_not_finite(
    config: Config, write: Write, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config["trainer"]["optimizer"]["kwargs"]["lr"] = 1e30
    assert train(write(config)) != 0
    capsys.readouterr()
    assert main(["replay", str(run), "--spikes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    logged = max(records(run, "train"), key=lambda record: record["loss"])
    step = json.loads((run / "status.json").read_text())["step"] + 1
    assert any(line.split()[1:2] == [str(logged["step"])] for line in lines)
    assert any(f"{step - 1} step" in line for line in lines)
    page = replay(run, tmp_path / "page", "--step", "1")
    assert page["loss"] == records(run, "train")[0]["loss"]


def test_each_image_of_a_loss_that_compares_views(config: Config, write: Write, run: Path, tmp_path: Path) -> None:
    part = {"type": "views", "kwargs": {"number": 2, "transformer": [{"type": "v2.AugMix"}]}}
    config["dataset"]["train"]["dataset"]["kwargs"]["transformer"].insert(-2, part)
    config["net"][2]["kwargs"] = {"cls_loss": {"type": "jsd"}}
    assert train(write(config), "trainer.max_iter=1") == 0
    page = replay(run, tmp_path / "page", "--step", "1")
    losses = {row["index"]: row["loss"] for row in page["rows"]}
    assert (len(losses), len(page["rows"])) == (8, 16)
    assert sum(losses.values()) / 8 == pytest.approx(page["loss"], rel=1e-4)
    assert page["logged"]["is_equal"]


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--step", "99"], ["--step", "99", "1 to 9"]),
        (["--step", "2", "--ckpt", "none.pth"], ["none.pth"]),
        (["--step", "2", "--out", "/proc/x"], ["--out", "/proc"]),
        (["--step", "2", "-o", "net.0.type=nothing"], ["net.0", "nothing"]),
        ([], ["--step", "--spikes"]),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    words: list[str], fragments: list[str], trained: tuple[Path, Digests], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = trained
    before = sorted(run.rglob("*"))
    try:
        code = main(["replay", str(run), *words])
    except SystemExit as ending:
        code = int(ending.code or 0)
    said = capsys.readouterr().err.strip()
    assert code == 2
    assert "\n" not in said
    assert all(fragment in said for fragment in fragments)
    assert sorted(run.rglob("*")) == before


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path), "--step", "1"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
