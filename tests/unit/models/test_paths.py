from __future__ import annotations

import pytest
from torch import nn

from tests.harness.facts import facts, tells
from up.errors import UserError
from up.models.paths import require_layers, unknown_layer


def test_an_unknown_layer_is_met_with_near_names() -> None:
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"layer4": nn.Identity()}), "head": nn.Identity()})
    require_layers(model, ["backbone.layer4", "head"], hook="grad_cam")
    with pytest.raises(UserError, match=facts("grad_cam", "'backbone.layr4'", "'backbone.layer4'")):
        require_layers(model, ["backbone.layr4"], hook="grad_cam")
    with pytest.raises(UserError, match=facts("begins", "backbone", "head")):
        require_layers(model, ["xyz"], hook="grad_cam")
    with pytest.raises(UserError, match=facts("layer", "module", "'backbone'")):
        require_layers(model, [], hook="feature_vis")


def test_an_unknown_layer_belongs_to_somebody() -> None:
    model = nn.ModuleDict({"head": nn.Identity()})
    assert unknown_layer(model, "head", owner="teacher0") is None
    assert tells(unknown_layer(model, "haed", owner="teacher0"), "teacher0", "'haed'", "'head'")
