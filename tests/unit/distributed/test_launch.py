"""Who starts the ranks, what the variables of Slurm and MPI mean, and one exit code out of many."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from tests.harness.facts import tells
from up.distributed import launch as launching
from up.distributed.launch import Launch, address_and_port, code_of_failures, mpi_environment, slurm_environment
from up.distributed.signals import handled
from up.errors import UserError

SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n1",
}


@pytest.mark.parametrize(
    ("launch", "environment", "by"),
    [
        (Launch(), {}, None),
        (Launch(processes=1), {}, None),
        (Launch(processes=2), {}, "pytorch"),
        (Launch(hosts=2), {}, "pytorch"),
        (Launch("pytorch"), {}, "pytorch"),
        (Launch("pytorch", processes=2), {"RANK": "1", "WORLD_SIZE": "2"}, None),  # a rank that our launcher started
        (Launch(), SLURM, "slurm"),
        (Launch(), {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the batch script itself, not a step of srun
        (Launch(), {"OMPI_COMM_WORLD_SIZE": "4"}, "mpi"),
        (Launch(), {"PMI_SIZE": "1"}, None),
        (Launch("slurm"), {**SLURM, "RANK": "5", "WORLD_SIZE": "8"}, None),  # torchrun inside of srun
    ],
)
def test_who_starts_the_ranks(launch: Launch, environment: dict[str, str], by: str | None) -> None:
    assert launch.launcher(environment) == by


def test_slurm() -> None:
    found = slurm_environment(SLURM)
    port = int(found.pop("MASTER_PORT"))
    assert found == {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "n1"}
    assert 10_000 <= port < 30_000
    assert int(slurm_environment({**SLURM, "SLURM_PROCID": "0"})["MASTER_PORT"]) == port, "all ranks of a step meet at one port"
    assert int(slurm_environment({**SLURM, "SLURM_STEP_ID": "1"})["MASTER_PORT"]) != port
    assert slurm_environment(SLURM, port=4711)["MASTER_PORT"] == "4711"
    assert slurm_environment({**SLURM, "CUDA_VISIBLE_DEVICES": "3"})["LOCAL_RANK"] == "0", "a GPU of its own is its first"
    assert slurm_environment({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1"})["LOCAL_RANK"] == "1"


def test_slurm_lists_of_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {**SLURM, "SLURM_STEP_NODELIST": "n[1-2,7]"}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="scontrol show hostnames") as raised:
        slurm_environment(listed)
    assert "Set MASTER_ADDR" in str(raised.value)
    assert slurm_environment({**listed, "MASTER_ADDR": "n1"})["MASTER_ADDR"] == "n1"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$1 $2 $3" = "show hostnames n[1-2,7]" ] && echo n1 && echo n2 && echo n7\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert slurm_environment(listed)["MASTER_ADDR"] == "n1"


def test_slurm_without_srun() -> None:
    with pytest.raises(UserError, match="SLURM_PROCID") as raised:
        slurm_environment({})
    assert "srun --ntasks-per-node" in str(raised.value)


def test_open_mpi_on_one_host() -> None:
    variables = {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": "prterun-a-1@1",
    }
    found = mpi_environment(variables)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["MASTER_ADDR"]) == ("1", "2", "1", "127.0.0.1")
    assert found["MASTER_PORT"] == mpi_environment({**variables, "OMPI_COMM_WORLD_RANK": "0"})["MASTER_PORT"]


def test_mpich_on_two_hosts() -> None:
    variables = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
    with pytest.raises(UserError, match="--rdzv HOST:PORT"):
        mpi_environment(variables)
    found = mpi_environment(variables, endpoint="first:4711")
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "4711"}
    found = mpi_environment(variables, endpoint="[fe80::1%eth0]:29500")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("fe80::1%eth0", "29500")
    with pytest.raises(UserError, match="mpirun"):
        mpi_environment({})


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [("first:4711", ("first", 4711)), ("10.0.0.1", ("10.0.0.1", None)), ("[::1]:29500", ("::1", 29500)), ("[::1]", ("::1", None))],
)
def test_addresses_of_endpoints(endpoint: str, expected: tuple[str, int | None]) -> None:
    assert address_and_port(endpoint) == expected


@pytest.mark.parametrize("endpoint", ["::1:29500", "first:port", "first:70000", "[::1", ":29500"])
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(UserError) as error:
        address_and_port(endpoint)
    assert tells(str(error.value), "--rdzv", endpoint, "HOST:PORT", *(["[::1]"] if endpoint == "::1:29500" else []))


def test_several_hosts_need_a_port() -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        launching._launch_config(Launch(processes=1, hosts=2, endpoint="[::1]"))
    made = launching._launch_config(Launch(processes=1, hosts=2, endpoint="[::1]:29500"))
    assert parse_rendezvous_endpoint(made.rdzv_endpoint, 1) == ("::1", 29500)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([2, -15], 2),  # bad input; the launcher ended the other one
        ([75, 3], 3),
        ([74], 74),
        ([75, 75], 75),
        ([130, 130], 130),
        ([1, 75], 1),  # a bug; the others miss the rank
        ([-9, 75], 75),  # killed from outside: run it again
        ([-9], 75),
        ([-11, 75], 1),  # a crash of ours
        ([-15], 75),
    ],
)
def test_one_exit_code(codes: list[int], code: int) -> None:
    assert code_of_failures(codes) == code


class Got(Exception):
    def __init__(self, message: str, *, sigval: signal.Signals) -> None:
        super().__init__(message)
        self.number = sigval


class Doomed:
    """Gets a signal in its destructor, which no exception leaves."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def outlive_a_signal() -> None:
    try:
        Doomed()
    except Got:
        pytest.fail("an exception left a destructor")
    time.sleep(60)


def test_a_signal_that_python_drops_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "STARTING_S", 0)  # this process has other children
    before = (sys.unraisablehook, signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM))
    signals = launching._Signals()
    with pytest.raises(Got) as raised, handled(signals.handle), signals.raised_as(Got):
        outlive_a_signal()
    assert raised.value.number is signal.SIGTERM
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_after_the_ranks_have_ended_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would handle it: the launcher is about to return their exit code."""
    monkeypatch.setattr(launching, "STARTING_S", 0)
    signals = launching._Signals()
    with handled(signals.handle):
        with signals.raised_as(Got):
            pass
        signal.raise_signal(signal.SIGTERM)
    assert (signals._asked, signals._raised) == (signal.SIGTERM, None)


def test_other_dropped_exceptions_reach_the_earlier_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise KeyError

    with launching._Signals().raised_as(Got):
        Broken()
    assert told == [KeyError]
