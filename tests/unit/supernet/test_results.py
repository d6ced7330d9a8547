"""Files of the networks that a search has found."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from up.engine.hooks import Outline
from up.supernet.evolution import CellSpace, generator_of
from up.supernet.results import FoundNetwork, GenotypeFiles


def test_files_of_an_earlier_and_larger_front_are_removed(tmp_path: Path) -> None:
    """Stages of a search take over all files in ``pareto``."""
    rng, space = generator_of(0), CellSpace(2, ["skip_connect", "sep_conv_3x3"])
    names = ["best", "pareto/00", "pareto/01", "pareto/02"]
    found = [FoundNetwork(name, space.sample(rng), {"accuracy": 50.0, "size": 10.0}) for name in names]
    hook = GenotypeFiles([{"name": "backbone", "type": "cell_supernet"}], {}, lambda: found)
    hook.on_start(Outline(tmp_path, nn.Identity(), total_steps=2, steps_per_epoch=1, global_batch_size=2), 0)
    hook.on_save(1, tmp_path / "1.pth")
    own = tmp_path / "fragments" / "own.yaml"
    own.write_text("net: []\n")
    del found[-1:]
    hook.on_save(2, tmp_path / "2.pth")
    files = {str(file.relative_to(own.parent)) for file in own.parent.glob("**/*.yaml")}
    assert files == {"own.yaml", *(f"{name}.yaml" for name in names[:-1])}
