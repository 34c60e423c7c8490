"""A swarm in discrete events: arrivals, hops, batches, joins, leaves, crashes and slow-downs, from 3 nodes to 10,000.

The event loop is a heap of (time, number, what). A node serves one batch at a time: decode steps that wait, and one
chunk of a prompt, so that decode never waits behind a long prompt. Of the decode steps it takes no more than would be
there if they were spread evenly over their chains: else all of them gather in one batch, and every stage waits for it.
Nodes and links take the times of `node.plan.chain_time`, so that one user alone gets what that says; a link carries
one message after another. Who holds what and who serves whom is up to a `Scheduler`: ours (`TwoPhase`), or another to
compare with.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from node.errors import BadPool, DoesNotFit, NoRoute
from node.plan.chain_time import CHUNK_TOKENS, NodeTimes, hop_time, node_times
from node.plan.costs.model import ModelCost
from node.plan.machines.pool import Links, Pool, PoolNode, Workload, checked
from node.plan.moving.replan import LOAD_RATE, LOAD_S, replan
from node.plan.placement.allocate import allocate
from node.plan.placement.allocation import Allocation, Objective, Stage
from node.plan.placement.water_filling import whole
from node.plan.routing.hosts import PART_WORTH
from node.plan.routing.router import Host, Request, Router, route_or_wait

MOST_IN_BATCH = 64
ROUNDING = 1e-9
USUAL_WORK = Workload(448, 128)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request. Raises BadPool for figures that cannot be."""

    at_ms: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        checked("arrival", "at_ms", self.at_ms, zero=True)
        for key in ("prompt_tokens", "output_tokens"):
            if not whole(getattr(self, key)):
                raise BadPool("arrival", key, "is not a whole number")
            checked("arrival", key, getattr(self, key))


@dataclass(frozen=True, slots=True)
class Happening:
    """A change of the pool. `node` is its new self for join and slow-down."""

    at_ms: float
    kind: Literal["join", "leave", "crash", "slow"]
    node: PoolNode

    def __post_init__(self) -> None:
        checked("happening", "at_ms", self.at_ms, zero=True)


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was answered."""

    arrived_ms: float
    first_token_ms: float
    """After its arrival."""
    done_ms: float
    """Likewise."""
    tokens: int
    restarts: int
    """Chains that it lost to a crash."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    served: tuple[Served, ...]
    unserved: int
    """Requests that were not answered when the time was over."""
    span_ms: float
    """Until the last answer."""
    steady_tokens_per_s: float = 0.0
    """Likewise, between the first users' answers and the last questions, where only so many ask at once."""

    @property
    def tokens_per_s(self) -> float:
        """Of all users together."""
        return 1000 * sum(s.tokens for s in self.served) / self.span_ms if self.span_ms > 0 else 0.0

    @property
    def mean_ms(self) -> float:
        """Mean time to answer."""
        return sum(s.done_ms for s in self.served) / len(self.served) if self.served else float("inf")

    def percentile_ms(self, percent: float) -> float:
        """Time to answer that so many per cent stay below."""
        times = sorted(s.done_ms for s in self.served)
        return times[min(len(times) - 1, int(len(times) * percent / 100))] if times else float("inf")


class Scheduler(Protocol):
    """Places layers and picks chains. Hosts carry what their nodes would report: time, load and KV room.

    One with a true `ends_at_client` leaves embedding and LM head to whoever asks: they take neither room nor time here.
    """

    def place(self, pool: Pool) -> Sequence[Stage]:
        """The layout for the pool as it is now; called at the start and after every change of it."""
        ...

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        """A chain, or None while there is none. `changed`: other ranges are held than at the last call."""
        ...


class TwoPhase:
    """Parallax itself: `allocate` and `replan` place, `Router` routes."""

    def __init__(self, model: ModelCost, objective: Objective, workload: Workload) -> None:
        self._model, self._objective, self._workload = model, objective, workload
        self._plan: Allocation | None = None
        self._links = Links()
        self._router: Router | None = None

    def place(self, pool: Pool) -> Sequence[Stage]:
        """Phase 1, then the least change."""
        self._links = pool.links
        try:
            if self._plan is None:
                plan = allocate(self._model, pool.nodes, pool.links, self._objective, workload=self._workload)
            else:
                plan = replan(self._plan, pool).plan
        except DoesNotFit:
            return ()
        self._plan = plan
        return tuple(plan.stages())

    def route(self, hosts: Sequence[Host], changed: bool, request: Request) -> Sequence[Stage] | None:
        """Phase 2."""
        if changed or self._router is None:
            self._router = Router(self._model.layers, hosts, self._links)
        else:
            self._router.update(hosts)
        try:
            found = route_or_wait(self._router, request)
        except NoRoute:
            return None
        return found.stages if found is not None else None


@dataclass(slots=True, eq=False)
class _Session:
    """A request on its way."""

    arrival: Arrival
    number: int
    chain: Sequence[Stage] = ()
    made: int = 0
    life: int = 0
    """Counts chains; what an earlier chain still sends is ignored."""
    first_ms: float | None = None


@dataclass(slots=True, eq=False)
class _Work:
    """One session's visit to one stage."""

    session: _Session
    life: int
    stage: int
    tokens: int
    """Of a prompt's chunk; 1 for a decode step."""
    prompt: bool
    last: bool
    """Whether a token follows."""


@dataclass(slots=True, eq=False)
class _Machine:
    """A node as the simulation runs it."""

    node: PoolNode
    times: NodeTimes
    queue: deque[_Work] = field(default_factory=deque)
    busy: bool = False
    load: float = 0.0
    """Sequences that are here at a time when all are spread evenly over their chains."""
    kv_used: int = 0
    """Token-layers in its cache."""


class Simulation:
    """One run: a pool, a trace of requests, and changes of the pool."""

    def __init__(
        self,
        model: ModelCost,
        pool: Pool,
        scheduler: Scheduler,
        arrivals: Sequence[Arrival],
        happenings: Sequence[Happening] = (),
        work: Workload = USUAL_WORK,
        at_once: int | None = None,
    ) -> None:
        """`work` tells how long the sequences are whose steps are timed; `at_once`: so many users, who ask again
        when they are answered."""
        self._at_once = at_once
        self._token_times: list[float] = []
        self._all_ask_ms = [float("inf"), float("inf")]
        """From when until when as many run as there are users, and no longer all for the first time."""
        self.model, self.links, self.scheduler = model, pool.links, scheduler
        self._work = work
        self._ends_at_client: bool = getattr(scheduler, "ends_at_client", False)
        self._lanes_free_ms: dict[tuple[str, str, bool], float] = {}
        """By direction, and whether for prompts: when what is being sent has gone out."""
        self.now_ms = 0.0
        self._events: list[tuple[float, int, object]] = []
        self._count = 0
        self._machines = {node.node_id: self._machine(node) for node in pool.nodes}
        self._ready: dict[tuple[str, int, int], float] = {}
        """Held ranges, and since when they serve."""
        self._until: dict[tuple[str, int, int], float] = {}
        """Ranges that a new one takes the place of, and when."""
        self._hosts_stale = True
        self._serving: list[tuple[_Machine, int, int, int]] = []
        """Machines, the ranges that serve, and token-layers that fit beside the weights."""
        self._changes_due = len(happenings)
        """Happenings and loads to come: who finds no room before them may find it later."""
        self._hopeless = 0
        """Requests that no node ever had room for."""
        self._waiting: deque[_Session] = deque()
        self._running: set[_Session] = set()
        self._served: list[Served] = []
        for number, arrival in enumerate(arrivals):
            self._at(arrival.at_ms, _Session(arrival, number))
        for happening in happenings:
            self._at(happening.at_ms, happening)
        for stage in scheduler.place(pool):
            self._ready[stage.node_id, stage.start, stage.end] = 0.0

    def run(self, until_ms: float = float("inf")) -> Outcome:
        """Plays all events up to `until_ms`."""
        while self._events and self._events[0][0] <= until_ms:
            self.now_ms, _, what = heapq.heappop(self._events)
            if isinstance(what, _Work):
                self._arrive(what)
            elif isinstance(what, _Machine):
                self._start_batch(what)
            elif isinstance(what, list):
                self._finish_batch(what)
            elif isinstance(what, _Session):
                self._waiting.append(what)
                self._admit()
            elif isinstance(what, Happening):
                self._changes_due -= 1
                self._happen(what)
            else:
                self._changes_due -= 1
                self._hosts_stale = True
                self._admit()
        span = max((s.arrived_ms + s.done_ms for s in self._served), default=0.0)
        since, until = self._all_ask_ms
        made = sum(since < at <= until for at in self._token_times)
        steady = 1000 * made / (until - since) if until > since else 0.0
        return Outcome(tuple(self._served), len(self._waiting) + len(self._running) + self._hopeless, span, steady)

    def _at(self, at_ms: float, what: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ms, self._count, what))

    def _machine(self, node: PoolNode) -> _Machine:
        times = node_times(self.model, node, self._work)
        return _Machine(node, times._replace(head_ms=0.0, large_head_ms=0.0) if self._ends_at_client else times)

    def _weights(self, start: int, end: int) -> int:
        ends = self.model.ends_bytes(first=start == 0, last=end == self.model.layers)
        return self.model.range_bytes(start, end) - (ends if self._ends_at_client else 0)

    def _current_hosts(self) -> list[Host]:
        """What serves now. Which ranges do changes only with the pool and with loads."""
        token_bytes = max(1, self.model.kv_token_bytes)
        if self._hosts_stale:
            self._serving = []
            for (node_id, start, end), since_ms in sorted(self._ready.items()):
                machine = self._machines.get(node_id)
                gone = self._until.get((node_id, start, end), float("inf")) <= self.now_ms
                if machine is not None and since_ms <= self.now_ms and not gone:
                    room = (machine.node.memory_bytes - self._weights(start, end)) // token_bytes
                    self._serving.append((machine, start, end, room))
        return [
            Host(
                machine.node.node_id,
                start,
                end,
                machine.times.layer_ms,
                machine.node.region,
                machine.load,
                max(0, (room - machine.kv_used) // (end - start)),
                overhead_ms=machine.times.overhead_ms,
                head_ms=machine.times.head_ms,
                chunk_layer_ms=machine.times.chunk_layer_ms,
            )
            for machine, start, end, room in self._serving
        ]

    def _admit(self) -> None:
        """Gives waiting sessions chains, in order, until one finds none."""
        while self._waiting:
            if self._at_once is not None and len(self._running) >= self._at_once:
                return
            session = self._waiting[0]
            left = session.arrival.output_tokens - session.made
            prompt = session.arrival.prompt_tokens + session.made
            request = Request(
                self.model.hop_bytes(1),
                prompt + left,
                spread=session.number,
                part_worth=PART_WORTH,
                prompt_tokens=prompt,
                output_tokens=left,
            )
            chain = self.scheduler.route(self._current_hosts(), self._hosts_stale, request)
            self._hosts_stale = False
            if chain is None and not self._running and not self._changes_due:
                self._waiting.popleft()  # it would hold up all behind it for ever
                self._hopeless += 1
                continue
            if chain is None or any(stage.node_id not in self._machines for stage in chain):
                return
            self._waiting.popleft()
            session.chain, session.life = tuple(chain), session.life + 1
            self._running.add(session)
            self._hold(session, 1)
            for start in range(0, prompt, CHUNK_TOKENS):
                tokens = min(CHUNK_TOKENS, prompt - start)
                last = start + tokens == prompt
                self._at(self.now_ms, _Work(session, session.life, 0, tokens, True, last))

    def _hold(self, session: _Session, sign: int) -> None:
        """Takes or frees a session's room on its chain."""
        tokens = session.arrival.prompt_tokens + session.arrival.output_tokens
        for stage in session.chain:
            machine = self._machines.get(stage.node_id)
            if machine is not None:
                machine.load = max(0.0, machine.load + sign / len(session.chain))  # rounding leaves less than nothing
                machine.kv_used += sign * tokens * stage.layers

    def _arrive(self, work: _Work) -> None:
        if work.life != work.session.life:
            return
        machine = self._machines[work.session.chain[work.stage].node_id]
        machine.queue.append(work)
        if not machine.busy:
            machine.busy = True
            self._at(self.now_ms, machine)

    def _start_batch(self, machine: _Machine) -> None:
        """All decode steps that wait, and the first chunk of a prompt."""
        batch: list[_Work] = []
        rest: deque[_Work] = deque()
        decodes, heads, prompt_ms, chunk = 0, 0, 0.0, False
        layers, span = 0, set[int]()
        most = min(MOST_IN_BATCH, max(1, math.ceil(machine.load - ROUNDING)))
        while machine.queue:
            work = machine.queue.popleft()
            if work.life != work.session.life:
                continue
            stage = work.session.chain[work.stage]
            if (work.prompt and chunk) or (not work.prompt and decodes == most):
                rest.append(work)
                continue
            if work.prompt:
                chunk = True
                prompt_ms = machine.times.stage(stage.layers, last=False).prompt_step_ms(work.tokens)
                prompt_ms -= machine.times.overhead_ms  # of the batch, below
            else:
                decodes += 1
                layers += stage.layers
                span.update(range(stage.start, stage.end))
            if work.last and stage.end == self.model.layers:
                heads += 1
            batch.append(work)
        machine.queue = rest
        if not batch or machine.node.node_id not in self._machines:
            machine.busy = False
            return
        # Each layer runs once for those who want it there: nobody is charged for layers that only others run.
        one = machine.times._replace(overhead_ms=0.0, head_ms=0.0, large_head_ms=0.0).stage(1, last=False)
        further_ms = one.batch_step_ms(2) - one.batch_step_ms(1)
        decode_ms = len(span) * (one.batch_step_ms(1) - further_ms) + layers * further_ms
        heads_only = machine.times._replace(overhead_ms=0.0).stage(0, last=True)
        head_ms = heads_only.batch_step_ms(heads) if heads else 0.0
        took_ms = decode_ms + prompt_ms + head_ms + machine.times.overhead_ms
        self._at(self.now_ms + took_ms, [machine, batch])

    def _finish_batch(self, done: list[object]) -> None:
        machine, batch = done
        assert isinstance(machine, _Machine)
        assert isinstance(batch, list)
        if self._machines.get(machine.node.node_id) is not machine:
            return
        for work in batch:
            if work.life == work.session.life:
                self._pass_on(work, machine.node)
        self._at(self.now_ms, machine)

    def _pass_on(self, work: _Work, node: PoolNode) -> None:
        session = work.session
        if work.stage + 1 < len(session.chain):
            following = self._machines.get(session.chain[work.stage + 1].node_id)
            if following is not None:
                there_ms = self._send(node, following.node, self.model.hop_bytes(work.tokens), work.prompt)
                self._at(there_ms, replace(work, stage=work.stage + 1))
            return
        if not work.last:
            return
        session.made += 1
        self._token_times.append(self.now_ms)
        if session.first_ms is None:
            session.first_ms = self.now_ms - session.arrival.at_ms
        if session.made >= session.arrival.output_tokens:
            self._complete(session)
            return
        first = self._machines.get(session.chain[0].node_id)
        if first is not None:
            there_ms = self._send(node, first.node, 0.0, prompt=False)
            self._at(there_ms, _Work(session, session.life, 0, 1, False, True))

    def _send(self, a: PoolNode, b: PoolNode, sent_bytes: float, prompt: bool) -> float:
        """When a message is there. Links have two lanes: decode steps do not wait for prompts."""
        hop, lane = hop_time(self.links, a, b), (a.node_id, b.node_id, prompt)
        self._lanes_free_ms[lane] = max(self.now_ms, self._lanes_free_ms.get(lane, 0.0)) + sent_bytes * hop.byte_ms
        return self._lanes_free_ms[lane] + hop.way_ms

    def _complete(self, session: _Session) -> None:
        self._hold(session, -1)
        self._running.discard(session)
        arrived = session.arrival.at_ms
        first_ms = session.first_ms or 0.0
        tokens = session.arrival.output_tokens
        self._served.append(Served(arrived, first_ms, self.now_ms - arrived, tokens, session.life - 1))
        session.life += 1
        if self._at_once is not None:
            if len(self._served) == self._at_once:
                self._all_ask_ms[0] = self.now_ms
            if not self._waiting:
                self._all_ask_ms[1] = min(self._all_ask_ms[1], self.now_ms)
        self._admit()

    def _happen(self, happening: Happening) -> None:
        node_id = happening.node.node_id
        if happening.kind in ("leave", "crash"):
            self._lose(node_id)
        elif node_id in self._machines:  # who is told to join and is here has new figures at most
            fresh = self._machine(happening.node)
            machine = self._machines[node_id]
            machine.node, machine.times = fresh.node, fresh.times
        elif happening.kind == "join":
            self._machines[node_id] = self._machine(happening.node)
        self._place_again()
        self._admit()

    def _lose(self, node_id: str) -> None:
        """Sessions on the lost node start again elsewhere with what they have."""
        lost = [s for s in self._running if any(stage.node_id == node_id for stage in s.chain)]
        for session in sorted(lost, key=lambda s: -s.number):
            self._hold(session, -1)
            self._running.discard(session)
            session.life += 1
            self._waiting.appendleft(session)
        self._machines.pop(node_id, None)
        self._ready = {held: since for held, since in self._ready.items() if held[0] != node_id}
        self._hosts_stale = True

    def _place_again(self) -> None:
        """A new layout: what is new serves once it is loaded, what was there goes on until then."""
        nodes = tuple(machine.node for machine in self._machines.values())
        layout = self.scheduler.place(Pool(nodes, self.links))
        before = {
            held: since for held, since in self._ready.items() if self._until.get(held, self.now_ms + 1) > self.now_ms
        }
        self._ready, self._until = {}, {}
        held = {
            node.node_id: [(s, e, since) for (n, s, e), since in before.items() if n == node.node_id] for node in nodes
        }
        loaded = [(stage, self._loaded_ms(stage, held[stage.node_id])) for stage in layout]
        done_ms = max((ready_ms for _, ready_ms in loaded), default=0.0)
        for stage, ready_ms in loaded:
            own = held[stage.node_id]
            serves = (stage.start, stage.end) in [(s, e) for s, e, since in own if since <= self.now_ms]
            if ready_ms <= self.now_ms and not serves:  # it gives layers up when others have theirs, as members do
                ready_ms = done_ms
            if ready_ms > self.now_ms:
                self._changes_due += 1
                self._at(ready_ms, "loaded")
                for s, e, since in own:  # its old range serves until the new one does
                    if since <= self.now_ms:
                        self._ready[stage.node_id, s, e] = since
                        self._until[stage.node_id, s, e] = ready_ms
            self._ready[stage.node_id, stage.start, stage.end] = ready_ms
        self._hosts_stale = True

    def _loaded_ms(self, stage: Stage, held: Sequence[tuple[int, int, float]]) -> float:
        """When its node has the range, with what it holds: start, end, since when."""
        within = [since for start, end, since in held if start <= stage.start and stage.end <= end]
        if within:
            return min(within)
        kept = max((max(0, min(end, stage.end) - max(start, stage.start)) for start, end, _ in held), default=0)
        return self.now_ms + 1000 * (LOAD_S + (stage.layers - kept) * self.model.layer_bytes / LOAD_RATE)
