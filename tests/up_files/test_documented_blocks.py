"""Every YAML block of UP's classification page works when it is pasted into a file of UP's form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.up_files import documented as page
from tests.up_files.files import Recipe, text_of
from tests.up_files.recipes import RESNETS
from up.__main__ import main

SMALL = replace(RESNETS["resnet/res18"], size=64, memcached=None)
STEPS = ("random_resized_crop", "random_horizontal_flip", "to_tensor", "normalize")
CASES: dict[str, tuple[Recipe, Sequence[str], Sequence[str]]] = {  # a file, what is pasted into it, in place of what
    "dataset with meta_type": (SMALL, [page.DATASET], ["dataset"]),
    "downstream dataset": (replace(SMALL, saver={"pretrain_model": "pretrain_path"}), [page.DOWNSTREAM], ["dataset"]),
    "mixup of batches": (replace(SMALL, mixing="*mixup"), [page.MIXUP], []),
    "mixup of samples": (replace(SMALL, train=(*STEPS, "mixup")), [page.SAMPLE_MIXUP], []),
    "cutmix_mixup": (replace(SMALL, train=(*STEPS[:2], "cutmix", *STEPS[2:])), [page.CUTMIX_MIXUP], []),
    "randerase": (replace(SMALL, train=(*STEPS, "random_erasing")), [page.RANDERASE], []),
    "RandAugment-Incre": (replace(SMALL, train=(*STEPS[:2], "random_augmentation", *STEPS[2:])), [page.RAND_AUGMENT], []),
    "to_kestrel": (SMALL, [page.TO_KESTREL], []),
    "cosine": (SMALL, [page.COSINE], ["trainer"]),
    "LAMB": (SMALL, [page.LAMB], ["trainer"]),
    "SGD and MultiStepLR": (SMALL, [page.MULTI_STEP], ["trainer"]),
    "saver": (SMALL, [page.SAVER], ["saver"]),
    "BCE": (SMALL, [page.BCE], ["net"]),
    "mimic and runner, without task_names": (SMALL, [page.TEACHER, page.MIMIC, page.RUNNER], ["runtime"]),
    "older mimic": (SMALL, [page.TEACHER, page.OLDER_MIMIC, page.RUNNER], ["runtime"]),
    "mimic jobs": (SMALL, [page.TEACHER, page.MIMIC_JOBS, page.RUNNER], ["runtime"]),
}


def checked(text: str, folder: Path) -> int:
    path = folder / "x.yaml"
    path.write_text(text)
    return main(["check", "--no-files", "--config", str(path)])


@pytest.mark.parametrize("name", CASES)
def test_a_documented_block(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, pasted, without = CASES[name]
    assert checked(text_of(recipe, *pasted, without=without), tmp_path) == 0
    said = capsys.readouterr()
    assert said.err == ""
    if "mimic" in name:
        parts = re.search(r"its parts: task_loss [\d.]+, mimic_job0_loss [\d.]+", said.out)
        assert parts


def test_the_runner_alone_asks_for_teacher_and_mimic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(text_of(SMALL, page.RUNNER, without=["runtime"]), tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mimic: is missing" in line


@pytest.mark.parametrize(
    ("block", "without", "at", "mend"),
    [
        (page.OPEN_QUOTE, "saver", "save_dir:", "Close it on this line: 'checkpoints/cls_std'"),
        (page.STRAY_LINE, "trainer", "momentum=0.9", "Write momentum: 0.9."),
        (page.WRONG_INDENTATION, "to_kestrel", "   plugin:", "by 2 spaces."),
    ],
    ids=["an open quote", "a stray line", "a wrong indentation"],
)
def test_a_documented_block_that_is_no_yaml(
    block: str, without: str, at: str, mend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_of(SMALL, block, without=[without])
    number = next(number for number, line in enumerate(text.splitlines(), 1) if at in line)
    assert checked(text, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'x.yaml'}:{number}: ")
    assert line.endswith(mend)
