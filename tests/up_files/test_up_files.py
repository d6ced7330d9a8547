"""UP's files pass ``check --no-files`` as they are: every key path that they have, with every value that it has there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness.nets import built_without_weights
from tests.up_files.facts import facts_of, known_facts
from tests.up_files.files import text_of
from tests.up_files.recipes import RECIPES
from up.__main__ import main
from up.build.experiment import load_experiment
from up.build.training import schedule_of
from up.config.nodes import parse_nodes
from up.config.tree import to_plain

PATHS, FILES = 303, 43
# Names and arguments are checked in full, the pass through the net in a smaller one; tests/configs has the full one.
_RES18 = ["net.backbone.type=resnet18", "net.head.kwargs.in_plane=512"]
_TEACHER = ["teacher.backbone.type=resnet18", "teacher.head.kwargs.in_plane=512"]
SMALLER = {
    "vit/vit_b16_224": ["net.backbone.type=vit_tiny_patch16_224", "net.head.kwargs.in_plane=192"],
    **dict.fromkeys(("downstream/pet", "downstream/flower_strikes", "long_tail/res50_eql"), _RES18),
    **dict.fromkeys(("distillation/res18_kd", "distillation/res18_kd_tricks"), _TEACHER),
}
# Further sizes of a net that another file of the same losses and augmentations passes through: built, not passed through.
FURTHER = re.compile(
    "resnet/res(34|50)|bag_of_tricks/res50$|strikes/res50|downstream/(car|flower$)|mbv2_2|regnety|convnext_small|"
    "swin_(small|base|large|tiny_misindented)|inference/res50|grad_cam/res50"
)
NOTES = {  # why a file is told anything at all
    "fp16: was taken as runtime": "fp16",
    "iter_base: was taken as runtime": "iter_base",
    "lr_scheduler: was taken as trainer": "lr_scheduler",
    "T_max: counts steps": "T_max",
    "max_iter: is given without max_epoch": "max_iter",
    "memcached of fs_pillow has no effect": "memcached: true",
}


def file_of(name: str, folder: Path) -> Path:
    path = folder / f"{name.rpartition('/')[2]}.yaml"
    path.write_text(text_of(RECIPES[name]))
    return path


@pytest.mark.filterwarnings("default:normalize. momentum")
@pytest.mark.parametrize("name", RECIPES)
def test_a_file_of_up_passes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file_of(name, tmp_path)
    load_experiment(path)
    opts = ["--opts", *SMALLER[name]] if name in SMALLER else []
    if FURTHER.search(name):
        built_without_weights(monkeypatch)
    assert main(["check", "--no-files", "--config", str(path), *opts]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert ("momentum 0.99" in said.out) == ("mbv3" in name)
    text = path.read_text()
    for line in re.findall(r"^note: (.*)", said.out, re.MULTILINE):
        (why,) = [written for note, written in NOTES.items() if note in line]
        place = re.match(rf"{re.escape(str(path))}:(\d+): ", line)
        assert place
        assert why in text.splitlines()[int(place[1]) - 1]


def test_a_schedule_of_a_run_in_steps_lasts_as_long_as_the_run(tmp_path: Path) -> None:
    experiment = load_experiment(file_of("mobilenet/mbv3_large", tmp_path))
    schedule = schedule_of(experiment, steps_per_epoch=1252, total=437500, global_batch_size=1024)
    assert [schedule(step) for step in (0, 6249, 437500 // 2, 437500)] == pytest.approx([0.04, 0.4, 0.2, 0], rel=0.03, abs=1e-6)


def test_no_key_path_and_no_value_is_left_out() -> None:
    """Every fact stands in one of the files that passed."""
    assert len(RECIPES) == FILES
    known = known_facts()
    assert len(known) == PATHS
    found = set().union(*(facts_of(to_plain(parse_nodes(text_of(recipe), name))) for name, recipe in RECIPES.items()))
    missing = [(path, value) for path, values in known.items() for value in values if (path, value) not in found]
    assert missing == []
    names = {"net[].name", "teacher[].name"}  # how UP calls its modules
    assert {path for path, _ in found} - known.keys() - names == set()
