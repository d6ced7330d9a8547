import copy
import warnings

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, GroupNormAct, SyncBatchNormAct
from torch import nn

from tests.harness.facts import facts
from up.errors import UserError
from up.models import norm as norm_module
from up.models.norm import (
    NORMS,
    FrozenBatchNorm,
    GroupNorm,
    SoloBatchNorm,
    SyncBatchNorm,
    average_batchnorm_statistics,
    is_batch_norm,
    special_bn_init,
    sync_batchnorms,
)


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), BatchNormAct2d(8), nn.Conv2d(8, 4, 1))
    for layer in made[1:3]:
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return made


def test_every_documented_name_builds():
    assert sorted(NORMS) == ["caffe_freeze_bn", "freeze_bn", "gn", "pt_sync_bn", "solo_bn", "sync_bn"]
    for name in NORMS:
        assert callable(NORMS.get(name)())


def test_solo_sets_momentum_and_eps_and_leaves_what_is_not_given():
    made = SoloBatchNorm(momentum=0.02)(network())
    assert [(layer.momentum, layer.eps) for layer in made[1:3]] == [(0.02, 1e-5)] * 2
    assert SoloBatchNorm(eps=1e-3)(network())[2].eps == 1e-3


@pytest.mark.parametrize("part", [SoloBatchNorm, SyncBatchNorm])
def test_momentum_of_the_other_convention_warns(part):
    with pytest.warns(UserWarning, match=facts("momentum", "0.99", "0.01")):
        part(momentum=0.99)


def test_special_bn_init():
    made = network()
    special_bn_init(made)
    assert [(layer.momentum, layer.eps) for layer in made[1:3]] == [(0.03, 1e-3)] * 2


@pytest.mark.parametrize("name", ["freeze_bn", "caffe_freeze_bn"])
def test_frozen_norms_use_stored_statistics_in_training_too(name):
    made = network()
    image = torch.randn(4, 3, 5, 5)
    expected = copy.deepcopy(made).eval()(image)
    keys = list(made.state_dict())
    frozen = NORMS.get(name)()(made).train()
    state = copy.deepcopy(frozen.state_dict())
    torch.testing.assert_close(frozen(image), expected)
    assert list(state) == keys
    assert all(torch.equal(state[key], tensor) for key, tensor in frozen.state_dict().items())
    assert [key for key, parameter in frozen.named_parameters() if parameter.requires_grad] == [
        "0.weight",
        "0.bias",
        "3.weight",
        "3.bias",
    ]
    assert frozen[2].act.training  # the activation inside follows the mode
    assert not copy.deepcopy(frozen).train()[1].training
    assert all(is_batch_norm(layer) for layer in frozen[1:3])


def test_freezing_twice_is_freezing_once():
    made = FrozenBatchNorm(eps=1e-3)(FrozenBatchNorm()(network()))
    assert type(made[1]) is type(FrozenBatchNorm()(network())[1])
    assert made[1].eps == 1e-3


def test_a_momentum_of_frozen_statistics_is_told_to_have_no_effect():
    with pytest.warns(UserWarning, match=facts("freeze_bn", "momentum", "effect")):
        FrozenBatchNorm(momentum=0.1)


def test_freezing_what_has_no_frozen_form():
    with pytest.raises(UserError, match=facts("BatchNorm3d", "frozen", "form")):
        FrozenBatchNorm()(nn.BatchNorm3d(2))


def test_group_norm_takes_over_weight_bias_and_activation():
    made = network()
    weight, bias = made[1].weight, made[2].bias
    grouped = GroupNorm(num_groups=4)(made)
    assert type(grouped[1]) is nn.GroupNorm
    assert type(grouped[2]) is GroupNormAct
    assert grouped[1].weight is weight
    assert grouped[2].bias is bias
    image = torch.randn(2, 3, 5, 5)
    inner = nn.functional.group_norm(made[0](image), 4, weight, made[1].bias)
    expected = made[3](nn.functional.group_norm(inner, 4, made[2].weight, bias).relu())
    torch.testing.assert_close(grouped(image), expected)


def test_groups_must_divide_the_channels():
    made = nn.Sequential(nn.BatchNorm2d(24), nn.BatchNorm2d(64))
    with pytest.raises(UserError, match=facts("num_groups", "0 (24)", "32", "8")):
        GroupNorm()(made)


def test_group_norm_of_a_timm_network():
    made = GroupNorm(num_groups=8)(timm.create_model("resnet18", num_classes=3))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in made.modules())
    assert made(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_sync_in_one_process_trains_as_plain_batch_norm():
    made = sync_batchnorms(SyncBatchNorm(momentum=0.2, group_size=8)(network()))
    assert type(made[1]) is nn.BatchNorm2d
    assert made[1].momentum == 0.2
    made(torch.randn(4, 3, 5, 5)).sum().backward()


def test_sync_on_cpu_processes_warns_and_stays_plain(monkeypatch):
    monkeypatch.setattr(norm_module, "world_size", lambda: 2)
    with pytest.warns(UserWarning, match=facts("every", "process", "normalizes")):
        made = sync_batchnorms(SyncBatchNorm()(network()))
    assert type(made[1]) is nn.BatchNorm2d


def test_sync_converts_what_was_marked_and_nothing_else(monkeypatch):
    monkeypatch.setattr(norm_module, "world_size", lambda: 2)
    made = nn.Sequential(SyncBatchNorm(momentum=0.2)(network()), nn.BatchNorm1d(3)).to("meta")
    keys = list(made.state_dict())
    weight = made[0][1].weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        synced = sync_batchnorms(made)
    assert type(synced[0][1]) is nn.SyncBatchNorm
    assert type(synced[0][2]) is SyncBatchNormAct
    assert isinstance(synced[0][2].act, nn.ReLU)
    assert type(synced[1]) is nn.BatchNorm1d
    assert synced[0][1].weight is weight
    assert synced[0][1].momentum == 0.2
    assert list(synced.state_dict()) == keys
    assert is_batch_norm(synced[0][1])


def test_sync_groups_must_divide_the_processes(monkeypatch):
    monkeypatch.setattr(norm_module, "world_size", lambda: 6)
    with pytest.raises(UserError, match=facts("group_size", "4", "6")):
        sync_batchnorms(SyncBatchNorm(group_size=4)(network().to("meta")))


def test_statistics_become_the_mean_of_the_ranks():
    ranks = [network() for _ in range(2)]
    expected = [(a.running_var + b.running_var) / 2 for a, b in zip(ranks[0][1:3], ranks[1][1:3], strict=True)]
    gathered = []
    for rank in ranks:  # collect what each rank sends, then let each receive the sum
        average_batchnorm_statistics(copy.deepcopy(rank), lambda vector: gathered.append(vector.clone()) or vector)
    assert gathered[0].shape == (8 * 4 + 1,)
    for rank in ranks:
        average_batchnorm_statistics(rank, lambda _: gathered[0] + gathered[1])
        for layer, wanted in zip(rank[1:3], expected, strict=True):
            torch.testing.assert_close(layer.running_var, wanted)
    assert torch.equal(ranks[0][1].running_mean, ranks[1][1].running_mean)


def test_a_network_without_statistics_needs_no_collective():
    average_batchnorm_statistics(nn.Linear(2, 2), lambda _: pytest.fail("called"))
