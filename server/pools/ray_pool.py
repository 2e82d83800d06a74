"""The Ray pool: persistent worker processes that may die, and results that do not depend on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, sleep
from typing import Any, Literal

from torch import Tensor

from fedgen.clients.own_modules import OwnModules, packed
from fedgen.clients.worker import Greeting, introduction
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.leaves import Held, put_together, taken_apart
from fedgen.server.pools.pool import BlockFailure, Interrupt, Item, Kept, Result, Shared, WorkLost, default_workers
from fedgen.server.pools.ray_cluster import connect
from fedgen.server.pools.ray_worker import RayWorker, in_short
from fedgen.server.pools.seats import Flight, Job, Parcel, Ref, Seat
from fedgen.server.store.user_code import named
from fedgen.server.words import counted

IN_FLIGHT = 2
"""Blocks sent to a worker at a time: the next one waits there while the driver handles the last."""

DEATHS = 10
"""How many workers may die of a block, all but the first alone with it, and how many on their way to a seat."""

PATIENCE_S = 20.0
"""A worker that has not started by then is not waited for where others have."""

POLL_S, TEND_S = 0.25, 1.0

OnEvent = Callable[[str, str], None]
"""Told of (event, reason)."""


def _nothing(federation: Federation, shared: None, item: None) -> None:
    """The task of nobody."""


class RayPool:
    """Workers on Ray, each with a federation like this one.

    workers: how many; "auto" is one a CPU core, of the cluster where one is joined, those that it gains included.
    search_path: folders of a user's own modules.  on_event: told of workers that die, are missing or come, and of
    machines that differ.

    Blocks go to workers that have answered.  One that is lost is replaced where the cluster has room, now or later; the
    others go on meanwhile.

    Raises FedgenError where Ray or every worker does not start, or a machine of a cluster holds other data.
    """

    def __init__(
        self,
        federation: Federation,
        workers: int | Literal["auto"],
        interrupt: Interrupt,
        search_path: tuple[str, ...] = (),
        on_event: OnEvent = lambda event, reason: None,
    ) -> None:
        runtime, threads = federation.experiment.runtime, federation.experiment.training.threads
        self._interrupt, self._on_event = interrupt, on_event
        self._block_timeout_s, self._worker_timeout_s = runtime.block_timeout_s, runtime.worker_timeout_s
        local = default_workers() if workers == "auto" else workers
        self._connection = connect(runtime.address, local, interrupt)
        self._ray, self._seats, self._put = self._connection.ray, list[Seat](), dict[int, tuple[Tensor, Ref]]()
        try:
            if self._connection.note:
                on_event("joined", self._connection.note)
            own = self._connection.own
            self._cpus = 0 if own else threads
            self._grows = workers == "auto" and not own
            self._actor = self._ray.remote(num_cpus=self._cpus, max_restarts=0, max_task_retries=0)(RayWorker)
            modules = OwnModules(search_path) if own else packed(search_path, named(federation.experiment))
            self._told_workers = self._ray.put((federation.experiment, modules))
            self._introduction = introduction(federation)
            self._differing: set[str] = set()
            self._start(max(1, self._room()) if self._grows else local)
        except BaseException:
            self.close()
            raise

    def _start(self, workers: int) -> None:
        """Hire, and wait for those that start."""
        self._seats = [self._hire() for _ in range(workers)]
        self._said, self._answered, self._tended = workers, monotonic(), 0.0
        nothing = Job(_nothing, [], Parcel(None, []), 0, deque())
        while (running := self._running()) == 0 or (running < len(self._seats) and running != self._said):
            self._step(nothing)

    def _hire(self, failed: int = 0) -> Seat:
        actor = self._actor.remote()
        return Seat(actor, actor.greet.remote(self._told_workers), failed)

    def _running(self) -> int:
        return sum(seat.greeted for seat in self._seats)

    def map(
        self, task: Callable[[Federation, Shared, Item], Result], items: Sequence[Item], shared: Shared, keep: int = 0
    ) -> Iterator[Result | BlockFailure]:
        job = Job(task, items, self._sent(shared), keep, deque(range(len(items))))
        for number in range(len(items)):
            while number not in job.results:
                self._step(job)
            yield job.results.pop(number)

    def fetch(self, held: Held[Kept]) -> Kept:
        handle: Ref = held.value
        began = monotonic()
        while not self._ray.wait([handle], timeout=POLL_S)[0]:
            self._interrupt.check()
            if monotonic() - began > self._block_timeout_s:
                raise WorkLost(f"what a worker had computed did not come within {self._block_timeout_s:g} s")
        try:
            value: Kept = self._ray.get(handle)
            return value
        except self._ray.exceptions.RayError as error:
            raise self._lost(error) from error

    def _step(self, job: Job) -> None:
        """Hand out what workers are ready for, take what they have done meanwhile, look after those that are silent."""
        self._send(job)
        ready = self._ready()
        self._interrupt.check()
        for seat in tuple(self._seats):
            if seat.greeting in ready:
                self._greet(seat)
            for flight in tuple(seat.running):
                if flight.ref in ready and flight in seat.running:
                    self._receive(job, seat, flight)
        if monotonic() - self._tended > TEND_S:
            self._tended = monotonic()
            self._tend()

    def _ready(self) -> set[Ref]:
        """What has come, within a moment."""
        owed = [seat.greeting for seat in self._seats if not seat.greeted]
        refs = owed + [flight.ref for seat in self._seats for flight in seat.running]
        if not refs:
            sleep(POLL_S)
            return set()
        first, rest = self._ray.wait(refs, num_returns=1, timeout=POLL_S)
        return {*first, *(self._ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else ())}

    def _sent(self, shared: object) -> Parcel:
        """Tensors go out once: an unchanged one keeps its handle from call to call; the others' room is free first."""
        outline, leaves = taken_apart(shared, (Tensor, self._ray.ObjectRef))
        self._put = {id(each): self._put[id(each)] for each in leaves if id(each) in self._put}
        for each in leaves:
            if isinstance(each, Tensor) and id(each) not in self._put:
                self._put[id(each)] = each, self._ray.put(each)
        return Parcel(outline, [self._put[id(each)][1] if isinstance(each, Tensor) else each for each in leaves])

    def _send(self, job: Job) -> None:
        for depth in range(IN_FLIGHT):
            for seat in self._seats:
                if not job.waiting or not seat.greeted or len(seat.running) > depth:
                    continue
                if seat.running and (
                    job.waiting[0] in job.deaths or any(each.number in each.job.deaths for each in seat.running)
                ):
                    continue
                number = job.waiting.popleft()
                if not seat.running:
                    seat.since = monotonic()
                answer = self._ask(seat, job, job.items[number])
                first, *kept = answer if job.keep else [answer]
                seat.running.append(Flight(job, number, first, kept))

    def _ask(self, seat: Seat, job: Job, item: object) -> Ref:
        """Ray resolves handles that are arguments themselves, not those inside of one."""
        call = seat.actor.answer.options(num_returns=1 + job.keep)
        handles = job.shared.handles
        outline, held = taken_apart(item, self._ray.ObjectRef, first=len(handles))
        return call.remote(job.keep, job.task, (job.shared.outline, outline), *handles, *held)

    def _greet(self, seat: Seat) -> None:
        """A worker has started: from now on it is given blocks, and its silence counts."""
        try:
            greeting: Greeting = self._ray.get(seat.greeting)
        except self._ray.exceptions.RayError as error:
            self._miss(seat, error)
            return
        where = "this machine" if self._connection.own else f"node {greeting.node}"
        if greeting.failure:
            raise FedgenError(f"a Ray worker on {where} did not start: {greeting.failure}")
        self._compare(greeting, where)
        seat.greeting, seat.since, seat.failed = None, monotonic(), 0
        seat.name = f"process {greeting.pid} on {where}"

    def _miss(self, seat: Seat, error: Exception) -> None:
        """A worker died before it had started: try again, not without end."""
        self._seats.remove(seat)
        if seat.failed < DEATHS:
            self._seats.append(self._hire(seat.failed + 1))
            return
        tries = f"a Ray worker did not start in {DEATHS + 1} tries ({in_short(error)})"
        if not self._seats:
            raise FedgenError(tries) from error
        self._on_event("workers", f"{tries}; the run goes on with {counted(len(self._seats), 'other')}")

    def _compare(self, greeting: Greeting, where: str) -> None:
        """Workers on other machines must hold the same data; where other things differ, so may hashes."""
        ours, theirs = self._introduction, greeting.introduction
        differing = {key for key in ours if theirs[key] != ours[key]}
        if "data" in differing:
            raise FedgenError(
                f"{where} holds other data than this machine (its hash differs); give runtime.data_dir a folder with "
                "the same files on every machine"
            )
        if differing - self._differing:
            self._differing |= differing
            values = "; ".join(f"{key} {theirs[key]!r}, here {ours[key]!r}" for key in sorted(differing))
            self._on_event("mixed_machines", f"{where} differs from this machine, and with it the hash may: {values}")

    def _receive(self, job: Job, seat: Seat, flight: Flight) -> None:
        """job: the one that is waited for; what is left of others that were broken off interests nobody."""
        exceptions = self._ray.exceptions
        try:
            value = self._ray.get(flight.ref)
        except exceptions.RayTaskError as error:
            seat.running.remove(flight)
            seat.since = monotonic()
            if flight.job is job:
                raise self._cause(error) from error
        except exceptions.ObjectLostError:  # the answer, with a machine; the worker itself will tell
            seat.running.remove(flight)
            self._again(flight, died=True)
        except exceptions.RayError as error:
            self._lose(seat, error)
        else:
            seat.running.remove(flight)
            seat.since = monotonic()
            flight.job.results[flight.number] = put_together(value, [Held(ref) for ref in flight.kept])

    def _cause(self, error: Any) -> Exception:
        """What a task raised; where it is Ray's, something that the task was to read."""
        cause: Exception = error.cause
        if isinstance(cause, self._ray.exceptions.RayError):
            return self._lost(cause)
        return cause

    def _lost(self, error: Exception) -> WorkLost:
        return WorkLost(f"what a worker had computed was lost with its machine ({type(error).__name__})")

    def _lose(self, seat: Seat, error: Exception) -> None:
        """A worker died: the block that it was at is suspected, all that it had are computed again."""
        self._on_event("retried", f"worker {seat.name} died ({type(error).__name__}); its blocks are computed again")
        first, *others = self._dismiss(seat)
        for flight in reversed(others):
            self._again(flight, died=False)
        self._again(first, died=True)

    def _dismiss(self, seat: Seat) -> list[Flight]:
        """End a worker and hire another, which Ray starts as soon as there is room; returns the blocks that it had."""
        self._ray.kill(seat.actor)
        self._seats[self._seats.index(seat)] = self._hire()
        flights = list(seat.running)
        seat.running.clear()
        return flights

    def _again(self, flight: Flight, died: bool) -> None:
        job, number = flight.job, flight.number
        if not died:
            job.waiting.appendleft(number)
            return
        job.deaths[number] = deaths = job.deaths.get(number, 0) + 1
        if deaths <= DEATHS:
            job.waiting.append(number)
            return
        job.results[number] = BlockFailure(
            f"{deaths} workers died of it, the last {DEATHS} of them alone with it; lower runtime.workers or "
            "training.block where memory runs out"
        )

    def _tend(self) -> None:
        """Give up what has been silent for too long, and say how many workers there are where that has changed."""
        now = monotonic()
        for seat in tuple(self._seats):
            if seat.running and now - seat.since > self._block_timeout_s:
                self._give_up(seat)
            elif not seat.greeted and now - seat.since > self._worker_timeout_s:
                self._dismiss(seat)
        running = self._running()
        if running:
            self._answered = now
        elif now - self._answered > self._worker_timeout_s:
            limit = f"runtime.worker_timeout_s = {self._worker_timeout_s:g}"
            raise FedgenError(f"no Ray worker answered within {limit}: {self._shortage()}")
        if running < len(self._seats) or running != self._said or self._grows:
            self._count(running, now)

    def _give_up(self, seat: Seat) -> None:
        """Its oldest block is stuck; the next ones are computed elsewhere."""
        stuck, *others = self._dismiss(seat)
        reason = f"no answer within runtime.block_timeout_s = {self._block_timeout_s:g}"
        stuck.job.results[stuck.number] = BlockFailure(reason)
        for flight in reversed(others):
            self._again(flight, died=False)

    def _count(self, running: int, now: float) -> None:
        """Say that workers are missing, at once where Ray has no more room, else after a while; later that all run."""
        room = self._room()
        if self._grows:
            self._seats += [self._hire() for _ in range(room - len(self._seats))]
        wanted = len(self._seats)
        if running == self._said:
            return
        if running == wanted:
            self._on_event("workers", f"all {counted(wanted, 'Ray worker')} run")
        elif running >= room or all(seat.greeted or now - seat.since > PATIENCE_S for seat in self._seats):
            self._on_event("workers", f"{running} of {counted(wanted, 'Ray worker')} run: {self._shortage()}")
        else:
            return
        self._said = running

    def _room(self) -> int:
        """How many workers the cluster has CPUs for."""
        if not self._cpus:
            return len(self._seats)
        return int(self._ray.cluster_resources().get("CPU", 0)) // self._cpus

    def _shortage(self) -> str:
        """Why workers may be missing, and what helps."""
        if not self._cpus:
            return "starting one takes long, or hangs"
        cpus = counted(int(self._ray.cluster_resources().get("CPU", 0)), "CPU")
        free, each = int(self._ray.available_resources().get("CPU", 0)), counted(self._cpus, "CPU")
        return (
            f"the cluster has {cpus}, {free} of them free, and a worker takes {each}; more are taken on as they start"
        )

    def close(self) -> None:
        """Ends the workers, and the connection to Ray where it was made for runs."""
        self._put.clear()
        if self._ray.is_initialized():
            for seat in self._seats:
                self._ray.kill(seat.actor)
        self._seats = []
        self._connection.leave()
