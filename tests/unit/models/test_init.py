import math

import pytest
import torch
from torch import nn

from up.errors import UserError
from up.models.init import INITIALIZERS, ConstantBias, ConstantWeights, Focal, Msra, Normal, Xavier


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.LayerNorm(5), nn.Linear(64, 200), nn.Linear(200, 10))
    for parameter in made.parameters():
        nn.init.constant_(parameter, 7.0)
    return made


def test_every_documented_name_builds():
    assert sorted(INITIALIZERS) == ["constant", "constant_bias", "focal", "msra", "normal", "xavier"]
    for name in INITIALIZERS:
        module = network()
        assert INITIALIZERS.get(name)()(module) is module


@pytest.mark.parametrize("part", [Msra(), Xavier(), Normal(), ConstantWeights()])
def test_biases_are_zero_and_norms_the_identity(part):
    made = part(network())
    assert all(made[layer].bias.abs().max() == 0 for layer in range(5))
    assert all(torch.equal(made[layer].weight, torch.ones_like(made[layer].weight)) for layer in (1, 2))


def test_msra_is_he_normal_over_the_fan_out():
    made = Msra()(network())
    assert made[0].weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)
    assert made[3].weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.03)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_xavier_has_the_variance_of_both_fans(distribution):
    weight = Xavier(gain=2, distribution=distribution)(network())[3].weight
    assert weight.std().item() == pytest.approx(2 * math.sqrt(2 / 264), rel=0.03)
    bound = 2 * math.sqrt(6 / 264)
    assert (weight.abs().max().item() <= bound) == (distribution == "uniform")


def test_normal_and_constant():
    assert Normal(std=0.05)(network())[3].weight.std().item() == pytest.approx(0.05, rel=0.03)
    assert torch.equal(ConstantWeights(val=0.5)(network())[0].weight, torch.full((64, 16, 3, 3), 0.5))


def test_constant_bias_leaves_the_weights():
    made = ConstantBias(val=-2)(network())
    assert made[4].bias.unique().tolist() == [-2]
    assert made[4].weight.unique().tolist() == [7]
    assert made[1].bias.unique().tolist() == [7]


def test_focal_starts_the_sigmoid_at_the_prior():
    made = Focal(prior_prob=0.02)(network())
    torch.testing.assert_close(made[4].bias.sigmoid(), torch.full((10,), 0.02))
    assert made[3].bias.abs().max() == 0
    assert made[3].weight.std().item() == pytest.approx(0.01, rel=0.03)
    Focal()(nn.Linear(2, 2, bias=False))  # nothing to set a prior on


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_focal_needs_a_probability(prior):
    with pytest.raises(UserError, match="prior_prob: got"):
        Focal(prior_prob=prior)
