"""Runs the grid over the cores, in order, going on where it was left."""

import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from typing import Any

from benchmarks.quality.grid import TASKS, Job, arms, jobs, searches
from benchmarks.quality.store import Store


def chosen(store: Store, job: Job) -> float | None:
    """The learning rate's factor that the search of a job's arm has found best on the validation split; None yet."""
    tried = [store.runs.get(search.key) for search in searches(job.claim, job.task, arms(job.task)[job.arm].searched)]
    if not all(tried):
        return None
    read = "WSM 1-sqrt" if arms(job.task)[job.arm].carries else "raw"
    measure = TASKS[job.task].measure
    best = min(tried, key=lambda run: run["final"][read]["val"][measure])  # type: ignore[index]  # none is None
    return best["factor"]  # type: ignore[index]


def ready(store: Store, waiting: list[Job]) -> Job | None:
    """The first job whose search is done, with what it chose."""
    for job in waiting:
        if job.phase == "search":
            return job
        factor = chosen(store, job)
        if factor is not None:
            return replace(job, factor=factor)
    return None


def run(store: Store, *, workers: int, until: float = float("inf"), only: str = "") -> None:
    """Every job that is not in the store; none is begun after ``until``, in seconds since the epoch."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from benchmarks.quality.train import described, execute  # imports torch

    described()
    waiting = [job for job in jobs() if job.key not in store.runs and only in job.key]
    total = len(waiting)
    running: dict[Future[dict[str, Any]], Job] = {}
    # forked, so that the workers go by this command's name
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        while waiting or running:
            while len(running) < workers and time.time() < until and (job := ready(store, waiting)) is not None:
                waiting.remove(replace(job, factor=None) if job.phase == "final" else job)
                running[pool.submit(execute, job)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                record = future.result()
                record["key"] = replace(job, factor=None).key if job.phase == "final" else job.key
                store.add(record)
                print(f"{total - len(waiting) - len(running)}/{total} {job.key} {record['seconds']}", flush=True)
