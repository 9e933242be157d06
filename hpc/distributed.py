"""Several processes, one job: where each stands, and how the first leads the others.

The scheduler's environment becomes torch.distributed's. Only the first process, rank 0, decides
what is done: it sends orders, and the others report what went wrong. Both are lines of JSON on
plain sockets; this module needs no torch.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

Fault = Mapping[str, Any]
"""What went wrong in another process: `rank`, `host`, `error` in one line, `traceback`."""

# Below the ephemeral ports (32768 and up), so that no outgoing connection can sit on them.
_FIRST_PORT, _PORT_PAIRS = 10_000, 11_000
_HELLO_BYTES, _LINE_BYTES = 4_096, 1_000_000
_HELLO_SECONDS, _ANSWER_SECONDS = 10.0, 60.0
_PATIENCE_SECONDS, _RECORD_SECONDS, _RETRY_SECONDS = 300.0, 30.0, 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a process stands in its job; by default alone."""

    rank: int = 0
    """Number of this process in the job; rank 0 leads."""
    world: int = 1
    """Processes in the job."""
    local_rank: int = 0
    """Number of this process on its node."""
    local_world: int = 1
    """Processes on each node."""
    address: str = "127.0.0.1"
    """Host name or IP address of rank 0."""
    port: int = _FIRST_PORT
    """TCP port of rank 0 for torch; the next one is for the leader's orders."""
    job: str = ""
    """The scheduler's name of this run of the job: processes of another are turned away."""

    def __post_init__(self) -> None:
        for name, number, end in (
            ("rank", self.rank, self.world),
            ("local_rank", self.local_rank, self.local_world),
        ):
            if not 0 <= number < end:
                raise ValueError(f"{name} {number}: expected 0 or more and less than {end}")


def slurm_place(environ: Mapping[str, str]) -> Place:
    """Read the place of this process from what Slurm sets for each task of a job step.

    `MASTER_ADDR` is respected. Without it rank 0 is looked for at the first node of the node list,
    or, where node names don't resolve, at the address that the step was launched from: the first
    node too, in a batch job.

    Raises:
        ValueError: a variable is missing or garbled, or no address can be found.
    """
    world = _number(environ, "SLURM_NTASKS")
    local_world = _tasks_per_node(environ, world)
    job = _number(environ, "SLURM_JOB_ID")
    return Place(
        rank=_number(environ, "SLURM_PROCID", below=world),
        world=world,
        local_rank=_number(environ, "SLURM_LOCALID", below=local_world),
        local_world=local_world,
        address=_address(environ) if world > 1 else Place().address,
        # Two ports a job, so jobs with neighbouring ids never meet on a shared node.
        port=_FIRST_PORT + 2 * (job % _PORT_PAIRS),
        # A job that is requeued keeps its id; what is left of its first run must not join.
        job=f"{job}.{environ.get('SLURM_RESTART_COUNT', '0')}",
    )


def torch_environment(place: Place) -> dict[str, str]:
    """The variables that torch.distributed and open_clip_train read.

    For one process too: one that runs alone within a larger allocation must be told that it does,
    or open_clip_train goes by the number of the allocation's tasks.
    """
    return {
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world),
    }


def _number(environ: Mapping[str, str], name: str, below: int | None = None) -> int:
    if name not in environ:
        raise ValueError(f"{name} is not set: is this a task that srun started?")
    if not re.fullmatch(r"[0-9]+", environ[name]):
        raise ValueError(f"{name}={environ[name]!r}: expected a whole number")
    number = int(environ[name])
    if below is not None and number >= below:
        raise ValueError(f"{name}={number}: expected less than {below}, the number of processes")
    return number


def _tasks_per_node(environ: Mapping[str, str], world: int) -> int:
    if "SLURM_NTASKS_PER_NODE" in environ:
        return _number(environ, "SLURM_NTASKS_PER_NODE")
    name = "SLURM_STEP_NUM_NODES" if "SLURM_STEP_NUM_NODES" in environ else "SLURM_NNODES"
    nodes = _number(environ, name)
    if nodes == 0 or world % nodes:
        raise ValueError(f"{name}={nodes}: expected a divisor of SLURM_NTASKS={world}")
    return world // nodes


def _address(environ: Mapping[str, str]) -> str:
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    name = "SLURM_STEP_NODELIST" if environ.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    host = _first_host(environ.get(name, ""))
    if host and _resolves(host):
        return host
    if environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        return environ["SLURM_LAUNCH_NODE_IPADDR"]
    raise ValueError(
        f"{name}={environ.get(name, '')!r}: its first host does not resolve, and "
        "SLURM_LAUNCH_NODE_IPADDR is not set; set MASTER_ADDR to the address of rank 0's node"
    )


def _first_host(nodes: str) -> str:
    """The first name of a Slurm node list: `rack1node07` of `rack[1-2]node[07-09,12],login`."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", found[0]) if found else ""


def _resolves(host: str) -> bool:
    with suppress(OSError):
        return bool(socket.getaddrinfo(host, None))
    return False


class Leader:
    """Rank 0's side: sends orders to all others and hears of their faults. A context manager.

    Leaving the context closes the connections, which tells the others to end; without an error it
    first waits for those that are late, who would look for it in vain. In a world of one nothing is
    opened and orders have no effect.
    """

    def __init__(self, place: Place, on_fault: Callable[[Fault], None]) -> None:
        """Prepare to lead.

        Args:
            place: of this process.
            on_fault: called at once, in another thread (but never twice at a time), when another
                process reports a fault or its connection breaks: also while this one hangs in a
                collective operation.
        """
        self._place = place
        self._on_fault = on_fault
        self._faults_one_by_one = threading.Lock()
        self._changed = threading.Condition()  # guards what follows
        self._followers: dict[int, socket.socket] = {}
        self._faults: dict[int, Fault] = {}
        self._closing = self._gave_up = False
        self._server: socket.socket | None = None

    def __enter__(self) -> Leader:
        if self._place.world > 1:
            self._server = _listen(self._place.port + 1)
            threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            if not any(exception) and not self._gave_up:
                self._changed.wait_for(self._all_known, _PATIENCE_SECONDS)
            self._closing = True
            sockets = [*self._followers.values(), *([self._server] if self._server else [])]
        for one in sockets:
            _close(one)

    def call(self, order: Mapping[str, Any], timeout: float = _PATIENCE_SECONDS) -> None:
        """Send an order, of JSON values, to every other process.

        Args:
            order: what the others pass to their `act`.
            timeout: seconds to wait until all have connected; in vain once, it is not done again.

        Raises:
            TimeoutError: some have not connected in time.
            RuntimeError: one has failed or is gone.
        """
        line = _line(order)
        with self._changed:
            self._gave_up |= not self._changed.wait_for(
                self._all_known, 0 if self._gave_up else timeout
            )
            if self._gave_up:
                raise TimeoutError(self._who_is_missing(timeout))
            if self._faults:
                faults = self._faults.values()
                told = "; ".join(f"rank {one['rank']}: {one['error']}" for one in faults)
                raise RuntimeError(f"other processes of this job have failed: {told}")
            for rank, follower in self._followers.items():
                try:
                    follower.sendall(line)
                except OSError as error:
                    raise RuntimeError(f"rank {rank} can't be reached any more: {error}") from error

    def _all_known(self) -> bool:
        """Whether all have connected; or one has failed, and there is nothing to wait for."""
        return bool(self._faults) or len(self._followers) == self._place.world - 1

    def _who_is_missing(self, timeout: float) -> str:
        missing = sorted({*range(1, self._place.world)} - {*self._followers})
        return (
            f"ranks {', '.join(map(str, missing))} of {self._place.world} did not connect to "
            f"{self._place.address}:{self._place.port + 1} within {timeout:g} s; "
            "their logs say why, or the address is not rank 0's (set MASTER_ADDR)"
        )

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(_RETRY_SECONDS)  # out of file handles, or the caller hung up
                continue
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        """Listen to one connection until it closes."""
        with connection, connection.makefile("rb") as lines:
            connection.settimeout(_HELLO_SECONDS)
            who = self._admit(connection, _next(lines, _HELLO_BYTES) or {})
            if who is None:
                return
            silence = f"rank {who['rank']} on {who['host']} ended without a word"
            fault = _next(lines) or {}
            error, text = fault.get("error", silence), fault.get("traceback", "")
            self._note({**who, "error": str(error), "traceback": str(text)})
            while _next(lines) is not None:  # it waits for this side to close
                pass

    def _admit(self, connection: socket.socket, hello: Fault) -> dict[str, Any] | None:
        """Rank and host of a process of this job; None for anybody else."""
        rank, host = hello.get("rank"), hello.get("host")
        if hello.get("job") != self._place.job or not isinstance(host, str):
            return None
        if not isinstance(rank, int) or not 0 < rank < self._place.world:
            return None
        with self._changed:
            if self._closing or rank in self._followers:
                return None
            with suppress(OSError):
                connection.sendall(_line(_welcome(self._place)))
                _keep_open(connection)
                self._followers[rank] = connection
                self._changed.notify_all()
                return {"rank": rank, "host": host}
        return None

    def _note(self, fault: Fault) -> None:
        with self._changed:
            if self._closing:
                return
            self._faults[fault["rank"]] = fault
            self._changed.notify_all()
        with self._faults_one_by_one:
            self._on_fault(fault)


def follow(
    place: Place, act: Callable[[dict[str, Any]], None], timeout: float = _PATIENCE_SECONDS
) -> None:
    """What all but rank 0 do: carry out the leader's orders one by one, until it closes.

    Args:
        place: of this process.
        act: called with each order. What it raises is reported to the leader, and raised again
            when the leader has closed or has had time to record it.
        timeout: seconds to wait for the leader to be there.

    Raises:
        TimeoutError: no leader of this job was found in time.
    """
    connection, lines = _join(place, timeout)
    with connection, lines:
        while (order := _next(lines)) is not None:
            try:
                act(order)
            except Exception as error:
                _report(connection, place, error)
                raise


def _report(connection: socket.socket, place: Place, error: Exception) -> None:
    """Tell the leader of a fault, and give it time: srun may end a job when one process fails."""
    fault = {
        "rank": place.rank,
        "host": socket.gethostname(),
        "error": f"{type(error).__name__}: {error}"[:10_000],
        "traceback": traceback.format_exc()[-50_000:],
    }
    with suppress(OSError):
        connection.sendall(_line(fault))
        deadline = time.monotonic() + _RECORD_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(_HELLO_BYTES):
                return


def _join(place: Place, timeout: float) -> tuple[socket.socket, BinaryIO]:
    """Connect to the leader of this job, trying again until it is there."""
    deadline = time.monotonic() + timeout
    where = (place.address, place.port + 1)
    while True:
        try:
            return _introduce(place, socket.create_connection(where, _ANSWER_SECONDS))
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"rank {place.rank} found no leader of job {place.job} at "
                    f"{where[0]}:{where[1]} within {timeout:g} s: {error}"
                ) from error
        time.sleep(_RETRY_SECONDS)


def _introduce(place: Place, connection: socket.socket) -> tuple[socket.socket, BinaryIO]:
    """Say who this is; the leader answers with the job's name, anybody else does not."""
    lines = connection.makefile("rb")
    try:
        hello = {"rank": place.rank, "host": socket.gethostname(), "job": place.job}
        connection.sendall(_line(hello))
        if _next(lines, _HELLO_BYTES) != _welcome(place):
            raise ConnectionError("somebody else answers there, or it has this rank already")
        _keep_open(connection)
    except BaseException:
        connection.close()
        raise
    return connection, lines


def _welcome(place: Place) -> dict[str, str]:
    return {"leader of": place.job}


def _listen(port: int) -> socket.socket:
    """Listen on all interfaces; waits a little for a process that is just ending."""
    deadline = time.monotonic() + _RECORD_SECONDS
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    while True:
        try:
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise OSError(f"port {port} of this job can't be opened: {error}") from error
        time.sleep(_RETRY_SECONDS)


def _keep_open(connection: socket.socket) -> None:
    """No time limit between lines, but find out within minutes if the other node is gone.

    A forked child, such as a data loader, must not hold the connection: it outlives a process that
    is killed, and hides its end.
    """

    def let_go() -> None:  # `close` would wait for the file that is made of it
        if (descriptor := connection.detach()) >= 0:
            os.close(descriptor)

    os.register_at_fork(after_in_child=let_go)
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)


def _close(connection: socket.socket) -> None:
    """Close for everybody: children forked since hold the same socket open."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(message)).encode() + b"\n"


def _next(lines: BinaryIO, limit: int = _LINE_BYTES) -> dict[str, Any] | None:
    """The next message; None at the end, for what is no message, and if the other was killed."""
    try:
        line = lines.readline(limit)
        message = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
