from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.harness.facts import facts
from up.errors import UserError
from up.tasks.cls.model.heads import (
    CLASSIFIERS,
    HEADS,
    ConvNeXtHead,
    FPNHead,
    LinearClassifier,
    NormLinearClassifier,
    ResNetHead,
    ViTHead,
)

MAP = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))


def logits_of(head: torch.nn.Module, *features: Tensor) -> Any:
    return head.eval()({"features": list(features)})["logits"]


def test_tables_name_what_yaml_may_say() -> None:
    assert list(HEADS) == ["base_cls_head", "convnext_head", "fpn_cls_head", "vit_head"]
    assert list(CLASSIFIERS) == ["linear", "norm_linear", "scaled_linear"]
    assert all(HEADS.get(name)(num_classes=3, in_plane=6).num_classes == [3] for name in HEADS)


def test_one_head_pools_and_classifies_the_last_feature() -> None:
    head = ResNetHead(num_classes=10, in_plane=6)
    expected = F.linear(F.adaptive_avg_pool2d(MAP, 1).flatten(1), head.classifier.weight, head.classifier.bias)
    assert torch.allclose(logits_of(head, torch.zeros(2, 9, 1, 1), MAP), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["base_cls_head", "convnext_head", "fpn_cls_head", "vit_head"])
def test_state_dict_names_of_one_and_of_several_heads(name: str) -> None:
    one = HEADS.get(name)(num_classes=3, in_plane=6).state_dict()
    several = HEADS.get(name)(num_classes=[3, 4], in_plane=6).state_dict()
    assert one["classifier.weight"].shape == (3, 6)
    assert several["classifier.0.weight"].shape == (3, 6)
    assert several["classifier.1.bias"].shape == (4,)
    assert {key for key in one if not key.startswith("classifier")} == ({"norm.weight", "norm.bias"} & set(one))


def test_several_heads_give_a_list_in_order() -> None:
    head = ResNetHead(num_classes=[3, 4], in_plane=6)
    assert [tuple(logits.shape) for logits in logits_of(head, MAP)] == [(2, 3), (2, 4)]
    assert head.num_classes == [3, 4]


def test_a_list_of_one_is_a_list() -> None:
    head = ResNetHead(num_classes=[3], in_plane=6)
    assert [tuple(logits.shape) for logits in logits_of(head, MAP)] == [(2, 3)]
    assert "classifier.0.weight" in head.state_dict()


def test_input_feature_idx_picks_the_feature() -> None:
    head = ResNetHead(num_classes=3, in_plane=6, input_feature_idx=0)
    assert torch.equal(logits_of(head, MAP, torch.zeros(2, 9, 1, 1)), logits_of(head, MAP))


def test_a_feature_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=facts("input_feature_idx", "2", "backbone", "1")):
        logits_of(ResNetHead(num_classes=3, in_plane=6, input_feature_idx=2), MAP)


@pytest.mark.parametrize("name", ["base_cls_head", "convnext_head", "fpn_cls_head", "vit_head"])
def test_a_wrong_channel_count_names_both_numbers(name: str) -> None:
    features = TOKENS if name == "vit_head" else MAP
    with pytest.raises(UserError, match=facts("in_plane", "2048", "6")):
        logits_of(HEADS.get(name)(num_classes=3, in_plane=2048), features)


def test_tokens_and_vectors_are_pooled_too() -> None:
    head = ResNetHead(num_classes=3, in_plane=6)
    assert torch.allclose(logits_of(head, TOKENS), head.classifier(TOKENS.mean(1)), atol=1e-6)
    assert torch.equal(logits_of(head, TOKENS[:, 0]), head.classifier(TOKENS[:, 0]))


def test_without_pool_the_feature_is_flattened() -> None:
    head = ResNetHead(num_classes=3, in_plane=6 * 12, use_pool=False)
    assert torch.equal(logits_of(head, MAP), head.classifier(MAP.flatten(1)))
    with pytest.raises(UserError, match=facts("in_plane", "6", "72", "in_plane", "72")):
        logits_of(ResNetHead(num_classes=3, in_plane=6, use_pool=False), MAP)


def test_dropout_is_active_in_training_only() -> None:
    torch.manual_seed(0)
    head = ResNetHead(num_classes=3, in_plane=6, dropout=0.5)
    twice = [head.train()({"features": [MAP]})["logits"] for _ in range(2)]
    assert not torch.equal(*twice)
    assert torch.equal(logits_of(head, MAP), logits_of(head, MAP))


@pytest.mark.parametrize("make", [ResNetHead, ViTHead])
def test_representation_is_linear_and_tanh(make: Any) -> None:
    head = make(num_classes=3, in_plane=6, representation_size=5)
    vector = TOKENS[:, 0]
    hidden = F.linear(vector, head.pre_logits.fc.weight, head.pre_logits.fc.bias).tanh()
    assert torch.allclose(logits_of(head, vector), head.classifier(hidden), atol=1e-6)
    assert head.classifier.weight.shape == (3, 5)


@pytest.mark.parametrize("spelling", ["temperature", "tempearture"])
def test_norm_linear_is_temperature_times_cosine(spelling: str) -> None:
    head = ResNetHead(num_classes=3, in_plane=6, classifier_cfg=NormLinearClassifier(**{spelling: 7.0}))
    weight = head.classifier.weight
    expected = 7 * F.cosine_similarity(TOKENS[:, 0][:, None], weight[None], dim=2)
    assert torch.allclose(logits_of(head, TOKENS[:, 0]), expected, atol=1e-5)
    assert set(head.state_dict()) == {"classifier.weight"}


@pytest.mark.parametrize("temperature", [0.0, -5.0])
def test_norm_linear_refuses_temperatures_that_turn_scores_off_or_around(temperature: float) -> None:
    with pytest.raises(UserError, match=facts("temperature", str(temperature))):
        NormLinearClassifier(temperature=temperature)


def test_norm_linear_refuses_two_temperatures() -> None:
    with pytest.raises(UserError, match=facts("tempearture", "7.0", "5", "temperature")):
        NormLinearClassifier(temperature=5.0, tempearture=7.0)


def test_linear_classifier_may_go_without_bias() -> None:
    head = ResNetHead(num_classes=3, in_plane=6, classifier_cfg=LinearClassifier(bias=False))
    assert set(head.state_dict()) == {"classifier.weight"}


def test_convnext_head_agrees_with_timm() -> None:
    oracle = timm.layers.NormMlpClassifierHead(6, 3, norm_layer=timm.layers.LayerNorm2d).eval()
    head = ConvNeXtHead(num_classes=3, in_plane=6)
    with torch.no_grad():
        for norm in (oracle.norm, head.norm):
            norm.weight.copy_(torch.arange(1.0, 7.0))
        oracle.fc.load_state_dict(head.classifier.state_dict())
    assert torch.allclose(logits_of(head, MAP), oracle(MAP), atol=1e-5)


def test_head_init_scale_multiplies_the_first_weights() -> None:
    weights = []
    for scale in (1.0, 0.001):
        torch.manual_seed(3)
        weights.append(ConvNeXtHead(num_classes=3, in_plane=6, head_init_scale=scale).classifier.weight)
    assert torch.allclose(weights[0] * 0.001, weights[1])
    assert 0.005 < weights[0].std().item() < 0.04


def test_vit_head_takes_the_class_token_or_the_mean_of_the_others() -> None:
    token = ViTHead(num_classes=3, in_plane=6, cls_type="token")
    mean = ViTHead(num_classes=3, in_plane=6, cls_type="avg")
    assert torch.allclose(logits_of(token, TOKENS), token.classifier(TOKENS[:, 0]), atol=1e-6)
    assert torch.allclose(logits_of(mean, TOKENS), mean.classifier(TOKENS[:, 1:].mean(1)), atol=1e-6)
    assert torch.allclose(logits_of(mean, MAP), mean.classifier(MAP.mean((2, 3))), atol=1e-6)


def test_vit_head_needs_tokens_for_its_class_token() -> None:
    with pytest.raises(UserError, match=facts("cls_type", "2", "6", "3", "4", "cls_type")):
        logits_of(ViTHead(num_classes=3, in_plane=6), MAP)


def test_vit_head_may_normalise_the_batch_before_the_classifier() -> None:
    head = ViTHead(num_classes=3, in_plane=6, bn=True).train()
    out = head({"features": [TOKENS]})["logits"]
    vector = TOKENS[:, 0]
    normalised = (vector - vector.mean(0)) / (vector.var(0, unbiased=False) + 1e-6).sqrt()
    assert torch.allclose(out, head.classifier(normalised), atol=1e-5)


def test_fpn_head_averages_its_levels_or_joins_them() -> None:
    small = MAP[:, :, :1, :1]
    mean = FPNHead(num_classes=3, in_plane=6)
    assert torch.allclose(logits_of(mean, MAP, small), mean.classifier((MAP.mean((2, 3)) + small[:, :, 0, 0]) / 2), atol=1e-6)
    joined = FPNHead(num_classes=3, in_plane=[6, 2])
    vector = torch.cat([MAP.mean((2, 3)), small[:, :2, 0, 0]], 1)
    assert torch.allclose(logits_of(joined, MAP, small[:, :2]), joined.classifier(vector), atol=1e-6)


def test_fpn_head_names_the_number_of_levels() -> None:
    with pytest.raises(UserError, match=facts("in_plane", "3", "2")):
        logits_of(FPNHead(num_classes=3, in_plane=[6, 6, 6]), MAP, MAP)


@pytest.mark.parametrize("wrong", [{"num_classes": 0}, {"num_classes": []}, {"in_plane": 0}, {"dropout": 1.5}])
def test_impossible_sizes_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(UserError, match=name):
        ResNetHead(**{"num_classes": 3, "in_plane": 6, **wrong})


def test_a_head_can_be_exported_with_a_free_batch_size() -> None:
    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = ConvNeXtHead(num_classes=3, in_plane=6)

        def forward(self, feature: Tensor) -> Any:
            return self.head({"features": [feature]})["logits"]

    alone = Alone().eval()
    program = torch.export.export(alone, (MAP,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    bigger = MAP.repeat(2, 1, 1, 1)
    assert torch.allclose(program.module()(bigger), alone(bigger), atol=1e-6)


def means(*features: Tensor) -> list[Tensor]:
    return [F.adaptive_avg_pool2d(feature, 1).flatten(1) for feature in features]


def test_levels_of_a_pyramid_are_summed() -> None:
    other = MAP.flip(0)[..., :2]
    head = FPNHead(num_classes=3, in_plane=[6, 6], sum_feature=True)
    assert torch.allclose(logits_of(head, MAP, other), head.classifier(sum(means(MAP, other))), atol=1e-6)


@pytest.mark.parametrize("sum_feature", [True, False])
def test_levels_of_a_pyramid_are_brought_to_one_width(sum_feature: bool) -> None:
    narrow = MAP[:, :2]
    head = FPNHead(num_classes=3, in_plane=[6, 2], feat_planes=4, sum_feature=sum_feature)
    assert head.lateral is not None
    first, second = (F.linear(mean, layer.weight, layer.bias) for mean, layer in zip(means(MAP, narrow), head.lateral, strict=True))
    vector = first + second if sum_feature else torch.cat([first, second], dim=1)
    assert torch.allclose(logits_of(head, MAP, narrow), head.classifier(vector), atol=1e-6)
    shared = FPNHead(num_classes=3, in_plane=6, feat_planes=4)
    assert shared.lateral is not None
    (layer,) = shared.lateral
    mean = sum(layer(each) for each in means(MAP, 2 * MAP)) / 2
    assert torch.allclose(logits_of(shared, MAP, 2 * MAP), shared.classifier(mean), atol=1e-6)


def test_some_levels_of_a_pyramid_are_read() -> None:
    last = FPNHead(num_classes=3, in_plane=6, input_feature_idx=-1)
    assert torch.allclose(logits_of(last, MAP[:, :2], MAP), last.classifier(*means(MAP)), atol=1e-6)
    two = FPNHead(num_classes=3, in_plane=[2, 6], input_feature_idx=[0, 2])
    vector = torch.cat(means(MAP[:, :2], MAP), dim=1)
    assert torch.allclose(logits_of(two, MAP[:, :2], MAP[:, :4], MAP), two.classifier(vector), atol=1e-6)
    with pytest.raises(UserError, match="input_feature_idx: is 2"):
        logits_of(two, MAP[:, :2], MAP)


def test_levels_of_a_pyramid_are_flattened() -> None:
    head = FPNHead(num_classes=3, in_plane=[72], use_pool=False)
    assert torch.allclose(logits_of(head, MAP), head.classifier(MAP.flatten(1)), atol=1e-6)


def test_levels_of_several_widths_have_no_sum() -> None:
    with pytest.raises(UserError, match=facts("sum_feature", "in_plane", "[6", "2]", "feat_planes")):
        FPNHead(num_classes=3, in_plane=[6, 2], sum_feature=True)


def test_vit_head_flattens_a_map_where_asked_for() -> None:
    head = ViTHead(num_classes=3, in_plane=72, cls_type="avg", use_pool=False)
    assert torch.allclose(logits_of(head, MAP), head.classifier(MAP.flatten(1)), atol=1e-6)
    token = ViTHead(num_classes=3, in_plane=6, use_pool=True)
    assert torch.allclose(logits_of(token, TOKENS), token.classifier(TOKENS[:, 0]), atol=1e-6)
