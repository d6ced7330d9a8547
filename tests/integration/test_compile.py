"""``runtime.compile``: no graph break, each form compiled once in a run, and the losses of a run that is not compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

from tests.harness.runs import everything_on, records, train
from tests.harness.states import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch about its own calls

Config = dict[str, Any]
Write = Callable[[Config], str]


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Number of compiled forms by region; without Inductor, which takes half a minute for each."""
    compiled: Counter[str] = Counter()
    compile_with = torch.compile

    def counting(run: Callable[..., object], mode: str) -> object:
        def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
            compiled[run.__name__] += 1
            return aot_eager(graph, inputs)

        return compile_with(run, backend=backend)

    monkeypatch.setattr(torch, "compile", counting)
    torch._dynamo.reset()
    counters.clear()
    yield compiled
    torch._dynamo.reset()


def plain(config: Config) -> None:
    config["ema"] = {"enable": True, "kwargs": {"decay": 0.9}}


def mixed(config: Config) -> None:
    """Mixing, accumulation, bf16, dropout and erasing."""
    everything_on(config)


def unfrozen(config: Config) -> None:
    config["finetune"] = {"unfreeze": {"blocks": 3}}


# Of a region: training on 8 images and on any number (46 = 5 · 8 + 6), evaluation on any number.
CASES: dict[str, tuple[Callable[[Config], None], dict[str, int]]] = {
    "with an average": (plain, {"backbone": 3, "head": 3}),
    "everything": (mixed, {"backbone": 3, "head": 3}),
    "unfreezing": (unfrozen, {"backbone": 7, "head": 3}),  # of each of the two later epochs two more; torch 2.11 needs one
}


def losses_of(path: str, folder: Path, *opts: str) -> list[float]:
    assert train(path, f"saver.save_dir={folder}", *opts) == 0
    return [record["loss"] for record in records(folder, "train")]


def named(forms: Counter[str]) -> dict[str, int]:
    return {name.rpartition("_")[0]: number for name, number in forms.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "expected"), [pytest.param(*case, id=name) for name, case in CASES.items()])
def test_compiles_each_form_once(
    config: Config, write: Write, tmp_path: Path, forms: Counter[str], change: Callable[[Config], None], expected: dict[str, int]
) -> None:
    change(config)
    path = write(config)
    eager = losses_of(path, tmp_path / "eager", "trainer.max_epoch=3")
    compiled = losses_of(path, tmp_path / "compiled", "trainer.max_epoch=3", "runtime.compile=true")
    assert compiled == pytest.approx(eager, rel=2e-2 if "amp" in config["runtime"] else 1e-4)
    assert not counters["graph_break"]
    found = named(forms)
    assert found.keys() == expected.keys()
    assert all(found[name] <= number for name, number in expected.items())
    assert checkpoint(tmp_path / "compiled")["model"].keys() == checkpoint(tmp_path / "eager")["model"].keys()


def test_a_student_with_hooked_layers_and_its_teacher(kd: Config, write: Write, tmp_path: Path, forms: Counter[str]) -> None:
    """And the average of the student's weights."""
    plain(kd)
    path = write(kd)
    eager = losses_of(path, tmp_path / "eager")
    assert losses_of(path, tmp_path / "compiled", "runtime.compile={mode: max-autotune-no-cudagraphs}") == pytest.approx(
        eager, rel=1e-4
    )
    assert not counters["graph_break"]
    assert sorted(forms.values()) == [2, 2, 3, 3]  # the teacher never trains
    assert checkpoint(tmp_path / "compiled")["model"].keys() == checkpoint(tmp_path / "eager")["model"].keys()


@pytest.mark.slow
def test_ddp(config: Config, write: Write, tmp_path: Path, forms: Counter[str]) -> None:
    path = write(config)
    eager = losses_of(path, tmp_path / "eager")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        assert losses_of(path, tmp_path / "compiled", "runtime.compile=true") == pytest.approx(eager, rel=1e-4)
    finally:
        dist.destroy_process_group()
    assert not counters["graph_break"]
    assert named(forms) == {"backbone": 3, "head": 3}
