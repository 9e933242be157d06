"""Processes of one job: they find their place, carry out orders, and no fault goes unheard."""

import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from hpc import distributed
from hpc.distributed import Leader, Place, follow, slurm_place, torch_environment

TASK = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "no-such-host[01-02]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.1.2.3",
}
_jobs = itertools.count(64 * os.getpid())  # other ports than tests beside this one


def place(rank: int, world: int, job: int) -> Place:
    task = {**TASK, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world)}
    task |= {"SLURM_LOCALID": "0", "SLURM_JOB_ID": str(job), "MASTER_ADDR": "127.0.0.1"}
    return slurm_place(task)


@pytest.fixture
def job() -> int:
    return next(_jobs)


class Faults(queue.Queue[Mapping[str, Any]]):
    def next(self) -> Mapping[str, Any]:
        return self.get(timeout=20)


@contextmanager
def following(one: Place, act: Any, timeout: float = 20) -> Iterator[list[BaseException]]:
    """`follow` in a thread; gives what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            follow(one, act, timeout)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield raised
    thread.join(20)
    assert not thread.is_alive()


def test_a_slurm_task_knows_its_place() -> None:
    assert slurm_place(TASK) == Place(
        rank=3,
        world=4,
        local_rank=1,
        local_world=2,
        address="10.1.2.3",
        port=10_000 + 2 * 4711,
        job="4711.0",
    )
    assert torch_environment(slurm_place(TASK)) == {
        "MASTER_ADDR": "10.1.2.3",
        "MASTER_PORT": "19422",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SLURM_NTASKS_PER_NODE": None, "SLURM_NNODES": "1"}, {"local_world": 4}),
        ({"SLURM_NTASKS_PER_NODE": None, "SLURM_NNODES": "2"}, {"local_world": 2}),
        (
            {"SLURM_NTASKS_PER_NODE": None, "SLURM_NNODES": "9", "SLURM_STEP_NUM_NODES": "2"},
            {"local_world": 2},
        ),
        ({"MASTER_ADDR": "node07"}, {"address": "node07"}),
        ({"SLURM_JOB_NODELIST": "localhost,node02"}, {"address": "localhost"}),
        ({"SLURM_STEP_NODELIST": "localhost"}, {"address": "localhost"}),
        ({"SLURM_RESTART_COUNT": "2"}, {"job": "4711.2"}),
        ({"SLURM_JOB_ID": "67108863"}, {"port": 10_000 + 2 * (67108863 % 11_000)}),
    ],
)
def test_what_slurm_sets_is_understood(
    changes: dict[str, str | None], expected: dict[str, Any]
) -> None:
    found = slurm_place({key: one for key, one in {**TASK, **changes}.items() if one is not None})
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"SLURM_PROCID": None}, "SLURM_PROCID is not set"),
        ({"SLURM_NTASKS": None}, "SLURM_NTASKS is not set"),
        ({"SLURM_JOB_ID": "4711_3"}, "SLURM_JOB_ID='4711_3': expected a whole number"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID='-1'"),
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID=4: expected less than 4"),
        ({"SLURM_LOCALID": "2"}, "SLURM_LOCALID=2: expected less than 2"),
        ({"SLURM_NTASKS_PER_NODE": None}, "SLURM_NNODES is not set"),
        ({"SLURM_NTASKS_PER_NODE": "2(x2)"}, r"SLURM_NTASKS_PER_NODE='2\(x2\)'"),
        (
            {"SLURM_NTASKS_PER_NODE": None, "SLURM_NNODES": "3"},
            "SLURM_NNODES=3: expected a divisor of SLURM_NTASKS=4",
        ),
        ({"SLURM_LAUNCH_NODE_IPADDR": None}, r"NODELIST='no-such-host\[01-02\]'.*MASTER_ADDR"),
    ],
)
def test_what_is_missing_or_garbled_is_named(changes: dict[str, str | None], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        slurm_place({key: one for key, one in {**TASK, **changes}.items() if one is not None})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node07", "node07"),
        ("node07,node09", "node07"),
        ("node[07-09,12]", "node07"),
        ("node[3,5-6],other", "node3"),
        ("rack[1-2]node[03-04]-ib,x", "rack1node03-ib"),
        ("", ""),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert distributed._first_host(nodes) == first


def test_neighbouring_jobs_share_no_port() -> None:
    ports = [place(0, 2, job).port + one for job in range(5_000, 16_000) for one in (0, 1)]
    assert len(set(ports)) == len(ports) and min(ports) > 1_023 and max(ports) < 32_768


def test_a_process_alone_opens_no_port() -> None:
    with Leader(Place(), on_fault=print) as one, Leader(Place(), on_fault=print) as other:
        one.call({"task": "a"})
        other.call({"task": "b"})
    assert torch_environment(Place())["WORLD_SIZE"] == "1"
    follow_nobody = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NODELIST": "?"}
    alone = {**TASK, **follow_nobody, "SLURM_LOCALID": "0", "SLURM_LAUNCH_NODE_IPADDR": ""}
    assert slurm_place(alone).address == "127.0.0.1"


def test_orders_reach_all_in_turn_also_one_who_comes_late(job: int) -> None:
    done: list[tuple[int, Any]] = []
    faults = Faults()
    with following(
        place(1, 3, job), lambda order: done.append((1, order["task"]))
    ):  # no leader yet
        time.sleep(0.5)
        with Leader(place(0, 3, job), faults.put) as leader:
            late = [place(2, 3, job), lambda order: done.append((2, order["task"]))]
            threading.Timer(0.5, follow, late).start()
            leader.call({"task": "a"}, timeout=20)
            leader.call({"task": {"ü": [1, None]}})
            deadline = time.monotonic() + 20
            while len(done) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
    for rank in (1, 2):
        assert [task for who, task in done if who == rank] == ["a", {"ü": [1, None]}]
    assert faults.empty()


def test_who_comes_when_there_was_nothing_to_do_ends_too(job: int) -> None:
    late = threading.Timer(0.5, follow, [place(1, 2, job), print])
    late.start()
    with Leader(place(0, 2, job), print):
        pass
    late.join(20)
    assert not late.is_alive()


def test_a_leader_in_trouble_waits_for_nobody(job: int) -> None:
    started = time.monotonic()
    with pytest.raises(KeyError), Leader(place(0, 2, job), print):
        raise KeyError
    assert time.monotonic() - started < 5


def test_the_same_port_serves_again(job: int) -> None:
    for task in ("a", "b"):
        done: list[str] = []
        with (
            following(place(1, 2, job), lambda order, done=done: done.append(order["task"])),
            Leader(place(0, 2, job), print) as leader,
        ):
            leader.call({"task": task}, timeout=20)
            time.sleep(0.1)
        assert done == [task]


def test_who_is_missing_is_told(job: int) -> None:
    with following(place(2, 4, job), print), Leader(place(0, 4, job), print) as leader:
        for timeout in (1, 300):  # the next order does not wait for them again
            told = r"ranks 1, 3 of 4 did not connect to 127\.0\.0\.1:"
            with pytest.raises(TimeoutError, match=told):
                leader.call({"task": "a"}, timeout)


def test_a_leader_that_never_comes_is_told(job: int) -> None:
    with pytest.raises(TimeoutError, match=rf"rank 1 found no leader of job {job}\.0 at 127"):
        follow(place(1, 2, job), print, timeout=0.5)


def test_a_fault_is_heard_at_once_and_raised_where_it_was(job: int) -> None:
    def act(order: dict[str, Any]) -> None:
        raise FileNotFoundError(f"{order['task']}: no such shard")

    faults = Faults()
    with following(place(1, 2, job), act) as raised, Leader(place(0, 2, job), faults.put) as leader:
        leader.call({"task": "a"}, timeout=20)
        fault = faults.next()
        assert (fault["rank"], fault["host"]) == (1, socket.gethostname())
        assert fault["error"] == "FileNotFoundError: a: no such shard"
        assert "in act" in fault["traceback"]
        with pytest.raises(RuntimeError, match=r"rank 1: FileNotFoundError: a: no such shard"):
            leader.call({"task": "b"})
        time.sleep(0.2)
        assert not raised  # it waits, so that rank 0 is not ended before it has recorded this
    assert isinstance(raised[0], FileNotFoundError) and faults.empty()


def test_a_fault_is_raised_soon_when_the_leader_hangs(
    job: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_RECORD_SECONDS", 0.5)
    with (
        Leader(place(0, 2, job), print) as leader,
        following(place(1, 2, job), lambda order: order["absent"]) as raised,
    ):
        leader.call({}, timeout=20)
        time.sleep(2)
        assert isinstance(raised[0], KeyError)


def test_a_killed_process_is_a_fault(job: int) -> None:
    code = (
        "import sys, time; from hpc.distributed import Place, follow\n"
        f"at = Place(rank=1, world=2, job='{job}.0', port={place(0, 2, job).port})\n"
        "follow(at, lambda order: print('at work', flush=True) or time.sleep(60))"
    )
    faults = Faults()
    with Leader(place(0, 2, job), faults.put) as leader:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        leader.call({"task": "a"}, timeout=20)
        assert child.stdout and child.stdout.readline() == "at work\n"
        child.send_signal(signal.SIGKILL)
        fault = faults.next()
        child.wait()
    assert fault["error"] == f"rank 1 on {socket.gethostname()} ended without a word"


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\x00\n",
        b"x" * 100_000,
        b'["rank", 1]\n',
        b"",
        *(
            json.dumps(hello).encode() + b"\n"
            for hello in (
                {"rank": 1, "host": "h", "job": "another.0"},
                {"rank": 0, "host": "h", "job": "JOB"},
                {"rank": 2, "host": "h", "job": "JOB"},
                {"rank": "1", "host": "h", "job": "JOB"},
                {"rank": 1, "host": 7, "job": "JOB"},
                {"job": "JOB"},
            )
        ),
    ],
)
def test_a_stranger_does_not_count(job: int, words: bytes) -> None:
    faults, done = Faults(), []
    with (
        following(place(1, 2, job), lambda order: done.append(order["task"])),
        Leader(place(0, 2, job), faults.put) as leader,
        socket.create_connection(("127.0.0.1", place(0, 2, job).port + 1), 20) as stranger,
    ):
        try:
            stranger.sendall(words.replace(b"JOB", f"{job}.0".encode()))
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""  # no answer
        except OSError:
            pass
        leader.call({"task": "a"}, timeout=20)
        time.sleep(0.1)
    assert done == ["a"] and faults.empty()


def test_a_second_process_of_the_same_rank_is_turned_away(job: int) -> None:
    faults, done = Faults(), []
    with (
        following(place(1, 2, job), lambda order: done.append(order["task"])),
        Leader(place(0, 2, job), faults.put) as leader,
    ):
        leader.call({"task": "a"}, timeout=20)
        with pytest.raises(TimeoutError, match="or it has this rank already"):
            follow(place(1, 2, job), print, timeout=0.5)
        time.sleep(0.1)
    assert done == ["a"] and faults.empty()
