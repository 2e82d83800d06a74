"""The Ray pool: persistent worker processes that may die, and results that do not depend on it."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from torch import Tensor

from fedgen.clients.worker import Worker, introduction
from fedgen.config import Experiment
from fedgen.contracts import BlockFailure
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.server.pool import Interrupt
from fedgen.server.ray_cluster import connect, register_serializer

IN_FLIGHT = 2
"""Blocks sent to a worker at a time: the next one waits there while the driver handles the last."""

TASK_RETRIES = 10
"""How often Ray repeats a block whose worker dies; a block that fails so is tried as often again, alone on a worker."""

START_TIMEOUT_S = 300.0
POLL_S = 0.25

OnEvent = Callable[[str, str], None]
"""Told of (event, reason)."""


class RayWorker(Worker):
    """A worker in a Ray actor: its answers carry its process id, by which the driver notices a restart."""

    def __init__(self, experiment: Experiment, search_path: tuple[str, ...]) -> None:
        import ray

        register_serializer(ray)
        super().__init__(experiment, search_path)

    def answer(self, keep: int, task: Callable[..., Any], *arguments: Any) -> Any:
        """((process id, result),) or, with keep, ((process id, head), kept, ...)."""
        result = self.run(task, *arguments)
        if not keep:
            return self.pid(), result
        first = result[: len(result) - keep]
        return ((self.pid(), first), *result[len(result) - keep :])


@dataclass
class _Seat:
    """One worker: the greeting it still owes, what it is computing, oldest first, and since when."""

    actor: Any
    greeting: Any
    pid: int = 0
    running: deque[int] = field(default_factory=deque)
    since: float = field(default_factory=monotonic)


@dataclass
class _Job:
    """One call of `map`; results: by number, until they are given."""

    task: Callable[..., Any]
    items: Sequence[tuple[Any, ...]]
    shared: list[Any]
    keep: int
    waiting: deque[int]
    results: dict[int, Any] = field(default_factory=dict)
    alone: set[int] = field(default_factory=set)


class RayPool:
    """`workers` actors on Ray, each with a federation like this one.

    search_path: folders of a user's own modules.  on_event: told of blocks that were computed again, and of a cluster
    whose machines differ.

    Raises FedgenError where Ray or a worker does not start, or a machine of a cluster holds other data.
    """

    def __init__(
        self,
        federation: Federation,
        workers: int,
        interrupt: Interrupt,
        search_path: tuple[str, ...] = (),
        on_event: OnEvent = lambda event, reason: None,
    ) -> None:
        experiment = federation.experiment
        self._interrupt, self._on_event = interrupt, on_event
        self._timeout_s = experiment.runtime.block_timeout_s
        self._ray, self._owned = connect(experiment.runtime.address, workers)
        self._federation_of = experiment, search_path
        self._actor = self._ray.remote(
            num_cpus=experiment.training.threads if experiment.runtime.address else 1,
            max_restarts=-1,
            max_task_retries=TASK_RETRIES,
        )(RayWorker)
        self._put: dict[int, tuple[Any, Any]] = {}
        self._seats: list[_Seat] = []
        try:
            self._start(workers)
            if experiment.runtime.address is not None:
                self._compare(introduction(federation))
        except BaseException:
            self.close()
            raise

    def _start(self, workers: int) -> None:
        self._seats = [self._hire() for _ in range(workers)]
        greetings = [seat.greeting for seat in self._seats]
        while len(self._ray.wait(greetings, num_returns=workers, timeout=POLL_S)[0]) < workers:
            self._interrupt.check()
            if monotonic() - self._seats[0].since > START_TIMEOUT_S:
                raise FedgenError(
                    f"runtime.workers = {workers}: the Ray cluster did not start them within {START_TIMEOUT_S:g} s; it "
                    "may have fewer free CPUs; lower runtime.workers"
                )
        for seat in self._seats:
            self._greet(seat)

    def _hire(self) -> _Seat:
        actor = self._actor.remote(*self._federation_of)
        return _Seat(actor, actor.pid.remote())

    def _greet(self, seat: _Seat) -> None:
        """A worker is there: from now on its silence counts."""
        try:
            seat.pid = self._ray.get(seat.greeting)
        except self._ray.exceptions.RayError as error:
            raise FedgenError(f"a Ray worker did not start: {error}") from error
        seat.greeting, seat.since = None, monotonic()

    def _compare(self, ours: dict[str, str]) -> None:
        """Workers on other machines must hold the same data; where other things differ, so may hashes."""
        theirs = self._ray.get([seat.actor.introduction.remote() for seat in self._seats])
        differing = {key for each in theirs for key in ours if each[key] != ours[key]}
        if "data" in differing:
            raise FedgenError(
                "a machine of the cluster holds other data than this one (its hash differs); give runtime.data_dir a "
                "folder with the same files on every machine"
            )
        if differing:
            values = {key: sorted({ours[key], *(each[key] for each in theirs)}) for key in sorted(differing)}
            self._on_event("mixed_machines", f"machines differ, and with them the hash may: {values}")

    def map(
        self, task: Callable[..., Any], items: Sequence[tuple[Any, ...]], shared: Sequence[Any] = (), keep: int = 0
    ) -> Iterator[Any]:
        job = _Job(task, items, self._handles(shared), keep, deque(range(len(items))))
        refs: dict[Any, tuple[int, _Seat, list[Any]]] = {}
        for number in range(len(items)):
            while number not in job.results:
                self._step(job, refs)
            yield job.results.pop(number)

    def _step(self, job: _Job, refs: dict[Any, tuple[int, _Seat, list[Any]]]) -> None:
        """Hand out what workers are ready for, and take what they have done meanwhile."""
        self._send(job, refs)
        greetings = {seat.greeting: seat for seat in self._seats if seat.greeting is not None}
        done, _ = self._ray.wait([*refs, *greetings], num_returns=1, timeout=POLL_S)
        self._interrupt.check()
        for ref in done:
            if ref in greetings:
                self._greet(greetings[ref])
            else:
                self._receive(job, ref, *refs.pop(ref))
        if not done:
            self._end_stuck(job, refs)

    def fetch(self, handle: Any) -> Any:
        try:
            return self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            raise FedgenError(f"what a worker had computed was lost with its machine: {error}") from error

    def _handles(self, shared: Sequence[Any]) -> list[Any]:
        """Tensors go out once: an unchanged one keeps its handle from call to call; the others' room is free first."""
        self._put = {id(each): self._put[id(each)] for each in shared if id(each) in self._put}
        for each in shared:
            if isinstance(each, Tensor) and id(each) not in self._put:
                self._put[id(each)] = each, self._ray.put(each)
        return [self._put[id(each)][1] if isinstance(each, Tensor) else each for each in shared]

    def _send(self, job: _Job, refs: dict[Any, tuple[int, _Seat, list[Any]]]) -> None:
        for depth in range(IN_FLIGHT):
            for seat in self._seats:
                if not job.waiting or len(seat.running) > depth or any(number in job.alone for number in seat.running):
                    continue
                if job.waiting[0] in job.alone and seat.running:
                    continue
                number = job.waiting.popleft()
                if not seat.running:
                    seat.since = monotonic()
                seat.running.append(number)
                call = seat.actor.answer.options(num_returns=1 + job.keep)
                answer = call.remote(job.keep, job.task, *job.shared, *job.items[number])
                first, *kept = answer if job.keep else [answer]
                refs[first] = number, seat, kept

    def _receive(self, job: _Job, ref: Any, number: int, seat: _Seat, kept: list[Any]) -> None:
        seat.running.remove(number)
        seat.since = monotonic()
        try:
            pid, value = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            if number in job.alone:
                tries = 2 * (TASK_RETRIES + 1)
                job.results[number] = BlockFailure(
                    f"{tries} workers died of it, the last {TASK_RETRIES + 1} of them alone with it "
                    f"({type(error).__name__}); lower runtime.workers or training.block where memory runs out"
                )
            else:
                # It may have shared the worker with the block that kills it.
                job.alone.add(number)
                job.waiting.append(number)
            return
        if pid != seat.pid:
            reason = f"worker process {seat.pid} died; process {pid} took its place and computed its blocks again"
            self._on_event("retried", reason)
            seat.pid = pid
        job.results[number] = (*value, *kept) if job.keep else value

    def _end_stuck(self, job: _Job, refs: dict[Any, tuple[int, _Seat, list[Any]]]) -> None:
        """Give up the oldest block of every worker that has been silent for too long, and hire a new worker."""
        for place, seat in enumerate(self._seats):
            limit = self._timeout_s if seat.greeting is None else START_TIMEOUT_S
            if not seat.running or monotonic() - seat.since < limit:
                continue
            stuck, *others = seat.running
            self._ray.kill(seat.actor, no_restart=True)
            for ref in [ref for ref, (_, owner, _) in refs.items() if owner is seat]:
                del refs[ref]
            reason = f"no answer within runtime.block_timeout_s = {self._timeout_s:g}"
            job.results[stuck] = BlockFailure(reason)
            job.waiting.extendleft(reversed(others))
            self._seats[place] = self._hire()

    def close(self) -> None:
        """Ends the workers, and the connection to Ray where this pool made it."""
        self._put.clear()
        if self._ray.is_initialized():
            for seat in self._seats:
                self._ray.kill(seat.actor)
            if self._owned:
                self._ray.shutdown()


def default_workers() -> int:
    """One a CPU core that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
