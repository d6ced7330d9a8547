"""Stages of a search with trainings that take no time: decisions, failures, interruptions, fragments, controls."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.facts import tells
from tests.harness.searching import LR, MOMENTUM, Config, InstantChild, by_lr, hpo, instant, search_config, searched
from up.__main__ import main
from up.engine.child import Verdict
from up.errors import UserError
from up.schema.search import ALGORITHMS
from up.search import worker as search_worker
from up.search.algorithm import WAIT, History, Suggestion, Trial, Work
from up.search.constraints import Costs
from up.search.controls import with_trivial_augment
from up.search.pipeline import State, changes, work_along
from up.search.report import MIN_FOR_IMPORTANCE
from up.search.stages import load_search, open_stage
from up.search.study import MAX_INTERRUPTIONS, Study
from up.search.worker import open_study

WIDTH = "net.0.kwargs.width"

__all__ = ["instant"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def epochs_of(instant: type[InstantChild]) -> list[int]:
    """The epochs that are trained from now on, whichever trials they are of."""
    trained: list[int] = []
    objective = instant.objective

    def noted(config: Config, epoch: int) -> float:
        trained.append(epoch)
        return objective(config, epoch)

    instant.objective = staticmethod(noted)
    return trained


def test_a_search_ends_with_fragments_tables_and_a_report(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    stages = [hpo(), {"full_train": {"hparams": "hpo.best", "set": {"trainer.max_epoch": 3}}}]
    searched(search_config(images, tmp_path / "run", *stages), tmp_path / "s.yaml")
    run = tmp_path / "run"
    trials = rows(run / "hpo" / "trials.csv")
    assert [(row["number"], row["state"]) for row in trials] == [(str(at), "complete") for at in range(4)]
    best = max(trials, key=lambda row: float(row["top1"]))
    assert yaml.safe_load((run / "hpo" / "best.yaml").read_text()) == {LR: float(best[LR])}
    assert len(list((run / "hpo" / "pareto").glob("*.yaml"))) == 4
    assert [config["trainer"]["max_epoch"] for config in instant.started] == [2] * 4 + [3] * 2
    assert {config["dataset"]["train"].get("subset") for config in instant.started[:4]} == {str(run / "holdout" / "train.json")}
    final = instant.started[4]
    assert "subset" not in final["dataset"]["train"]
    assert final["trainer"]["optimizer"]["kwargs"]["lr"] == float(best[LR])
    assert [row["candidate"] for row in rows(run / "full_train" / "candidates.csv")] == ["candidate", "own_values"]
    assert (run / "full_train" / "best" / "config.yaml").is_file()
    assert "hpo" in (run / "report.md").read_text()


def test_the_report_draws_each_figure(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    space = {LR: {"log": [1e-3, 1.0]}, MOMENTUM: {"range": [0.5, 0.95]}}
    stage = hpo(space=space, objectives={"top1": "max", "params": "min"}, trials=MIN_FOR_IMPORTANCE)
    searched(search_config(images, tmp_path / "run", stage), tmp_path / "s.yaml")
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") == len(["progress", "front", "coordinates", "importance"])


def test_the_holdout_is_a_part_of_the_subset_in_the_file(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    chosen = [*range(40, 4, -2)]
    (tmp_path / "mine.json").write_text(json.dumps(chosen))
    config = search_config(images, tmp_path / "run", hpo(trials=1), holdout=0.5)
    config["dataset"]["train"]["subset"] = str(tmp_path / "mine.json")
    searched(config, tmp_path / "s.yaml")
    parts = [json.loads(Path(instant.started[0]["dataset"][name]["subset"]).read_text()) for name in ("train", "test")]
    assert all(parts)
    assert sorted([*parts[0], *parts[1]]) == sorted(chosen)


def test_seeds_give_the_winner_an_interval(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    """Results of three seeds, and of the file itself: the mean, Student's t, and the differences by seed."""
    found = {("candidate", 0): 80.0, ("candidate", 1): 82.0, ("candidate", 2): 84.0}
    found |= {("own_values", 0): 79.5, ("own_values", 1): 80.5, ("own_values", 2): 83.0}

    def by_seed(config: Config, epoch: int) -> float:
        if "subset" in config["dataset"]["train"]:  # a trial, without the holdout
            return 50.0
        is_own = config["trainer"]["optimizer"]["kwargs"]["lr"] == own
        return found["own_values" if is_own else "candidate", config["runtime"]["random_seed"] - 7]

    config = search_config(images, tmp_path / "run", hpo(trials=2), {"full_train": {"hparams": "hpo.best", "seeds": 3}})
    own = config["trainer"]["optimizer"]["kwargs"]["lr"]
    instant.objective = staticmethod(by_seed)
    searched(config, tmp_path / "s.yaml")
    winner, control = rows(tmp_path / "run" / "full_train" / "candidates.csv")
    assert (float(winner["mean"]), float(control["mean"])) == (82.0, 81.0)
    assert float(winner["half"]) == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3)
    assert float(winner["difference"]) == 1.0
    assert float(winner["difference_half"]) == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)
    assert "noise" in (tmp_path / "run" / "report.md").read_text()


def test_the_winner_is_compared_over_the_seeds_that_both_completed(
    images: Path, tmp_path: Path, instant: type[InstantChild], capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 1 is the harder one, and the file itself fails in it: its mean is higher, and it loses the one comparison there is."""

    def by_seed(config: Config, epoch: int) -> float:
        seed, is_own = config["runtime"]["random_seed"], config["trainer"]["optimizer"]["kwargs"]["lr"] == own
        if is_own and seed == 8:
            raise ArithmeticError("CUDA out of memory")
        return 80.0 if is_own else {7: 90.0, 8: 50.0}[seed]

    config = search_config(images, tmp_path / "run", hpo(trials=1), {"full_train": {"hparams": "hpo.best", "seeds": 2}})
    own = config["trainer"]["optimizer"]["kwargs"]["lr"]
    instant.objective = staticmethod(by_seed)
    searched(config, tmp_path / "s.yaml")
    found = {row["candidate"]: row for row in rows(tmp_path / "run" / "full_train" / "candidates.csv")}
    assert [float(found[name]["mean"]) for name in ("candidate", "own_values")] == [70.0, 80.0]
    assert float(found["candidate"]["difference"]) == 10.0
    assert "winner beats" in (tmp_path / "run" / "report.md").read_text()
    assert main(["search", "status", str(tmp_path / "s.yaml")]) == 0
    told = capsys.readouterr().out
    assert tells(told, "hpo: done, 1 of 1 trial ", "best candidate: candidate", "top1 70", "own_values: 80")  # not the best run


def test_candidates_whose_files_have_one_name_are_all_trained(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    files = [tmp_path / folder / name for folder, name in (("a", "net.yaml"), ("b", "net.yaml"), ("b", "own_values.yaml"))]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump({LR: 0.2 + 0.1 * number}))
    stage = {"full_train": {"candidates": [str(file) for file in (*files, files[0])], "top": 4}}
    searched(search_config(images, tmp_path / "run", stage), tmp_path / "s.yaml")
    rates = [config["trainer"]["optimizer"]["kwargs"]["lr"] for config in instant.started]
    assert [round(rate, 6) for rate in rates[:3]] == [0.2, 0.3, 0.4]
    assert len(rates) == 4  # and the file itself
    assert len({row["candidate"] for row in rows(tmp_path / "run" / "full_train" / "candidates.csv")}) == 4


def test_an_objective_that_is_not_finite_fails_its_trial(images: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(search_config(images, tmp_path / "run", hpo())))
    stage = open_stage(load_search(tmp_path / "s.yaml"), "hpo", None)
    assert stage.objective_values({"top1": 50.0}, {}) == (50.0,)
    for value in (math.nan, math.inf):
        with pytest.raises(UserError) as caught:
            stage.objective_values({"top1": value}, {})
        assert tells(str(caught.value), "top1", str(value))


def test_the_same_command_does_nothing_more(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    config = search_config(images, tmp_path / "run", hpo())
    searched(config, tmp_path / "s.yaml")
    searched(config, tmp_path / "s.yaml")
    assert len(instant.started) == 4


def test_two_searches_of_one_seed_are_equal(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    tables = []
    for name in "ab":
        searched(search_config(images, tmp_path / name, hpo(algorithm="tpe", startup=2, trials=6)), tmp_path / f"{name}.yaml")
        tables.append((tmp_path / name / "hpo" / "trials.csv").read_text())
    assert tables[0] == tables[1]


def test_searches_that_share_a_storage_have_trials_of_their_own(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    """Their folders have one name, and one of them is removed to begin anew; a search from before it had an id continues."""
    shared, first, second = str(tmp_path / "all.journal"), tmp_path / "a" / "run", tmp_path / "b" / "run"

    def trained(run: Path, trials: int) -> int:
        before = len(instant.started)
        searched(search_config(images, run, hpo(trials=trials), storage=shared), tmp_path / "s.yaml")
        return len(instant.started) - before

    assert (trained(first, 2), trained(second, 3)) == (2, 3)
    shutil.rmtree(first)
    assert trained(first, 2) == 2
    assert [len(rows(run / "hpo" / "trials.csv")) for run in (first, second)] == [2, 3]
    state = first / "pipeline_state.json"
    known = json.loads(state.read_text())
    del known["id"], known["stages"]["hpo"]["state"]
    state.write_text(json.dumps({**known, "state": "stopped"}))
    assert (trained(first, 2), trained(first, 2)) == (2, 0)
    assert "id" not in json.loads(state.read_text())


def test_a_storage_without_the_trials_is_an_error(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    """Its trials began anew, beside those of the first storage; a copy at another place has them."""
    run, first, second = tmp_path / "run", tmp_path / "first.journal", tmp_path / "second.journal"

    def search(storage: str) -> int:
        before = len(instant.started)
        searched(search_config(images, run, hpo(trials=2), storage=storage), tmp_path / "s.yaml")
        return len(instant.started) - before

    assert search(str(first)) == 2
    for other in ("auto", str(second)):
        with pytest.raises(UserError) as raised:
            search(other)
        assert raised.value.problems[0].key == "search.storage"
        assert tells(str(raised.value), "hpo", "Restore")
    assert not [*tmp_path.glob("second*"), *(run / "hpo").glob("study.journal")]
    with pytest.raises(UserError, match="storage"):
        work_along(load_search(tmp_path / "s.yaml"), None, print)  # type: ignore[arg-type]
    first.rename(second)
    assert search(str(second)) == 0


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_a_stopped_search_continues_to_the_same_end(
    stop_after: int, images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    whole = search_config(images, tmp_path / "whole", hpo())
    searched(whole, tmp_path / "whole.yaml")
    instant.started.clear()
    cut, epochs = search_config(images, tmp_path / "cut", hpo()), epochs_of(instant)
    searched(cut, tmp_path / "cut.yaml", stop_after=stop_after)
    searched(cut, tmp_path / "cut.yaml")
    assert len(instant.started) <= 4 + 1, "a trial is started twice only if it was interrupted"
    assert epochs == [1, 2] * 4
    ours, theirs = (rows(tmp_path / name / "hpo" / "trials.csv") for name in ("cut", "whole"))
    assert [(row["number"], row[LR], row["top1"], row["state"]) for row in ours] == [
        (row["number"], row[LR], row["top1"], row["state"]) for row in theirs
    ]


def test_a_failure_costs_one_trial_and_names_its_log(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    def fails_once(config: Config, epoch: int) -> float:
        if len(instant.started) == 2:
            raise ArithmeticError("CUDA out of memory")
        return by_lr(config, epoch)

    instant.objective = staticmethod(fails_once)
    searched(search_config(images, tmp_path / "run", hpo()), tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert [row["state"] for row in trials] == ["complete", "failed", "complete", "complete", "complete"]
    assert "out of memory" in trials[1]["reason"]
    assert str(tmp_path / "run" / "hpo" / "trials" / "0001") in trials[1]["reason"]


def test_a_search_whose_trials_all_fail_ends_with_the_reason(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    def fails(config: Config, epoch: int) -> float:
        raise ArithmeticError("NaN loss")

    instant.objective = staticmethod(fails)
    with pytest.raises(UserError) as caught:
        searched(search_config(images, tmp_path / "run", hpo()), tmp_path / "s.yaml")
    assert "NaN loss" in str(caught.value)
    assert len(instant.started) == 3


def test_a_killed_training_goes_on(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    def killed_once(config: Config, epoch: int) -> float:
        return math.nan if len(instant.started) == 2 and epoch == 2 else by_lr(config, epoch)

    instant.objective = staticmethod(killed_once)
    epochs = epochs_of(instant)
    searched(search_config(images, tmp_path / "run", hpo()), tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert [row["state"] for row in trials] == ["complete"] * 4
    assert len(instant.started) == 5
    assert instant.started[1] == instant.started[2]
    assert epochs == [1, 2, 1, 2, 2, 1, 2, 1, 2], "only the epoch that was lost is trained again"


def test_a_search_may_be_stopped_any_number_of_times_in_one_epoch(
    images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that is killed so often fails; one that is stopped in order has saved its steps each time."""

    class InItsFirstEpoch(instant):  # type: ignore[misc,valid-type]
        def has_ended(self) -> bool:
            return bool(self._stopped and super().has_ended())

    config = search_config(images, tmp_path / "run", hpo(trials=1))
    with monkeypatch.context() as patched:
        patched.setattr(search_worker, "Child", InItsFirstEpoch)
        for _ in range(MAX_INTERRUPTIONS + 2):
            _, told = searched(config, tmp_path / "s.yaml", stop_after=1)
            assert tells(told[0], "trial 0", "trains")
    searched(config, tmp_path / "s.yaml")
    assert [trial["state"] for trial in rows(tmp_path / "run" / "hpo" / "trials.csv")] == ["complete"]


def test_a_training_that_is_stopped_in_its_averages_is_finished(
    images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last evaluation is reported by then; without the averages it is not complete."""
    stopped: set[Path] = set()

    class Averaging(instant):  # type: ignore[misc,valid-type]
        def verdict(self) -> Verdict:
            found: Verdict = super().verdict()
            if found.outcome == "done" and self.folder not in stopped:
                stopped.add(self.folder)
                return Verdict("stopped", exit_code=75)
            return found

    monkeypatch.setattr(search_worker, "Child", Averaging)
    run = tmp_path / "run"
    searched(search_config(images, run, hpo(trials=2), {"full_train": {"hparams": "hpo.best"}}), tmp_path / "s.yaml")
    assert [trial["state"] for trial in rows(run / "hpo" / "trials.csv")] == ["complete"] * 2
    assert all(row["mean"] for row in rows(run / "full_train" / "candidates.csv"))
    assert len(stopped) == 4


def test_enqueued_points_come_first_completed_by_the_file(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    space = {LR: {"log": [1e-3, 1.0]}, MOMENTUM: {"range": [0.5, 0.95]}}
    searched(search_config(images, tmp_path / "run", hpo(space=space, enqueue=[{LR: 0.25}], trials=2)), tmp_path / "s.yaml")
    first = rows(tmp_path / "run" / "hpo" / "trials.csv")[0]
    assert (float(first[LR]), float(first[MOMENTUM])) == (0.25, 0.9)


def test_a_forbidden_combination_of_an_enqueued_point_and_the_file_is_never_trained(
    images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    """What the file has by then may come from a fragment, which no check knows; once mended, the search begins."""
    (tmp_path / "mine.yaml").write_text(f"{WIDTH}: 16\n")
    stage = hpo(space={WIDTH: [8, 16], LR: [0.1, 0.2]}, forbid=[{WIDTH: 16, LR: 0.2}], enqueue=[{LR: 0.2}], trials=2)
    stage["hpo"]["from"] = "mine.yaml"
    config = search_config(images, tmp_path / "run", stage)
    with pytest.raises(UserError) as caught:
        searched(config, tmp_path / "s.yaml")
    assert tells(str(caught.value), "enqueue.0", "forbidden", "width 16")
    assert instant.started == []
    stage["hpo"]["enqueue"] = [{LR: 0.1}]
    searched(config, tmp_path / "s.yaml")
    first, second = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert (first[WIDTH], first[LR]) == ("16", "0.1")
    assert (second[WIDTH], second[LR]) != ("16", "0.2")


def test_controls_that_cannot_be_trained_do_not_end_a_search_that_was(
    images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    """Almost no point of the space meets the limit, or trains: the search knows one that does."""

    def diverges(config: Config, epoch: int) -> float:
        width = config["net"][0]["kwargs"]["width"]
        if width > 40:
            raise ArithmeticError("the loss is not finite")
        return 100.0 - width

    instant.objective = staticmethod(diverges)
    for name, limit in (("limited", "90k"), ("failing", "900M")):
        space = {WIDTH: [4, *range(32 if limit == "90k" else 64, 400, 2)]}
        stage = hpo(algorithm="tpe", space=space, enqueue=[{WIDTH: 4}], trials=1, control=2)
        run = tmp_path / name
        searched(search_config(images, run, stage, constraints={"params": limit}), tmp_path / f"{name}.yaml")
        report = (run / "report.md").read_text()
        assert "| control: own values | 1 |" in report
        assert "| control: random | 0 | none |" in report
        assert tells(report, "beats its controls", "no trial of random was completed")


@pytest.mark.parametrize("top", [1, 2])
def test_only_the_winner_among_several_candidates_was_chosen_on_the_test_split(
    top: int, images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    stages = hpo(), {"full_train": {"candidates": "hpo.pareto", "top": top}}
    searched(search_config(images, tmp_path / "run", *stages), tmp_path / "s.yaml")
    report = (tmp_path / "run" / "report.md").read_text()
    assert tells(report, "chosen on dataset.test") == (top > 1)


def test_control_rows_are_trained_and_a_search_that_loses_says_so(
    images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    """The file's own learning rate is the optimum, so that no search beats it."""
    instant.objective = staticmethod(lambda config, epoch: 100.0 - abs(config["trainer"]["optimizer"]["kwargs"]["lr"] - 0.05))
    searched(search_config(images, tmp_path / "run", hpo(algorithm="tpe", control=2)), tmp_path / "s.yaml")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| control: own values | 1 | 100 |" in report
    assert "| control: random | 2 |" in report
    assert tells(report, "not beat", "own values")
    assert len(instant.started) == 7


@pytest.mark.parametrize("algorithm", ["darts", "cars"])
def test_a_network_found_in_a_supernet_is_compared_with_random_ones_by_its_own_training(
    algorithm: str, images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    def by_network(config: Config, epoch: int) -> float:
        values = {"cell_supernet": 99.0, "cell_network": 70.0}  # with shared weights; random networks
        kwargs = config["net"][0]["kwargs"]
        return values.get(config["net"][0]["type"], 60.0 if kwargs == own else 65.0)

    objectives = {"top1": "max", **({"latency_ms": "min"} if algorithm == "cars" else {})}
    stage = {"algorithm": algorithm, "objectives": objectives, "control": 2, "supernet": {"layers": 3}, "max_epoch": 1}
    config = search_config(images, tmp_path / "run", {"nas": stage}, {"full_train": {"candidates": "nas.best", "control": False}})
    own = config["net"][0]["kwargs"]
    instant.objective = staticmethod(by_network)
    searched(config, tmp_path / "s.yaml")
    report = (tmp_path / "run" / "report.md").read_text().splitlines()
    table = [line for line in report if line.startswith("| ")]
    assert table[1:4] == [f"| **{algorithm}** | 1 | 65 |", "| control: own values | 1 | 60 |", "| control: random | 2 | 70 |"]
    assert any("does not beat" in line and "random" in line for line in report)
    types = [each["net"][0]["type"] for each in instant.started]
    assert types == ["cell_supernet", "resnet_custom", "cell_network", "cell_network", "resnet_custom", "resnet_custom"]
    assert instant.started[0]["runtime"]["runner"]["kwargs"] == ({"size": "latency_ms"} if algorithm == "cars" else {})
    genotypes = [each["net"][0]["kwargs"]["genotype"] for each in instant.started[2:4]]
    assert genotypes[0] != genotypes[1]
    assert {each["trainer"]["max_epoch"] for each in instant.started[:5]} == {1}


def test_the_accuracy_of_a_supernet_stands_beside_no_network_that_was_trained_by_itself(
    images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    """The network found fails when it is trained by itself."""

    def by_network(config: Config, epoch: int) -> float:
        backbone = config["net"][0]
        if backbone["kwargs"].get("width") == 8 and backbone["kwargs"] != own:
            raise ArithmeticError("the loss is not finite")
        return 99.0 if backbone["type"] == "cell_supernet" else 60.0

    stage = {"algorithm": "darts", "control": 1, "supernet": {"layers": 3}, "max_epoch": 1}
    config = search_config(images, tmp_path / "run", {"nas": stage})
    own = config["net"][0]["kwargs"]
    instant.objective = staticmethod(by_network)
    searched(config, tmp_path / "s.yaml")
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| **darts** | 1 | none |\n| control: own values | 1 | 60 |" in report
    assert "beat" not in report


def test_augmentation_is_compared_with_trivial_augment(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    stage = {"augment": {**hpo()["hpo"], "control": -1, "trials": 1}}
    searched(search_config(images, tmp_path / "run", stage), tmp_path / "s.yaml")
    lists = [
        [part["type"] for part in config["dataset"]["train"]["dataset"]["kwargs"]["transformer"]] for config in instant.started
    ]
    assert [types.index("v2.TrivialAugmentWide") + 1 == types.index("to_tensor") for types in lists if len(types) == 5] == [True]
    assert len(lists) == 3


@pytest.mark.parametrize(
    ("types", "place"),
    [
        (["torch_resize", "custom_to_tensor", "normalize"], 1),
        (["torch_resize", "v2.ToImage", "v2.ToDtype", "normalize"], 2),
        (["torch_resize", "to_tensor", "normalize"], 1),
        (["torch_resize"], 1),
        ([], 0),
    ],
)
def test_trivial_augment_gets_levels(types: list[str], place: int) -> None:
    """After it images may be floats, whichever transform converts them."""
    config = {"dataset": {"train": {"dataset": {"kwargs": {"transformer": [{"type": name} for name in types]}}}}}
    expected = [*types[:place], "v2.TrivialAugmentWide", *types[place:]]
    assert [part["type"] for part in with_trivial_augment(config)] == expected


def test_networks_outside_a_constraint_are_never_trained(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    stage = hpo(space={"net.0.kwargs.width": [4, 8, 16, 32]}, objectives={"top1": "max", "macs": "min"}, trials=5)
    config = search_config(images, tmp_path / "run", stage, constraints={"params": "90k"})
    searched(config, tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert {row["net.0.kwargs.width"] for row in trials if row["state"] == "rejected"} <= {"16", "32"}
    assert {row["net.0.kwargs.width"] for row in trials if row["state"] == "complete"} <= {"4", "8"}
    assert any(row["state"] == "rejected" and row["reason"].startswith("params") for row in trials)
    assert all(float(row["params"]) <= 90_000 for row in trials if row["state"] == "complete")
    assert len(instant.started) == 5
    front = rows(tmp_path / "run" / "hpo" / "pareto.csv")
    assert {row["number"] for row in front} <= {row["number"] for row in trials if row["state"] == "complete"}


def test_a_network_outside_a_constraint_stays_untrained_when_its_worker_dies_before_it_says_so(
    images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = hpo(algorithm="random", space={WIDTH: [4, 32]}, enqueue=[{WIDTH: 32}, {WIDTH: 4}], trials=1)
    config = search_config(images, tmp_path / "run", stage, constraints={"params": "90k"})

    def dies(*arguments: object, **others: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Study, "end", dies)
        with pytest.raises(KeyboardInterrupt):
            searched(config, tmp_path / "s.yaml")
    searched(config, tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert [(row[WIDTH], row["state"]) for row in trials] == [("32", "rejected"), ("4", "complete")]
    assert len(instant.started) == 1


def test_a_limit_that_nothing_meets_is_named(
    images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_worker, "MAX_REDRAWS", 7)
    stage = hpo(space={"net.0.kwargs.width": [4, 8]})
    config = search_config(images, tmp_path / "run", stage, constraints={"params": 10, "macs": "900M"})
    with pytest.raises(UserError) as caught:
        searched(config, tmp_path / "s.yaml")
    assert caught.value.problems[0].key == "search.constraints.params"
    assert "7 of" in str(caught.value)
    assert instant.started == []


def test_a_network_that_cannot_be_built_fails_with_its_traceback(
    images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the code of a network is one of the trial: the others are trained, and the next start does not meet it again."""
    measured = Costs.of

    def of(self: Costs, config: Path) -> tuple[dict[str, float], str]:
        if yaml.safe_load(config.read_text())["net"][0]["kwargs"]["width"] == 8:
            raise RuntimeError("mat1 and mat2 shapes\ncannot be multiplied")
        return measured(self, config)

    monkeypatch.setattr(Costs, "of", of)
    stage = hpo(algorithm="random", space={}, enqueue=[{WIDTH: 4}, {WIDTH: 8}, {WIDTH: 16}], trials=2)
    stage["hpo"]["space"] = {WIDTH: [4, 8, 16]}
    config = search_config(images, tmp_path / "run", stage, constraints={"params": "10M"})
    _, told = searched(config, tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert [(row[WIDTH], row["state"]) for row in trials] == [("4", "complete"), ("8", "failed"), ("16", "complete")]
    log = tmp_path / "run" / "hpo" / "trials" / "0001" / "console.log"
    assert any(tells(line, "trial 1 failed", "RuntimeError", "cannot be multiplied", str(log)) for line in told)
    assert tells(log.read_text(), "Traceback", "in of", "RuntimeError")


@pytest.mark.parametrize("place", ["search", "stage"])
def test_points_that_a_raised_limit_admits_come_back(
    place: str, images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_worker, "MAX_REDRAWS", 3)

    def limited(limit: str) -> Config:
        enqueue = [{WIDTH: width} for width in (8, 16, 32)]
        own = {"constraints": {"params": limit}}
        stage = hpo(algorithm="random", space={WIDTH: [8, 16, 32]}, enqueue=enqueue, trials=2, **(own if place == "stage" else {}))
        return search_config(images, tmp_path / "run", stage, **(own if place == "search" else {}))

    with pytest.raises(UserError) as caught:
        searched(limited("10"), tmp_path / "s.yaml")
    assert tells(str(caught.value), "3 of", "Raise the limit to 77547 or more")  # the parameters of the smallest
    assert instant.started == []
    with pytest.raises(UserError):
        searched(limited("77k"), tmp_path / "s.yaml")
    searched(limited("10M"), tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    states = [(row[WIDTH], row["state"]) for row in trials]
    assert states == [("8", "rejected"), ("16", "rejected"), ("32", "rejected"), ("8", "complete"), ("16", "complete")]


def test_a_limit_of_a_stage_that_has_begun_may_be_raised_alone(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    """A lower one would leave trials in the stage that do not meet it."""
    before = {"params": "10M", "latency_ms": {"max": 1e6, "batch": 2}}
    stage = hpo(algorithm="random", space={WIDTH: [4, 8]}, trials=1, constraints=before)
    searched(search_config(images, tmp_path / "run", stage), tmp_path / "s.yaml")
    for changed, is_allowed in (
        ({**before, "params": 20_000_000}, True),
        ({"latency_ms": before["latency_ms"]}, True),
        ({**before, "params": "5M"}, False),
        ({**before, "macs": "900M"}, False),
        ({**before, "latency_ms": {"max": 2e6, "batch": 1}}, False),
    ):
        of_stage = ({"search": {"stages": [{"hpo": {"constraints": each}}]}} for each in (before, changed))
        of_search = ({"search": {"stages": [{"hpo": {}}], "constraints": each}} for each in (before, changed))
        for begun, now in (of_stage, of_search):
            found = changes(begun, now, State(tmp_path / "run"))
            assert (not found) if is_allowed else tells(found, "limits", "hpo"), changed
    own = {"search": {"stages": [{"hpo": {"constraints": {"params": "10M"}}}], "constraints": {"params": "1M"}}}
    others = {"search": {"stages": [{"hpo": {}}], "constraints": {"params": "1M"}}}
    assert tells(changes(own, others, State(tmp_path / "run")), "limits", "hpo")  # those of the search count from here on
    assert changes(others, own, State(tmp_path / "run")) == ""


class Rungs:
    """Two trials of one epoch, then the better one goes on; a third inherits from it."""

    def suggest(self, history: History) -> Suggestion:
        first = [each for each in history.trials if each.number < 2]
        if history.number < 2:
            return Work({LR: (0.1, 0.9)[history.number]}, epochs=1)
        if any(each.state == "running" for each in history.trials):
            return WAIT
        paused = [each for each in first if each.state == "paused"]
        if len(paused) == 2:
            return Work(continues=min(paused, key=lambda each: history.losses(each)).number)
        return Work({LR: 0.2}, epochs=2, inherits=0, note={"rung": 2}) if history.number == 2 else None

    def observe(self, trial: Trial) -> None:
        pass


@pytest.fixture
def rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._table, "rungs", f"{__name__}:Rungs")


def test_trials_pause_continue_and_inherit(images: Path, tmp_path: Path, instant: type[InstantChild], rungs: None) -> None:
    stage = hpo(algorithm="rungs", trials=3, space={LR: {"range": [0.0, 1.0]}})
    config = search_config(images, tmp_path / "run", stage, keep_trials="all")
    search, _ = searched(config, tmp_path / "s.yaml")
    stops = [config["trainer"].get("stop_epoch") for config in instant.started]
    assert stops == [1, 1, None, None]
    study = open_study(open_stage(search, "hpo", None)).trials()
    assert [each.state for each in study] == ["complete", "pruned", "complete"]
    assert [sorted(each.values) for each in study] == [[1, 2], [1], [1, 2]]
    assert (study[2].parent, study[2].note) == (0, {"rung": 2})
    start = Path(instant.started[3]["saver"]["resume_model"])
    assert start == tmp_path / "run" / "hpo" / "starts" / "0002.pth"
    assert start.read_text() == "epoch 2"


class Stops:
    """Random points, of which all below 95 are pruned after an epoch."""

    def suggest(self, history: History) -> Suggestion:
        return history.space.sample(history.rng())

    def observe(self, trial: Trial) -> None:
        pass

    def should_stop(self, trial: Trial, history: History) -> bool:
        return trial.final is not None and trial.final[0] < 80

    def settings(self, trial: Trial, history: History, config: Mapping[str, Any]) -> Mapping[str, Any]:
        assert "search" not in config
        return {**trial.point, "trainer.clip_norm": 5.0}

    def fragments(self, history: History, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"schedule.yaml": {"trainer.clip_norm": 5.0}, "lineage.csv": [{"trial": 0, "epoch": 2}]}


def test_algorithms_prune_settle_and_write_fragments(
    images: Path, tmp_path: Path, instant: type[InstantChild], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS._table, "stops", f"{__name__}:Stops")
    searched(search_config(images, tmp_path / "run", hpo(algorithm="stops", trials=8)), tmp_path / "s.yaml")
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert {row["state"] for row in trials} == {"complete", "pruned"}
    assert all((row["state"] == "pruned") == (row["epoch"] == "1") for row in trials)
    assert all(config["trainer"]["clip_norm"] == 5.0 for config in instant.started)
    assert yaml.safe_load((tmp_path / "run" / "hpo" / "schedule.yaml").read_text()) == {"trainer.clip_norm": 5.0}
    assert rows(tmp_path / "run" / "hpo" / "lineage.csv") == [{"trial": "0", "epoch": "2"}]


def test_a_hand_written_file_replaces_a_stage(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    (tmp_path / "mine.yaml").write_text(f"{MOMENTUM}: 0.7\n")
    stage = hpo(**{"from": "mine.yaml"}, trials=1)
    searched(
        search_config(images, tmp_path / "run", stage, {"full_train": {"hparams": ["mine.yaml", "hpo.best"]}}), tmp_path / "s.yaml"
    )
    kept = [config["trainer"]["optimizer"]["kwargs"]["momentum"] for config in instant.started]
    assert kept == [0.7, 0.7, 0.9]  # the trial, the candidate, the control


@pytest.mark.parametrize(("keep", "left"), [("all", 4), ("none", 0)])
def test_checkpoints_are_kept_as_asked(keep: str, left: int, images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    searched(search_config(images, tmp_path / "run", hpo(), keep_trials=keep), tmp_path / "s.yaml")
    assert len(list((tmp_path / "run" / "hpo" / "trials").glob("*/ckpt_latest.pth"))) == left


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda config: config["trainer"].update(max_epoch=9), "trainer"),
        (lambda config: config["search"].update(holdout=0.3), "holdout"),
        (lambda config: config["search"]["stages"][0]["hpo"]["space"].update({MOMENTUM: [0.5]}), "hpo"),
    ],
)
def test_a_changed_file_does_not_continue_another_search(
    change: Any, word: str, images: Path, tmp_path: Path, instant: type[InstantChild]
) -> None:
    config = search_config(images, tmp_path / "run", hpo())
    searched(config, tmp_path / "s.yaml", stop_after=2)
    change(config)
    with pytest.raises(UserError) as caught:
        searched(config, tmp_path / "s.yaml")
    assert word in str(caught.value)


def test_more_trials_continue_a_stage_that_is_not_done(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    config = search_config(images, tmp_path / "run", hpo())
    searched(config, tmp_path / "s.yaml", stop_after=2)
    config["search"]["stages"][0]["hpo"]["trials"] = 6
    epochs = epochs_of(instant)
    searched(config, tmp_path / "s.yaml")
    assert len(rows(tmp_path / "run" / "hpo" / "trials.csv")) == 6
    assert len(epochs) < 2 * 6, "those that were done are not trained again"


def test_more_trials_of_a_stage_that_is_done_are_an_error(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    config = search_config(images, tmp_path / "run", hpo())
    searched(config, tmp_path / "s.yaml")
    config["search"]["stages"][0]["hpo"]["trials"] = 6
    with pytest.raises(UserError) as caught:
        searched(config, tmp_path / "s.yaml")
    assert tells(str(caught.value), "trials", "hpo", "done")
    assert len(instant.started) == 4


def test_two_slots_share_a_study(images: Path, tmp_path: Path, instant: type[InstantChild]) -> None:
    searched(search_config(images, tmp_path / "run", hpo(trials=9)), tmp_path / "s.yaml", slots=2)
    trials = rows(tmp_path / "run" / "hpo" / "trials.csv")
    assert [row["state"] for row in trials] == ["complete"] * 9
    assert len({row[LR] for row in trials}) == 9
