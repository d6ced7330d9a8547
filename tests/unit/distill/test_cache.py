"""What is stored, how exactly, under which keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.harness.facts import facts
from tests.harness.nets import batch_of, net_of
from up.data.records import Batch
from up.distill.cache import CachedTeacher, Codec, image_keys
from up.distill.teachers import Teacher
from up.engine.rows import Store
from up.errors import StorageError, UserError
from up.text import size_text

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def vectors(images: int = 3, **widths: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {layer: 8 * torch.randn(images, width, generator=draw) for layer, width in widths.items()}


def there_and_back(codec: Codec, said: dict[str, Tensor]) -> dict[str, Tensor]:
    rows = codec.encode(said)
    assert rows.shape == (len(next(iter(said.values()))), codec.row_bytes)
    return codec.decode(torch.from_numpy(rows))


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_exact_to_the_type_of_the_numbers(dtype: Any) -> None:
    said = vectors(head=10, feature=7)
    said["map"] = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(1))
    got = there_and_back(Codec({layer: tensor.shape[1:] for layer, tensor in said.items()}, dtype), said)
    for layer, tensor in said.items():
        assert torch.equal(got[layer], tensor.to(DTYPES[dtype]).float())


def test_a_map_of_another_size_is_refused() -> None:
    codec = Codec({"map": (4, 2, 5)})
    with pytest.raises(UserError, match=facts("mimic.cache", "4", "3", "5", "4", "2", "5")):
        codec.encode({"map": torch.zeros(2, 4, 3, 5)})


def test_sizes_of_rows() -> None:
    assert Codec({"head": (1000,)}).row_bytes == 2000
    assert Codec({"head": (1000,), "other": (10,)}, "fp32").row_bytes == 4040
    assert Codec({"head": (1000,)}, topk=20).row_bytes == 20 * (2 + 4) + 4
    assert Codec({"head": (10,)}, topk=20).row_bytes == 20


def test_topk_keeps_the_largest_and_the_probability_of_the_rest() -> None:
    said = vectors(head=50)
    got = there_and_back(Codec({"head": (50,)}, "fp32", topk=5), said)["head"]
    where = said["head"].topk(5).indices
    assert torch.equal(got.gather(1, where), said["head"].gather(1, where))
    expected, probs = said["head"].softmax(1), got.softmax(1)
    assert torch.allclose(probs.gather(1, where), expected.gather(1, where), atol=1e-6)
    rest = probs.scatter(1, where, 0)
    assert torch.allclose(rest.sum(1), 1 - expected.gather(1, where).sum(1), atol=1e-6)
    assert torch.allclose(rest.amax(1), rest.sum(1) / 45, atol=1e-7)


def test_keys_of_unmixed_images_are_their_own_seeds() -> None:
    batch = batch_of()
    one = image_keys(batch, None)
    assert one.tolist() == batch.seed.tolist()
    turned = image_keys({"seed": batch.seed.flip(0)}, None)
    assert turned.tolist() == one.tolist()[::-1]


def test_keys_of_mixed_images_depend_on_the_whole_batch_and_the_draw() -> None:
    batch = batch_of(64)
    known = image_keys(batch, (7, 3, 0, 0)).tolist()
    assert image_keys(batch, (7, 3, 0, 0)).tolist() == known
    assert len(set(known)) == 64
    for other in (
        image_keys(batch, (7, 4, 0, 0)),
        image_keys(batch, (7, 3, 1, 0)),
        image_keys({"seed": batch.seed.flip(0)}, (7, 3, 0, 0)),
        image_keys({"seed": batch.seed[:-1]}, (7, 3, 0, 0)),
    ):
        assert not set(other.tolist()) & set(known)


class Counting(Teacher):
    asked = 0

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        self.asked += 1
        return super().__call__(batch)


def counting() -> Counting:
    return Counting("teacher", net_of(6, seed=1), ["head.classifier"], example=batch_of(2))


def cached(teacher: Teacher, folder: Path, steps_per_epoch: int = 10) -> CachedTeacher:
    codec = Codec({"head.classifier": (5,)})
    store = Store(folder, row_bytes=codec.row_bytes, identity={"teacher": teacher.digest()}, setting="mimic.cache.dir")
    return CachedTeacher(teacher, store, codec, steps_per_epoch=steps_per_epoch)


def visiting(batch: Batch, step: int) -> Batch:
    return Batch(batch, image_keys=image_keys(batch, None), training_step=step)


def test_a_second_run_does_not_ask_the_teacher_and_gets_the_same_bits(tmp_path: Path) -> None:
    batches = [visiting(batch_of(seed=step), step) for step in range(3)]
    first = counting()
    cold = cached(first, tmp_path / "cache")
    said = [cold(batch)["head.classifier"] for batch in batches]
    assert first.asked == 3
    expected = first(batches[0])["head.classifier"]
    assert torch.equal(said[0], expected.half().float())

    second = counting()
    warm = cached(second, tmp_path / "cache")
    assert all(torch.equal(warm(batch)["head.classifier"], known) for batch, known in zip(batches, said, strict=True))
    assert second.asked == 0


def test_what_is_not_finite_is_given_but_not_kept(tmp_path: Path) -> None:
    teacher, batch = counting(), visiting(batch_of(4), 0)
    batch.image[2, 0, 0, 0] = torch.inf
    said = cached(teacher, tmp_path / "cache")(batch)["head.classifier"]
    assert torch.isfinite(said).all(1).tolist() == [True, True, False, True]
    (keys,) = (tmp_path / "cache").glob("epoch_*/*.keys")
    assert keys.stat().st_size == 3 * 12
    again = cached(counting(), tmp_path / "cache")(batch)["head.classifier"]
    assert torch.equal(again.isfinite(), said.isfinite())


def test_only_what_is_missing_is_added(tmp_path: Path) -> None:
    batch = visiting(batch_of(6), 0)
    half = Batch({name: value[:3] for name, value in batch_of(6).items()})
    cached(counting(), tmp_path / "cache")(visiting(half, 0))
    teacher = counting()
    warm = cached(teacher, tmp_path / "cache")
    said = warm(batch)["head.classifier"]
    assert teacher.asked == 1
    assert torch.equal(said, teacher(batch)["head.classifier"].half().float())
    keys = [path.stat().st_size // 12 for path in (tmp_path / "cache").glob("epoch_*/*.keys")]
    assert sorted(keys) == [3, 3]


def test_another_batch_size_finds_the_same_images(tmp_path: Path) -> None:
    """Unmixed images are known one by one: 2 updates of 3 an epoch, then 3 of 2."""
    whole = batch_of(6)
    pieces = lambda size: [Batch({n: v[at : at + size] for n, v in whole.items()}) for at in range(0, 6, size)]  # noqa: E731
    cold = cached(counting(), tmp_path / "cache", steps_per_epoch=2)
    for step, batch in enumerate(pieces(3)):
        cold(visiting(batch, step))
    teacher = counting()
    warm = cached(teacher, tmp_path / "cache", steps_per_epoch=3)
    for step, batch in enumerate(pieces(2)):
        warm(visiting(batch, step))
    assert teacher.asked == 0


KEYS = np.array([7, 2**63 + 1, 3], np.uint64)
ROWS = np.arange(15, dtype=np.uint8).reshape(3, 5)
IDENTITY = {"teacher": "abc", "data": "def"}


def store(folder: Path, row_bytes: int = 5, **identity: str) -> Store:
    return Store(folder, row_bytes=row_bytes, identity={**IDENTITY, **identity}, setting="mimic.cache.dir")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    made = store(folder)
    made.append(4, KEYS, ROWS)
    made.append(5, KEYS, ROWS[::-1])
    return folder


def test_rows_are_found_by_key_and_epoch(filled: Path) -> None:
    made = store(filled)
    rows, found = made.read(4, np.array([3, 8, 7], np.uint64))
    assert found.tolist() == [True, False, True]
    assert rows[[0, 2]].tolist() == [ROWS[2].tolist(), ROWS[0].tolist()]
    rows, found = made.read(5, KEYS)
    assert found.all()
    assert rows.tolist() == ROWS[::-1].tolist()
    assert not made.read(6, KEYS)[1].any()


def test_several_processes_write_files_of_their_own(filled: Path) -> None:
    other = store(filled)
    other.append(4, np.array([9], np.uint64), ROWS[:1] + 100)
    rows, found = store(filled).read(4, np.array([9, 7], np.uint64))
    assert found.all()
    assert rows.tolist() == [(ROWS[0] + 100).tolist(), ROWS[0].tolist()]
    assert len(list(filled.glob("epoch_000004/*.rows"))) == 2


def test_size_on_disk_and_in_words(filled: Path) -> None:
    assert store(filled).size() == 2 * 3 * (5 + 12)
    assert [size_text(size) for size in (17, 6400, 2012 * 1_281_167)] == ["17 bytes", "6.4 kB", "2.58 GB"]


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_a_flipped_bit_is_refused(filled: Path) -> None:
    path = one(filled, "epoch_000004/*.rows")
    content = bytearray(path.read_bytes())
    content[6] ^= 16
    path.write_bytes(content)
    made = store(filled)
    with pytest.raises(UserError, match=facts(path, "1", "checksum")):
        made.read(4, KEYS)
    assert made.read(4, KEYS[2:])[1].all()


def test_missing_rows_are_refused_at_once(filled: Path) -> None:
    path = one(filled, "epoch_000005/*.rows")
    path.write_bytes(path.read_bytes()[:12])
    with pytest.raises(UserError, match=rf"{path}: damaged \(2 of 3 rows\)"):
        store(filled)


def test_a_cache_whose_start_was_killed_starts_again(tmp_path: Path) -> None:
    """The file that tells what the rows depend on was not complete."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / ".tmp-123-cache.json").write_text('{"form')
    store(folder).append(4, KEYS, ROWS)
    assert store(folder).read(4, KEYS)[1].all()


def test_what_a_kill_cut_short_is_passed_over(filled: Path) -> None:
    rows, keys = one(filled, "epoch_000004/*.rows"), one(filled, "epoch_000004/*.keys")
    rows.write_bytes(rows.read_bytes() + b"\1\2")
    keys.write_bytes(keys.read_bytes()[:-5])
    assert store(filled).read(4, KEYS)[1].tolist() == [True, True, False]


def test_another_teacher_or_form_is_refused(filled: Path) -> None:
    with pytest.raises(UserError, match=facts("teacher", "another", "mimic.cache.dir")):
        store(filled, teacher="xyz")
    with pytest.raises(UserError, match=facts("bytes a row", "5", "6")):
        store(filled, row_bytes=6)


def test_runs_that_begin_a_cache_at_once_do_not_read_each_other(tmp_path: Path) -> None:
    """Neither finds a label when it starts; the second to write is refused, and finds nothing of the first's."""
    first, second = store(tmp_path / "cache"), store(tmp_path / "cache", teacher="xyz")
    first.append(0, KEYS, ROWS)
    assert not second.read(0, KEYS)[1].any()
    with pytest.raises(UserError, match=facts("another", "teacher", "abc", "xyz")):
        second.append(0, KEYS, ROWS + 1)
    rows, found = store(tmp_path / "cache").read(0, KEYS)
    assert found.all()
    assert rows.tolist() == ROWS.tolist()


@pytest.mark.parametrize("label", ["{", "[]", "3", "", "null"])
def test_a_damaged_label_is_refused(filled: Path, label: str) -> None:
    (filled / "cache.json").write_text(label)
    with pytest.raises(UserError, match=facts("cache.json", "damaged", "mimic.cache.dir")):
        store(filled)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "teacher"):
        with pytest.raises(UserError, match=facts("lies", "below", "folder")):
            store(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=facts("holds", "something", "cache")):
        store(tmp_path)


def test_nothing_is_made_before_something_is_added(tmp_path: Path) -> None:
    made = store(tmp_path / "cache")
    assert not made.read(0, KEYS)[1].any()
    assert not (tmp_path / "cache").exists()
    made.append(0, KEYS, ROWS)
    assert json.loads((tmp_path / "cache" / "cache.json").read_text()) == {"format": "2", **IDENTITY, "bytes a row": "5"}


def test_a_disk_that_takes_nothing_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = store(tmp_path / "cache")
    (tmp_path / "cache").symlink_to(tmp_path / "file")
    with pytest.raises(StorageError, match=facts("written", "another", "mimic.cache.dir")):
        made.append(0, KEYS, ROWS)
