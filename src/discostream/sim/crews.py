"""Who computes: processes of this machine, or a Ray cluster. What comes of it is the same.

A task is some cells that are judged together. A worker that dies takes its task with it, and while others run
beside it nobody knows who was to blame. So the cells of tasks that were lost are tried again one at a time;
one that its worker does not survive three times then is given up, and named.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeAlias

from discostream.errors import ConfigError
from discostream.sim.cells import AnyCell, Lost, Outcome

__all__ = ["Crew", "Task", "Work", "outcomes_of", "processes", "ray_cluster"]

Task: TypeAlias = tuple[AnyCell, ...]
Work: TypeAlias = Callable[[Task], Sequence[Outcome]]
Done: TypeAlias = tuple[Task, Sequence[Outcome] | None]
"""A task and what came of it; `None` if its worker died."""

MOST_DEATHS = 3
"""So often may a cell cost its worker's life."""

AHEAD = 2
"""Tasks for each worker of a cluster that are handed out at a time, so that none has to wait for the next."""

CONNECTING_S = 10.0
"""How long a cluster may take to answer at all."""

LOCAL = "local"
"""The address of a cluster that is started here."""

ONE_THREAD = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""What keeps numerical libraries from starting threads of their own in every worker."""


class Crew(Protocol):
    """Workers."""

    def run(self, tasks: Iterable[Task], at_once: int | None = None) -> Generator[Done]:
        """Every task and what came of it, in any order.

        Args:
            tasks: What to do.
            at_once: How many may be under way; as many as keep everybody busy when `None`.
        """


def outcomes_of(tasks: Iterable[Task], crew: Crew) -> Generator[Outcome]:
    """What every cell came to, in any order; some may be lost."""
    orphans: list[Task] = []
    for task, outcomes in crew.run(tasks):
        if outcomes is None:
            orphans += [(cell,) for cell in task]
        yield from outcomes or ()
    for _ in range(MOST_DEATHS):
        again, orphans = orphans, []
        for task, outcomes in crew.run(again, at_once=1):
            if outcomes is None:
                orphans.append(task)
            yield from outcomes or ()
    for (cell,) in orphans:
        yield Lost(cell=cell, reason=f"its worker died {MOST_DEATHS} times, with nothing else under way")


@contextmanager
def processes(work: Work, jobs: int) -> Iterator[Crew]:
    """So many processes of this machine; none is left behind.

    Args:
        work: What they do; importable by name, for every worker starts from nothing.
        jobs: How many.
    """
    with _changed_environment(ONE_THREAD):
        yield _Processes(work, jobs)


class _Processes:
    def __init__(self, work: Work, jobs: int) -> None:
        self.work, self.jobs = work, jobs

    def run(self, tasks: Iterable[Task], at_once: int | None = None) -> Generator[Done]:
        waiting = deque(tasks)
        most = min(at_once or self.jobs, self.jobs)
        idle: list[Connection] = []
        busy: dict[Connection, Task] = {}
        with ExitStack() as workers:

            def hand_out() -> None:
                while waiting and len(busy) < most:
                    worker = idle.pop() if idle else workers.enter_context(_worker(self.work))
                    busy[worker] = waiting.popleft()
                    with suppress(OSError):  # it died while it was idle, which its answer will tell
                        worker.send(busy[worker])

            hand_out()
            while busy:
                ready = wait(list(busy))
                for worker in [each for each in busy if each in ready]:
                    task, outcomes = busy.pop(worker), _answer_of(worker)
                    if outcomes is not None:
                        idle.append(worker)
                    hand_out()
                    yield task, outcomes


@contextmanager
def _worker(work: Work) -> Iterator[Connection]:
    """A process and the pipe to it, which nobody else holds: however either ends, the other hears of it."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    with ours:
        with theirs, _interrupts_held_back():
            process.start()
        try:
            yield ours
        finally:
            process.kill()
            process.join()


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Who is started meanwhile never hears of Ctrl-C, which is its parent's business; here it waits."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # its start, which is part of any first one, would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Work, tasks: Connection) -> None:
    """Be a worker, which is of no use without its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            tasks.send(work(tasks.recv()))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer_of(worker: Connection) -> Sequence[Outcome] | None:
    """What a worker found; `None` if it died."""
    try:
        outcomes: Sequence[Outcome] = worker.recv()
    except (EOFError, OSError):
        return None
    return outcomes


@contextmanager
def _changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def ray_cluster(work: Work, address: str, jobs: int) -> Iterator[Crew]:
    """A Ray cluster, on every node of which this package and the traces are where they are here.

    Args:
        work: What its workers do.
        address: Where it is; `local` starts one on this machine.
        jobs: How many workers a local one has.

    Raises:
        ConfigError: Ray is not installed, or nobody answers at the address.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray: needs Ray; pip install 'discostream[ray]'") from None
    _require_listener(address)
    with _changed_environment({"RAY_USAGE_STATS_ENABLED": "0"}), ExitStack() as stack:
        try:
            ray.init(
                address=address,
                num_cpus=jobs if address == LOCAL else None,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": ONE_THREAD},
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"--ray {address}: no cluster can be used there: {error}") from None
        stack.callback(ray.shutdown)
        yield _RayCluster(work)


def _require_listener(address: str) -> None:
    """Refuse at once an address at which Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), CONNECTING_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"--ray {address}: nobody answers there: {error}") from None


class _RayCluster:
    def __init__(self, work: Work) -> None:
        import ray

        self.ray: Any = ray
        self.work = ray.remote(max_retries=0, num_cpus=1)(work)

    def run(self, tasks: Iterable[Task], at_once: int | None = None) -> Generator[Done]:
        waiting = deque(tasks)
        under_way: dict[Any, Task] = {}
        most = at_once or AHEAD * int(self.ray.cluster_resources()["CPU"])
        while waiting or under_way:
            while waiting and len(under_way) < most:
                task = waiting.popleft()
                under_way[self.work.remote(task)] = task
            (first, *_), _ = self.ray.wait(list(under_way))
            yield under_way.pop(first), self._outcomes(first)

    def _outcomes(self, first: Any) -> Sequence[Outcome] | None:
        deaths = self.ray.exceptions
        try:
            return list(self.ray.get(first))
        except (deaths.WorkerCrashedError, deaths.NodeDiedError, deaths.OutOfMemoryError):
            return None
        except deaths.RayTaskError as error:
            told = str(error.cause).strip().splitlines()[-1]
            raise ConfigError(
                f"--ray: a worker could not begin; install the same discostream on every node: {told}"
            ) from None
