from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.harness.facts import facts
from up.data.listing import MetaError
from up.data.roots import ImageRoot
from up.errors import StorageError, UserError
from up.tasks.cls.data.inference import InferenceConfig, already_done, inference_meta, inference_path, inference_root
from up.tasks.cls.data.metas import MetaSource


def names(path: Path, config: InferenceConfig) -> list[str]:
    root = inference_root(None, meta_file=str(path), allow_outside=False)
    return list(inference_meta(MetaSource(str(path), root), config).names)


def test_what_is_to_be_predicted() -> None:
    assert inference_path("list.txt", {}) == "list.txt"
    assert inference_path("images", {"inference_from": "folder"}) == "images"
    assert inference_path(None, {"inference_from": "holiday/"}) == "holiday/"


def test_from_a_list_a_folder_and_an_image(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("b.jpg", "sub/a.png", "notes.txt"):
        (images / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_text("images/b.jpg\n")
    assert names(tmp_path / "list.txt", {"inference_from": "file"}) == ["images/b.jpg"]
    saved = tmp_path / "found" / "list.txt"
    assert names(images, {"inference_from": "folder", "folder_images_save_path": str(saved)}) == ["b.jpg", "sub/a.png"]
    assert saved.read_text() == "b.jpg\nsub/a.png\n"
    assert os.listdir(saved.parent) == ["list.txt"]
    assert names(images / "b.jpg", {}) == [str(images / "b.jpg")]


def test_nothing_to_predict(tmp_path: Path) -> None:
    with pytest.raises(MetaError, match=facts("image", "folder", "ending")):
        names(tmp_path, {})
    with pytest.raises(MetaError, match=facts("folder", "inference_from", "folder")):
        names(tmp_path / "x", {"inference_from": "folder"})


def test_a_list_that_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(StorageError, match=facts("folder_images_save_path", "a.jpg", "created")):
        names(tmp_path, {"folder_images_save_path": f"{tmp_path}/a.jpg/list.txt"})


def test_roots(tmp_path: Path) -> None:
    assert inference_root("elsewhere", meta_file=str(tmp_path), allow_outside=False).folder == str(tmp_path)
    assert inference_root("/elsewhere", meta_file=f"{tmp_path}/list.txt", allow_outside=False).folder == "/elsewhere"
    assert isinstance(inference_root("/elsewhere", meta_file=f"{tmp_path}/a.jpg", allow_outside=False), ImageRoot)


def test_what_is_done_already(tmp_path: Path) -> None:
    for rank, found in enumerate((["a.jpg", "b.jpg"], ["c.jpg"], ["d.jpg"])):
        lines = "".join(json.dumps({"filename": name, "name": name.upper()}) + "\n" for name in found)
        (tmp_path / f"results.txt.rank{rank}").write_text(lines + '{"filename": "cut o')
    assert already_done({"resume_dir": str(tmp_path)}) == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    assert already_done({"resume_dir": str(tmp_path), "rank_set": [0, 2]}) == {"a.jpg", "b.jpg", "d.jpg"}
    assert already_done({"resume_dir": str(tmp_path), "rank_set": 2}) == {"a.jpg", "b.jpg", "c.jpg"}
    assert already_done({"resume_dir": str(tmp_path), "rank_set": False}) == {"a.jpg", "b.jpg", "c.jpg", "d.jpg"}
    assert already_done({"resume_dir": str(tmp_path), "rank_set": [1], "indicator": "name"}) == {"C.JPG"}


def test_results_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "results.txt").write_text('{"filename": "a"}\nbroken\n{"filename": "b"}\n')
    with pytest.raises(UserError, match=facts("results.txt:2", "JSON", "'filename'", "'broken'")):
        already_done({"resume_dir": str(tmp_path)})
    with pytest.raises(UserError, match=facts("test_resume.resume_dir", "None", "folder")):
        already_done({})
    with pytest.raises(UserError, match=facts("results.txt'", "folder")):
        already_done({"resume_dir": str(tmp_path / "results.txt")})


def test_before_the_first_results_nothing_is_done(tmp_path: Path) -> None:
    assert already_done({"resume_dir": str(tmp_path / "later")}) is None
