"""Auxiliary classifiers of networks of cells: their shape, their loss, and that only training has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness.nets import meta_device
from up.config.parts import Exact
from up.config.section import Part
from up.data.records import Batch
from up.errors import UserError
from up.models.auxiliary import AuxiliaryFeatures, parameters_in_evaluation, remove_auxiliary
from up.models.cells import cell_network
from up.models.complexity import complexity
from up.models.net import Net
from up.models.regions import compile_regions
from up.models.weight_files import Weights
from up.models.weights import load_weights
from up.tasks.cls.model.heads import FPNHead, Head, ResNetHead
from up.tasks.cls.model.losses import ClassificationLoss, CrossEntropy, LabelSmoothing, SoftmaxEQL
from up.tasks.cls.model.postprocess import ClassificationPostProcess
from up.tasks.cls.task import CLASSIFICATION
from up.tasks.task import rows_of_record

SMALL: dict[str, Any] = {"genotype": "darts_v2", "layers": 5, "init_channels": 4}
IMAGE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
GT = torch.tensor([0, 2, 1, 1])


def numel(parameters: Any) -> int:
    return sum(each.numel() for each in parameters)


def net_of(weight: float = 0.4, loss: ClassificationLoss | None = None, classes: Any = 3, **kwargs: Any) -> Net:
    torch.manual_seed(0)
    backbone = cell_network(**{**SMALL, **kwargs}, auxiliary_weight=weight)
    planes = AuxiliaryFeatures.width if weight else None
    head = ResNetHead(in_plane=backbone.out_planes[-1], num_classes=classes, auxiliary_planes=planes)
    return Net(
        [("backbone", backbone), ("head", head), ("post_process", ClassificationPostProcess(cls_loss=loss or CrossEntropy()))]
    )


# --- the network ---


@pytest.mark.parametrize(
    ("kwargs", "side", "planes", "classes"),
    [({}, 32, 576, 10), ({"layers": 14, "init_channels": 48, "stem": "imagenet"}, 224, 768, 1000)],
)
def test_number_of_parameters_by_hand(kwargs: dict[str, Any], side: int, planes: int, classes: int) -> None:
    """A 1x1 convolution to 128 channels, a 2x2 one to 768, two BatchNorms and the last layer; the paper's network without them."""
    with meta_device():
        plain = cell_network(genotype="darts_v2", **kwargs)
        backbone = cell_network(genotype="darts_v2", **kwargs, auxiliary_weight=0.4)
        head = ResNetHead(in_plane=backbone.out_planes[-1], num_classes=classes, auxiliary_planes=768)
        added = head(backbone({"image": torch.zeros(2, 3, side, side)}) | {"gt": None})
    assert numel(backbone.parameters()) - numel(plain.parameters()) == 128 * planes + 2 * 128 + 768 * 128 * 4 + 2 * 768
    assert numel(head.parameters()) == (backbone.out_planes[-1] + 1) * classes + 769 * classes
    assert numel(parameters_in_evaluation(backbone)) == numel(plain.parameters())
    assert [each.shape for each in added["auxiliary_logits"]] == [(2, classes)]


def test_it_reads_the_map_after_the_second_reduction() -> None:
    """Cell 3 of five, by hand."""
    backbone = cell_network(**SMALL, auxiliary_weight=0.4)
    seen: list[Tensor] = []
    backbone.cells[3].register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = backbone({"image": IMAGE})["auxiliary"]
    tower = backbone.auxiliary
    assert isinstance(tower, AuxiliaryFeatures)
    x = F.avg_pool2d(seen[0].relu(), 5, stride=3)
    for conv, norm in ((tower[2], tower[3]), (tower[5], tower[6])):
        x = F.conv2d(x, conv.weight)
        x = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True).relu()
    assert x.shape == (4, 768, 1, 1)
    assert torch.allclose(features, x.flatten(1), atol=1e-6)


@pytest.mark.parametrize("out_layers", [None, [2, 3], [1, 3]])
def test_features_are_those_of_the_network_without_it(out_layers: Any) -> None:
    backbone = cell_network(**SMALL, auxiliary_weight=0.4, out_layers=out_layers)
    plain = cell_network(**SMALL, out_layers=out_layers)
    plain.load_state_dict(backbone.state_dict(), strict=False)
    for mode in (True, False):
        ours, theirs = (each.train(mode)({"image": IMAGE}) for each in (backbone, plain))
        for one, other in zip(ours["features"], theirs["features"], strict=True):
            assert torch.equal(one, other)
        assert set(ours) == ({"features", "auxiliary", "auxiliary_weight"} if mode else {"features"})


@pytest.mark.parametrize(("stem", "side", "least"), [("small", 28, 8), ("imagenet", 192, 7)])
def test_small_maps_name_the_key(stem: Any, side: int, least: int) -> None:
    backbone = cell_network(**SMALL, stem=stem, auxiliary_weight=0.4)
    with pytest.raises(UserError) as caught:
        backbone({"image": torch.randn(1, 3, side, side)})
    assert caught.value.problems[0].key == "auxiliary_weight"
    assert f"{least}x{least}" in str(caught.value)


def test_stages_without_the_map_name_the_key() -> None:
    with pytest.raises(UserError) as caught:
        cell_network(**SMALL, auxiliary_weight=0.4, out_layers=[1, 2])
    assert caught.value.problems[0].key == "out_layers"


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpoints in (False, True):
        net = net_of(grad_checkpointing=checkpoints)
        net({"image": IMAGE, "gt": GT})["loss"].backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(each is not None for each in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


# --- the loss ---


@pytest.mark.parametrize("loss", [CrossEntropy(), LabelSmoothing(smooth_ratio=0.1), CrossEntropy(class_weights=[3.0, 1.0, 2.0])])
@pytest.mark.parametrize("gt", [GT, F.one_hot(GT, 3) * 0.7 + 0.1])
def test_the_loss_is_the_main_one_and_the_auxiliary_one_times_its_weight(loss: ClassificationLoss, gt: Tensor) -> None:
    record = net_of(0.3, loss)({"image": IMAGE, "gt": gt})
    (logits,) = record["auxiliary_logits"]
    main, added = loss(record["logits"], gt), loss(logits, gt)
    assert added.item() != pytest.approx(main.item(), rel=1e-3)
    assert record["loss"].item() == pytest.approx((main + 0.3 * added).item())
    shown = record["scalars"]["auxiliary_loss"]
    assert shown.value.item() == pytest.approx(added.item())
    assert not shown.value.requires_grad
    weight, wanted = shown.weight, loss.weight(gt)
    assert weight is wanted is None or torch.equal(torch.as_tensor(weight), torch.as_tensor(wanted))


def test_each_head_has_an_auxiliary_classifier() -> None:
    gt = torch.stack([GT, torch.tensor([0, 1, 1, 0])], dim=1)
    record = net_of(0.4, classes=[3, 2])({"image": IMAGE, "gt": gt})
    assert [each.shape for each in record["auxiliary_logits"]] == [(4, 3), (4, 2)]
    both = [
        F.cross_entropy(main, target) + 0.4 * F.cross_entropy(added, target)
        for main, added, target in zip(record["logits"], record["auxiliary_logits"], gt.unbind(1), strict=True)
    ]
    assert record["loss"].item() == pytest.approx(sum(both).item())  # type: ignore[union-attr]
    assert {"head0_auxiliary_loss", "head1_auxiliary_loss"} <= set(record["scalars"])


def test_a_loss_with_a_memory_remembers_the_main_logits_alone() -> None:
    loss, alone = SoftmaxEQL(num_classes=3), SoftmaxEQL(num_classes=3)
    record = net_of(0.4, loss)({"image": IMAGE, "gt": GT})
    alone(record["logits"].detach().requires_grad_(), GT)
    assert torch.equal(loss.pos_grad, alone.pos_grad)
    assert loss.training


def test_a_head_that_ignores_it_is_an_error() -> None:
    net = net_of()
    net.head.auxiliary = None
    with pytest.raises(UserError, match="auxiliary_logits"):
        net({"image": IMAGE, "gt": GT})


def test_the_loss_of_some_rows() -> None:
    """Pages show the loss of each image."""
    net = net_of()
    batch = Batch(image=IMAGE, gt=GT, filename=list("abcd"), index=torch.arange(4))
    record = net(batch)
    losses = [net.last(rows_of_record(record, batch, slice(at, at + 1)))["loss"] for at in range(4)]
    assert torch.stack(losses).mean().item() == pytest.approx(record["loss"].item(), rel=1e-5)


def test_a_frozen_backbone_has_no_auxiliary_loss() -> None:
    """A probe trains the head alone, on features as in evaluation."""
    net = net_of()
    net.hold([name for name, _ in net.named_parameters() if name.startswith("backbone.")])
    assert "auxiliary_logits" not in net.train()({"image": IMAGE, "gt": GT})


# --- evaluation, weights and costs do without it ---


def test_evaluation_and_costs_do_without_it() -> None:
    net, plain = net_of(0.4), net_of(0.0)
    report = load_weights(plain, Weights("a.pth", net.state_dict()))
    assert report.unexpected == []
    assert any("auxiliary" in line for line in report.remarks())
    ours, theirs = (each.eval()({"image": IMAGE, "gt": GT}) for each in (net, plain))
    assert set(ours) == set(theirs)
    assert torch.equal(ours["scores"], theirs["scores"])
    assert complexity(net, (3, 32, 32)) == complexity(plain, (3, 32, 32))
    remove_auxiliary(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    net.train()({"image": IMAGE, "gt": GT})


def test_weights_without_it_load_with_a_remark() -> None:
    net, plain = net_of(0.4), net_of(0.0)
    before = net.backbone.auxiliary[2].weight.clone()
    report = load_weights(net, Weights("a.pth", plain.state_dict()))
    assert report.missing == []
    assert any("auxiliary" in line for line in report.remarks())
    assert torch.equal(net.backbone.auxiliary[2].weight, before)
    assert torch.equal(net.backbone.cells[0].preprocess0[1].weight, plain.backbone.cells[0].preprocess0[1].weight)


def test_another_number_of_classes_starts_both_classifiers_afresh() -> None:
    net = net_of(0.4, classes=5)
    report = load_weights(net, Weights("a.pth", net_of(0.4).state_dict()), heads={"head": "classifier"})
    assert {"head.classifier.weight", "head.auxiliary.0.weight"} <= set(report.reinitialised)


@pytest.mark.parametrize("kind", ["base_cls_head", "fpn_cls_head"])
def test_the_task_derives_the_planes_of_the_head(kind: str) -> None:
    backbone = cell_network(**SMALL, auxiliary_weight=0.4)
    known = CLASSIFICATION.derived_for_module("head", {"num_classes": 3}, backbone, Part(type=kind, kwargs={}))
    planes = known["auxiliary_planes"]
    assert isinstance(planes, Exact)
    assert planes.value == 768
    head: Head = (FPNHead if kind == "fpn_cls_head" else ResNetHead)(in_plane=64, num_classes=3, auxiliary_planes=768)
    assert isinstance(head.auxiliary, nn.Module)
    plain = CLASSIFICATION.derived_for_module("head", {"num_classes": 3}, cell_network(**SMALL), Part(type=kind, kwargs={}))
    assert "auxiliary_planes" not in plain


def test_regions_to_compile_read_it() -> None:
    """With the backend that computes as without compiling."""
    assert "auxiliary" in ResNetHead.reads
    assert compile_regions(net_of(), "default") == ["post_process"]
