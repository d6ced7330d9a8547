"""Cached features: the view of a visit, rows of any dtype, chunks that no rank changes, heads that take vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from up.data.bad_images import BadImages
from up.data.collate import collate, rows_of
from up.data.loader import Workers
from up.data.records import Batch, Sample, SampleKey
from up.data.transforms.stages import DeviceStage
from up.data.transforms.table import RandomHorizontalFlip
from up.distributed.failures import Vote
from up.engine.bad_images import BadImageLog
from up.engine.features import CHUNK, FeatureCache, FixedViews
from up.engine.precision import Precision
from up.engine.rows import pack, unpack
from up.models.net import COMPUTED, Net
from up.seed import seed_cpu
from up.tasks.cls.model.heads import ConvNeXtHead, FPNHead, ResNetHead, ViTHead

IMAGES = 2 * CHUNK + 5


class Numbers:
    """Images whose pixels are their index; of the mirrored ones the negative."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def __getitem__(self, key: SampleKey) -> Sample:
        image = torch.full((3, 2, 2), self.sign * key.index)
        return Sample(image=image, gt=key.index % 3, filename=f"{key.index}.png", index=key.index, seed=0, bad=None)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.batches: list[int] = []

    def forward(self, record: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        self.batches.append(len(record["image"]))
        return {"features": [record["image"] * self.scale]}


def cache_of(run: Path) -> tuple[FeatureCache, Backbone]:
    backbone = Backbone()
    net = Net([("backbone", backbone), ("head", ResNetHead(num_classes=3, in_plane=3))])
    views = FixedViews([Numbers(1.0), Numbers(-1.0)], lambda batch: batch, IMAGES, 0.5)
    form = {"gt": (torch.int64, ()), "features": (torch.float32, (3,))}
    made = FeatureCache(
        net,
        1,
        views,
        Precision(mode=None, device="cpu"),
        form,
        until=9,
        seed=7,
        run=run,
        identity={},
        collate=collate,
        workers=Workers(),
    )
    return made, backbone


def fill(cache: FeatureCache) -> bool:
    log = BadImageLog(BadImages(max_bad=0, total=IMAGES), cache.run)
    return cache.fill(lambda: Vote.GO, log)


def test_rows_keep_every_dtype() -> None:
    parts = [torch.arange(3), torch.tensor([[True], [False], [True]]), torch.randn(3, 4), torch.randn(3, 2).bfloat16()]
    found = unpack(torch.from_numpy(pack(parts)), [(torch.int64, 1), (torch.bool, 1), (torch.float32, 4), (torch.bfloat16, 2)])
    assert all(torch.equal(one.reshape(3, -1), other) for one, other in zip(parts, found, strict=True))


@pytest.mark.parametrize("p", [0.3, 0.5, 1.0])
def test_the_view_is_the_draw_of_the_flip(p: float) -> None:
    views, image = FixedViews([Numbers(1.0), Numbers(-1.0)], lambda batch: batch, 9, p), torch.arange(4.0).view(1, 1, 4)
    flip, drawn = RandomHorizontalFlip(p=p), set()
    for key in (SampleKey(epoch, index) for epoch in range(4) for index in range(8)):
        seed_cpu(key.seed(5))
        is_mirrored = not torch.equal(flip(image), image)
        assert views.of(key, 5) == is_mirrored
        drawn.add(is_mirrored)
    assert drawn == ({True} if p == 1 else {True, False})


def test_every_view_passes_once_in_chunks(tmp_path: Path) -> None:
    cache, backbone = cache_of(tmp_path)
    assert fill(cache)
    assert backbone.batches == [CHUNK, CHUNK, 5] * 2
    assert cache.computed == 2 * IMAGES
    keys = [SampleKey(0, index) for index in (3, 40, 7)]
    samples = [cache[key] for key in keys]
    batch = cache.batch(samples)
    signs = torch.tensor([-1.0 if sample["view"] else 1.0 for sample in samples])
    assert torch.equal(batch["features"], (2 * signs * torch.tensor([3.0, 40.0, 7.0])).view(3, 1).expand(3, 3))
    assert batch["gt"].tolist() == [0, 1, 1]
    assert batch[COMPUTED] == 1
    assert torch.equal(cache.net(batch)["logits"], cache.net["head"]({"features": [batch["features"]]})["logits"])
    again, backbone = cache_of(tmp_path)
    assert fill(again)
    assert backbone.batches == []
    cache.remove()
    assert not (tmp_path / "features").exists()


def test_other_weights_have_other_features(tmp_path: Path) -> None:
    cache, _ = cache_of(tmp_path)
    assert fill(cache)
    (before,) = (tmp_path / "features").iterdir()
    other, backbone = cache_of(tmp_path)
    backbone.scale.data.fill_(3.0)
    assert fill(other)
    (after,) = (tmp_path / "features").iterdir()
    assert after != before
    assert float(other.batch([other[SampleKey(0, 1)]])["features"].abs().max()) == 3.0


def test_a_request_to_stop_leaves_what_was_computed(tmp_path: Path) -> None:
    cache, backbone = cache_of(tmp_path)
    votes = iter([Vote.GO, Vote.GO, Vote.STOP])
    assert not cache.fill(lambda: next(votes), BadImageLog(BadImages(max_bad=0, total=IMAGES), tmp_path))
    assert backbone.batches == [CHUNK, CHUNK]
    assert fill(cache)
    assert backbone.batches == [CHUNK, CHUNK, 5, CHUNK, CHUNK, 5]


@pytest.mark.parametrize(
    ("head", "feature"),
    [
        (ResNetHead(num_classes=2, in_plane=4), (4, 3, 3)),
        (ResNetHead(num_classes=2, in_plane=4, representation_size=5), (9, 4)),
        (ConvNeXtHead(num_classes=2, in_plane=4), (4, 3, 3)),
        (ViTHead(num_classes=2, in_plane=4, bn=True), (9, 4)),
        (ViTHead(num_classes=[2, 3], in_plane=4, cls_type="avg"), (9, 4)),
    ],
)
def test_heads_take_the_condensed_feature(head: ResNetHead, feature: tuple[int, ...]) -> None:
    feats = [torch.randn(5, 7), torch.randn(5, *feature)]
    condensed = head.condensed(feats)
    assert condensed is not None
    assert condensed.shape == (5, 4)
    one, other = (head.train()({"features": found})["logits"] for found in (feats, [condensed]))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "head",
    [
        ResNetHead(num_classes=2, in_plane=36, use_pool=False),
        ResNetHead(num_classes=2, in_plane=4, input_feature_idx=1),
        FPNHead(num_classes=2, in_plane=4),
    ],
)
def test_heads_that_need_more_have_no_condensed_feature(head: ResNetHead) -> None:
    assert head.condensed([torch.randn(5, 4, 3, 3)] * 2) is None


def test_a_batch_of_features_is_cut_and_moved() -> None:
    batch = Batch(features=torch.arange(8.0).view(4, 2), gt=torch.arange(4), filename=[*"abcd"], bad=[None] * 4, computed=1)
    part = rows_of(batch, slice(1, 3))
    assert part["features"].tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert part[COMPUTED] == 1
    assert DeviceStage(None, torch.device("cpu"), channels_last=True)(batch)["features"].shape == (4, 2)
