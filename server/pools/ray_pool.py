"""The Ray pool: persistent worker processes that may die without an effect on results."""

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
"""Blocks sent to a worker at a time, so that the next one waits there while the driver handles a result."""

DEATHS = 10
"""Worker deaths after which a block fails; also failed starts after which a worker is not replaced."""

PATIENCE_S = 20.0
"""Time after which missing workers are reported."""

POLL_S, TEND_S = 0.25, 1.0

OnEvent = Callable[[str, str], None]
"""Called with (event, reason)."""


def _nothing(federation: Federation, shared: None, item: None) -> None:
    """A task that is never called."""


class RayPool:
    """Workers on Ray, each with its own copy of the federation.

    workers: their number; "auto": one per CPU core of this machine, or of the cluster, even if it grows.
    search_path: folders of a user's own modules. on_event: called when workers die, are missing or start, and when
    machines differ.

    Only workers that have started get blocks. A lost worker is replaced as soon as the cluster has a free CPU; the
    other workers continue.

    Raises FedgenError if Ray or all workers fail to start, or if a machine of the cluster has different data.
    """

    def __init__(
        self,
        federation: Federation,
        workers: int | Literal["auto"],
        interrupt: Interrupt,
        search_path: tuple[str, ...] = (),
        on_event: OnEvent = lambda event, reason: None,
    ) -> None:
        runtime = federation.experiment.runtime
        threads = federation.experiment.training.threads
        self._interrupt, self._on_event = interrupt, on_event
        self._block_timeout_s, self._worker_timeout_s = runtime.block_timeout_s, runtime.worker_timeout_s
        local = default_workers() if workers == "auto" else workers
        self._connection = connect(runtime.address, local, interrupt)
        self._ray = self._connection.ray
        self._seats = list[Seat]()
        self._put = dict[int, tuple[Tensor, Ref]]()
        try:
            if self._connection.note:
                on_event("joined", self._connection.note)
            own = self._connection.own
            self._cpus = 0 if own else threads
            self._grows = workers == "auto" and not own
            self._actor = self._ray.remote(num_cpus=self._cpus, max_restarts=0, max_task_retries=0)(RayWorker)
            modules = OwnModules(search_path) if own else packed(search_path, named(federation.experiment))
            self._setup = self._ray.put((federation.experiment, modules))
            self._introduction = introduction(federation)
            self._differing: set[str] = set()
            self._start(max(1, self._room()) if self._grows else local)
        except BaseException:
            self.close()
            raise

    def _start(self, workers: int) -> None:
        """Hire workers, and wait until all run or a shortage has been reported."""
        self._seats = [self._hire() for _ in range(workers)]
        self._said = workers
        self._answered = monotonic()
        self._tended = 0.0
        nothing = Job(_nothing, [], Parcel(None, []), 0, deque())
        while (running := self._running()) == 0 or (running < len(self._seats) and running != self._said):
            self._step(nothing)

    def _hire(self, failed: int = 0) -> Seat:
        actor = self._actor.remote()
        return Seat(actor, actor.greet.remote(self._setup), failed)

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
                raise WorkLost(f"a result of a worker did not arrive within {self._block_timeout_s:g} s")
        try:
            value: Kept = self._ray.get(handle)
            return value
        except self._ray.exceptions.RayError as error:
            raise self._lost(error) from error

    def _step(self, job: Job) -> None:
        """Send blocks to ready workers, receive results, and handle workers that time out."""
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
        """Greetings and results that have arrived."""
        owed = [seat.greeting for seat in self._seats if not seat.greeted]
        refs = owed + [flight.ref for seat in self._seats for flight in seat.running]
        if not refs:
            sleep(POLL_S)
            return set()
        first, rest = self._ray.wait(refs, num_returns=1, timeout=POLL_S)
        return {*first, *(self._ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else ())}

    def _sent(self, shared: object) -> Parcel:
        """Store the tensors with Ray. A tensor of the last call keeps its handle; others are freed first."""
        outline, leaves = taken_apart(shared, (Tensor, self._ray.ObjectRef))
        self._put = {id(leaf): self._put[id(leaf)] for leaf in leaves if id(leaf) in self._put}
        for leaf in leaves:
            if isinstance(leaf, Tensor) and id(leaf) not in self._put:
                self._put[id(leaf)] = leaf, self._ray.put(leaf)
        return Parcel(outline, [self._put[id(leaf)][1] if isinstance(leaf, Tensor) else leaf for leaf in leaves])

    def _send(self, job: Job) -> None:
        for depth in range(IN_FLIGHT):
            for seat in self._seats:
                if not job.waiting or not seat.greeted or len(seat.running) > depth:
                    continue
                if seat.running and (
                    job.waiting[0] in job.deaths or any(flight.number in flight.job.deaths for flight in seat.running)
                ):
                    continue
                number = job.waiting.popleft()
                if not seat.running:
                    seat.since = monotonic()
                answer = self._ask(seat, job, job.items[number])
                first, *kept = answer if job.keep else [answer]
                seat.running.append(Flight(job, number, first, kept))

    def _ask(self, seat: Seat, job: Job, item: object) -> Ref:
        """Send a block. Its handles are arguments of the call, as Ray does not resolve handles inside of others."""
        call = seat.actor.answer.options(num_returns=1 + job.keep)
        handles = job.shared.handles
        outline, held = taken_apart(item, self._ray.ObjectRef, first=len(handles))
        return call.remote(job.keep, job.task, (job.shared.outline, outline), *handles, *held)

    def _greet(self, seat: Seat) -> None:
        """The worker has started: it gets blocks, and its block timeout runs from now."""
        try:
            greeting: Greeting = self._ray.get(seat.greeting)
        except self._ray.exceptions.RayError as error:
            self._miss(seat, error)
            return
        where = "this machine" if self._connection.own else f"node {greeting.node}"
        if greeting.failure:
            raise FedgenError(f"a Ray worker on {where} did not start: {greeting.failure}")
        self._compare(greeting, where)
        seat.greeting = None
        seat.since = monotonic()
        seat.failed = 0
        seat.name = f"process {greeting.pid} on {where}"

    def _miss(self, seat: Seat, error: Exception) -> None:
        """A worker died before it had started: try again, at most DEATHS times."""
        self._seats.remove(seat)
        if seat.failed < DEATHS:
            self._seats.append(self._hire(seat.failed + 1))
            return
        tries = f"a Ray worker did not start in {DEATHS + 1} tries ({in_short(error)})"
        if not self._seats:
            raise FedgenError(tries) from error
        self._on_event("workers", f"{tries}; the run goes on with {counted(len(self._seats), 'other')}")

    def _compare(self, greeting: Greeting, where: str) -> None:
        """Refuse a machine with different data; report one with other versions, where hashes may differ."""
        here = self._introduction
        there = greeting.introduction
        differing = {key for key in here if there[key] != here[key]}
        if "data" in differing:
            raise FedgenError(
                f"{where} has different data than this machine (its hash differs); set runtime.data_dir to a folder "
                "with the same files on every machine"
            )
        if differing - self._differing:
            self._differing |= differing
            values = "; ".join(f"{key} {there[key]!r}, here {here[key]!r}" for key in sorted(differing))
            self._on_event("mixed_machines", f"{where} differs from this machine, so the hash may differ: {values}")

    def _receive(self, job: Job, seat: Seat, flight: Flight) -> None:
        """Take a result. job: the current call; errors in blocks of earlier, abandoned calls are ignored."""
        exceptions = self._ray.exceptions
        try:
            value = self._ray.get(flight.ref)
        except exceptions.RayTaskError as error:
            seat.running.remove(flight)
            seat.since = monotonic()
            if flight.job is job:
                raise self._cause(error) from error
        except exceptions.ObjectLostError:  # the result was lost with a machine; the worker may still be alive
            seat.running.remove(flight)
            flight.job.count_death(flight.number, DEATHS)
        except exceptions.RayError as error:
            self._lose(seat, error)
        else:
            seat.running.remove(flight)
            seat.since = monotonic()
            handles = [Held(ref) for ref in flight.kept]
            flight.job.results[flight.number] = put_together(value, handles) if handles else value

    def _cause(self, error: Any) -> Exception:
        """The exception of a task; a RayError in it means that an input of the task was lost."""
        cause: Exception = error.cause
        if isinstance(cause, self._ray.exceptions.RayError):
            return self._lost(cause)
        return cause

    def _lost(self, error: Exception) -> WorkLost:
        return WorkLost(f"a result of a worker was lost with its machine ({type(error).__name__})")

    def _lose(self, seat: Seat, error: Exception) -> None:
        """A worker died: all its blocks are computed again, and the death counts against the first one."""
        self._on_event("retried", f"worker {seat.name} died ({type(error).__name__}); its blocks are computed again")
        first, *others = self._dismiss(seat)
        for flight in reversed(others):
            flight.job.waiting.appendleft(flight.number)
        first.job.count_death(first.number, DEATHS)

    def _dismiss(self, seat: Seat) -> list[Flight]:
        """End a worker and hire another, which starts when a CPU is free; returns the blocks of the old one."""
        self._ray.kill(seat.actor)
        self._seats[self._seats.index(seat)] = self._hire()
        flights = list(seat.running)
        seat.running.clear()
        return flights

    def _tend(self) -> None:
        """Give up workers that have timed out, and report a change in the number of running workers."""
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
        """The oldest block of the worker fails; its other blocks are computed by other workers."""
        stuck, *others = self._dismiss(seat)
        reason = f"no answer within runtime.block_timeout_s = {self._block_timeout_s:g}"
        stuck.job.results[stuck.number] = BlockFailure(reason)
        for flight in reversed(others):
            flight.job.waiting.appendleft(flight.number)

    def _count(self, running: int, now: float) -> None:
        """Report missing workers, at once if the cluster has no free CPU, else after PATIENCE_S; later that all run."""
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
        """Number of workers for which the cluster has CPUs."""
        if not self._cpus:
            return len(self._seats)
        return int(self._ray.cluster_resources().get("CPU", 0)) // self._cpus

    def _shortage(self) -> str:
        """Why workers may be missing."""
        if not self._cpus:
            return "their start takes long or hangs"
        cpus = counted(int(self._ray.cluster_resources().get("CPU", 0)), "CPU")
        free = int(self._ray.available_resources().get("CPU", 0))
        return (
            f"the cluster has {cpus}, {free} of them free, and a worker takes {counted(self._cpus, 'CPU')}; others "
            "join as they start"
        )

    def close(self) -> None:
        """End the workers, and the connection to Ray if it was made for runs."""
        self._put.clear()
        if self._ray.is_initialized():
            for seat in self._seats:
                self._ray.kill(seat.actor)
        self._seats = []
        self._connection.leave()
