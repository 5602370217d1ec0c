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
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from discostream.errors import ConfigError
from discostream.sim.cells import AnyCell, Lost, Outcome

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

__all__ = ["Crew", "Task", "Work", "outcomes_of", "processes", "ray_cluster"]

Task: TypeAlias = tuple[AnyCell, ...]
Work: TypeAlias = Callable[[Task], Sequence[Outcome]]
Done: TypeAlias = tuple[Task, Sequence[Outcome] | None]
"""A task and what came of it; `None` if its worker died."""

MOST_DEATHS = 3
"""So often may a cell cost its worker's life."""

AHEAD = 2
"""Tasks for each worker that are handed out at a time, so that none has to wait for the next."""

LOOKS_UP_S = 0.5
"""How often a worker looks whether it is still wanted."""

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
        while waiting:
            with _pool(min(at_once or self.jobs, self.jobs, len(waiting))) as pool:
                yield from self._until_a_death(pool, waiting, at_once or AHEAD * self.jobs)

    def _until_a_death(self, pool: ProcessPoolExecutor, waiting: deque[Task], most: int) -> Iterator[Done]:
        """Do what waits until all is done, or until the pool has lost a worker and is of no more use."""
        under_way: dict[Future[Sequence[Outcome]], Task] = {}
        broken = False
        while under_way or (waiting and not broken):
            while waiting and len(under_way) < most and not broken:
                try:
                    under_way[pool.submit(self.work, waiting[0])] = waiting[0]
                    waiting.popleft()
                except BrokenProcessPool:
                    broken = True
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                task = under_way.pop(future)
                try:
                    yield task, future.result()
                except BrokenProcessPool:
                    broken = True
                    yield task, None


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = get_context("spawn")
    unwanted = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(unwanted,))
    try:
        yield pool
    except BaseException:
        unwanted.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(unwanted: Event) -> None:
    """Prepare a worker: Ctrl-C is its parent's business, without whom it is no use."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_when, args=(unwanted,), daemon=True).start()


def _end_when(unwanted: Event) -> None:
    parent = parent_process()
    while not unwanted.wait(LOOKS_UP_S) and (parent is None or parent.is_alive()):
        pass
    os._exit(1)


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
