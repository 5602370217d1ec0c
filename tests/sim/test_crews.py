"""Who computes: workers that die cost nobody else's cells, and none is left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import evaluations
import psutil
import pytest
from evaluations import DEADLY, a_grid, die_on_the_deadly, do_nothing, say_much

from discostream.errors import ConfigError
from discostream.sim.crews import outcomes_of, processes, ray_cluster
from discostream.sim.grid import Setting


@pytest.fixture
def tasks(tmp_path):
    """Six of two cells each, a seed a task; one cell of the fourth is deadly, if workers are told so."""
    setting, grid = Setting("builtin:gpt-4o", "80,20", "device"), a_grid(workload=str(tmp_path))
    return [
        tuple(grid.race(setting, "disco", share, seed) for share in (0.3, 0.9))
        for seed in (0, 1, 2, DEADLY[0], 4, 5)
    ]


def wait_until_it_waits(worker):
    """Until it has used no processor for a while."""
    before = None
    while before != (before := worker.cpu_times()[:2]):
        time.sleep(0.3)


def workers():
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_every_cell_is_done_once(tasks):
    """Two processes between them do all tasks, and are gone afterwards."""
    with processes(do_nothing, 2) as crew:
        outcomes = list(outcomes_of(tasks, crew))
    assert len(outcomes) == 12
    assert {each.cell for each in outcomes} == {cell for task in tasks for cell in task}
    assert workers() == []


def test_a_killed_worker_costs_nothing(tasks):
    """A worker that is killed from outside takes its task with it, whose cells are done by another."""
    with processes(do_nothing, 1) as crew, closing(outcomes_of(tasks * 50, crew)) as outcomes:
        found = [next(outcomes)]
        (worker,) = workers()
        worker.send_signal(signal.SIGKILL)
        found += outcomes
    assert {each.cell for each in found} == {cell for task in tasks for cell in task}
    assert {each.reason for each in found} == {"nothing was done"}


def test_a_deadly_cell_is_named_and_the_others_are_done(tasks, tmp_path):
    """It has three tries with nothing else under way, after the one that it shared."""
    with processes(die_on_the_deadly, 2) as crew:
        outcomes = list(outcomes_of(tasks, crew))
    (deadly,) = [each for each in outcomes if each.reason != "nothing was done"]
    assert deadly.cell == tasks[3][0]
    assert deadly.reason == "its worker died 3 times, with nothing else under way"
    assert {each.cell for each in outcomes} == {cell for task in tasks for cell in task}
    assert len(list(tmp_path.glob("attempt-*"))) == 1 + 3


def test_nobody_works_on_when_nobody_listens(tasks):
    """An evaluation that is broken off leaves no process behind."""
    with processes(do_nothing, 2) as crew, closing(outcomes_of(tasks * 50, crew)) as outcomes:
        next(outcomes)
        assert workers()
    assert workers() == []


def test_a_worker_that_dies_in_mid_sentence_costs_nothing(tasks):
    """What it had begun to say is given up, and its cells are done by another."""
    with processes(say_much, 1) as crew, closing(outcomes_of(tasks, crew)) as outcomes:
        found = [next(outcomes)]
        (worker,) = workers()
        wait_until_it_waits(worker)
        worker.send_signal(signal.SIGKILL)
        found += outcomes
    assert {each.cell for each in found} == {cell for task in tasks for cell in task}


def test_workers_are_stopped_in_mid_sentence(tasks):
    """An evaluation that is broken off does not wait for what workers have begun to say."""
    with processes(say_much, 2) as crew, closing(outcomes_of(tasks, crew)) as outcomes:
        next(outcomes)
        for worker in workers():
            wait_until_it_waits(worker)
    assert workers() == []


def test_workers_have_one_thread_each(tasks, monkeypatch):
    """They are told so by the environment, which is afterwards as it was."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with processes(do_nothing, 1):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_ray_is_optional(monkeypatch):
    """Without Ray, the message says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    needed = pytest.raises(ConfigError, match=r"--ray: needs Ray; pip install 'discostream\[ray\]'")
    with needed, ray_cluster(do_nothing, "local", 1):
        pass


@pytest.mark.slow
def test_on_ray_a_deadly_cell_is_named_as_well(tasks, monkeypatch):
    """The same cell is lost with Ray's workers, and the same are done."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'discostream[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(Path(evaluations.__file__).parent))
    with ray_cluster(die_on_the_deadly, "local", 2) as crew:
        outcomes = list(outcomes_of(tasks, crew))
    assert [each.cell for each in outcomes if each.reason != "nothing was done"] == [tasks[3][0]]
    assert {each.cell for each in outcomes} == {cell for task in tasks for cell in task}


@pytest.mark.slow
def test_a_ray_cluster_that_cannot_work(tasks):
    """Workers that cannot import what they are to do are the user's to equip, and the message says so."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'discostream[ray]'")
    unable = pytest.raises(ConfigError, match="on every node: ModuleNotFoundError: No module named 'eval")
    with unable, ray_cluster(do_nothing, "local", 1) as crew:
        list(outcomes_of(tasks, crew))


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port"])
def test_a_ray_cluster_that_is_not_there(address):
    """An address at which nobody answers is refused at once, by name."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'discostream[ray]'")
    nobody = pytest.raises(ConfigError, match=f"--ray {address}: nobody answers there")
    with nobody, ray_cluster(do_nothing, address, 1):
        pass
