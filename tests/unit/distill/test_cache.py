"""What is stored, how exactly, under which keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness.nets import batch_of, net_of
from up.data.records import Batch
from up.distill.cache import CachedTeacher, Codec, visits_of
from up.distill.store import Store
from up.distill.teachers import Teacher

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
    got = there_and_back(Codec({"head": 10, "feature": 7}, dtype), said)
    for layer, tensor in said.items():
        assert torch.equal(got[layer], tensor.to(DTYPES[dtype]).float())


def test_sizes_of_rows() -> None:
    assert Codec({"head": 1000}).row_bytes == 2000
    assert Codec({"head": 1000, "other": 10}, "fp32").row_bytes == 4040
    assert Codec({"head": 1000}, topk=20).row_bytes == 20 * (2 + 4) + 4
    assert Codec({"head": 10}, topk=20).row_bytes == 20


def test_topk_keeps_the_largest_and_the_probability_of_the_rest() -> None:
    said = vectors(head=50)
    got = there_and_back(Codec({"head": 50}, "fp32", topk=5), said)["head"]
    where = said["head"].topk(5).indices
    assert torch.equal(got.gather(1, where), said["head"].gather(1, where))
    expected, probs = said["head"].softmax(1), got.softmax(1)
    assert torch.allclose(probs.gather(1, where), expected.gather(1, where), atol=1e-6)
    rest = probs.scatter(1, where, 0)
    assert torch.allclose(rest.sum(1), 1 - expected.gather(1, where).sum(1), atol=1e-6)
    assert torch.allclose(rest.amax(1), rest.sum(1) / 45, atol=1e-7)


def test_keys_of_unmixed_images_are_their_own_seeds() -> None:
    batch = batch_of()
    one = visits_of(batch, 3, None)
    assert one.keys.tolist() == batch.seed.tolist()
    turned = visits_of({"seed": batch.seed.flip(0)}, 9, None)
    assert turned.keys.tolist() == one.keys.tolist()[::-1]


def test_keys_of_mixed_images_depend_on_the_whole_batch_and_the_draw() -> None:
    batch = batch_of(64)
    known = visits_of(batch, 3, (7, 3, 0, 0)).keys.tolist()
    assert visits_of(batch, 3, (7, 3, 0, 0)).keys.tolist() == known
    assert len(set(known)) == 64
    for other in (
        visits_of(batch, 3, (7, 4, 0, 0)),
        visits_of(batch, 3, (7, 3, 1, 0)),
        visits_of({"seed": batch.seed.flip(0)}, 3, (7, 3, 0, 0)),
        visits_of({"seed": batch.seed[:-1]}, 3, (7, 3, 0, 0)),
    ):
        assert not set(other.keys.tolist()) & set(known)


class Counting(Teacher):
    asked = 0

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        self.asked += 1
        return super().__call__(batch)


def counting() -> Counting:
    return Counting("teacher", net_of(6, seed=1), ["head.classifier"], example=batch_of(2))


def cached(teacher: Teacher, folder: Path, updates_per_epoch: int = 10) -> CachedTeacher:
    codec = Codec({"head.classifier": 5})
    store = Store(folder, row_bytes=codec.row_bytes, identity={"teacher": teacher.digest()})
    return CachedTeacher(teacher, store, codec, updates_per_epoch=updates_per_epoch)


def visiting(batch: Batch, step: int) -> Batch:
    return Batch(batch, visits=visits_of(batch, step, None))


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
    cold = cached(counting(), tmp_path / "cache", updates_per_epoch=2)
    for step, batch in enumerate(pieces(3)):
        cold(visiting(batch, step))
    teacher = counting()
    warm = cached(teacher, tmp_path / "cache", updates_per_epoch=3)
    for step, batch in enumerate(pieces(2)):
        warm(visiting(batch, step))
    assert teacher.asked == 0
