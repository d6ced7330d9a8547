from __future__ import annotations

import pytest
from torch import nn

from up.errors import UserError
from up.models.paths import require_layers, unknown_layer


def test_an_unknown_layer_is_met_with_near_names() -> None:
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"layer4": nn.Identity()}), "head": nn.Identity()})
    require_layers(model, ["backbone.layer4", "head"], hook="grad_cam")
    with pytest.raises(UserError, match=r"grad_cam: the net has no layer 'backbone.layr4'. Did you mean 'backbone.layer4'"):
        require_layers(model, ["backbone.layr4"], hook="grad_cam")
    with pytest.raises(UserError, match="Expected a path that begins with backbone, head."):
        require_layers(model, ["xyz"], hook="grad_cam")
    with pytest.raises(UserError, match="no layer is named. Expected the path of a module, such as 'backbone'"):
        require_layers(model, [], hook="feature_vis")


def test_an_unknown_layer_belongs_to_somebody() -> None:
    model = nn.ModuleDict({"head": nn.Identity()})
    assert unknown_layer(model, "head", owner="teacher0") is None
    assert unknown_layer(model, "haed", owner="teacher0") == "teacher0 has no layer 'haed'. Did you mean 'head'?"
