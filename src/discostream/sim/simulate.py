"""Many requests at once, from plan to settlement: the six steps of `session/run.py` as arithmetic on arrays.

The same functions of `core` decide who starts when and whether an answer moves. Races, handoffs and costs
follow the live path's rules exactly; a test replays requests through both. What is left out: text (an answer
is its number of tokens, and may be cut anywhere), and servers that bill on after they were cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from discostream.core.forecast import SILENCE_S
from discostream.core.handoff import handoff_s, weigh_move
from discostream.core.plans import PlanTable
from discostream.core.profile import EndpointProfile
from discostream.sim.answers import Answers
from discostream.sim.race import NOBODY, Race, run_race
from discostream.sim.world import TAKEOVER, Handoff, Luck, Requests, World
from discostream.types import Kind

__all__ = ["seams", "simulate"]

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


def simulate(world: World, table: PlanTable, requests: Requests, luck: Mapping[str, Luck]) -> Answers:
    """Answer all requests.

    Args:
        world: What they share.
        table: The plans; its columns are endpoints of the world, each at most twice.
        requests: What arrives.
        luck: By endpoint.
    """
    entered = _Field.of(world, table)
    books = _Books(world, requests, luck, entered, entered.race(world, table, requests, luck))
    books.charge_race()
    for endpoint in range(len(world.known.endpoints)):
        books.deliver(endpoint)
    return books.close()


def seams(
    world: World,
    source: EndpointProfile,
    target: EndpointProfile,
    uncached_tokens: Floats,
    output_tokens: Integers,
    recording: Integers,
) -> Integers:
    """Before which token answers should move, 0 for those that should not, shape (requests,).

    It depends on what is known, what the target would have to read of the prompt, and the recording alone, so
    each pair of those is asked once, token by token, as the live path asks before each piece. What lies in a
    cache saves energy alone, so servers, which have a price for all of a prompt, count as having to read it.

    Args:
        world: Its knowledge, reader and way of moving.
        source: Where the answers are.
        target: Where they could go.
        uncached_tokens: What the target is taken to have to read of each prompt, shape (requests,).
        output_tokens: How long the answers are, same shape.
        recording: Which recording of the source they follow, same shape.
    """
    if world.handoff is Handoff.OFF or source.rates.decode_usd <= target.rates.decode_usd:
        return np.zeros(uncached_tokens.size, np.int64)
    lengths, length = np.unique(uncached_tokens, return_inverse=True)
    pairs, pair = np.unique(recording * lengths.size + length, return_inverse=True)
    longest = np.zeros(pairs.size, np.int64)
    np.maximum.at(longest, pair, output_tokens)
    found = _first_seams(world, source, target, lengths[pairs % lengths.size], longest, pairs // lengths.size)
    return np.where(found[pair] < output_tokens, found[pair], 0)


def _first_seams(
    world: World,
    source: EndpointProfile,
    target: EndpointProfile,
    uncached_tokens: Floats,
    longest: Integers,
    recording: Integers,
) -> Integers:
    reading = world.services[source.name].reading
    found = np.zeros(longest.size, np.int64)
    undecided = np.flatnonzero(longest > 1)
    for token in range(1, int(longest.max(initial=1))):
        undecided = undecided[longest[undecided] > token]
        decision = weigh_move(
            source,
            target,
            prefill_tokens=uncached_tokens[undecided] + token,
            cached_tokens=0.0,
            remaining_tokens=world.remaining_factor * world.known.answer_tokens.remaining(token),
            unread_tokens=reading.unread_before(recording[undecided], token),
            consumption_tokens_per_s=world.consumption_tokens_per_s,
            handoff_s=world.t_m_factor * handoff_s(target, uncached_tokens[undecided] + token),
        )
        found[undecided[decision.migrate]] = token
        undecided = undecided[~decision.migrate]
        if not undecided.size:
            break
    return found


@dataclass(frozen=True, eq=False)
class _Field:
    """Who takes part in the races: a column is one attempt.

    Attributes:
        names: The endpoint of each column.
        endpoints: Its number in `World.known`, shape (columns,).
        tries: Whether it is that endpoint's first start or its second, shape (columns,).
    """

    names: tuple[str, ...]
    endpoints: Integers
    tries: Integers

    @classmethod
    def of(cls, world: World, table: PlanTable) -> _Field:
        names = [endpoint.name for endpoint in world.known.endpoints]
        tries = [table.endpoints[:column].count(name) for column, name in enumerate(table.endpoints)]
        return cls(
            table.endpoints, np.array([names.index(name) for name in table.endpoints]), np.array(tries)
        )

    def column_of(self, name: str) -> int | None:
        """Where an endpoint's first start is."""
        return next((column for column, each in enumerate(self.names) if each == name), None)

    def race(self, world: World, table: PlanTable, requests: Requests, luck: Mapping[str, Luck]) -> Race:
        """Who is first in every race."""
        uncached = requests.prompt_tokens - requests.cached_tokens
        entries = list(zip(self.names, self.tries, strict=True))
        ttft_s = [
            world.services[name].ttft_s(uncached, luck[name].ttft_s[attempt]) for name, attempt in entries
        ]
        failed_after_s = [luck[name].failed_after_s[attempt] for name, attempt in entries]
        offsets = table.offsets_of(requests.felt_tokens, requests.draws)
        return run_race(offsets, np.column_stack(ttft_s), np.column_stack(failed_after_s))


@dataclass(frozen=True, eq=False)
class _Moves:
    """How some answers change hands; shape (answers,) each.

    Attributes:
        made: Whether they do, or the target was dropped.
        resumed_s: When tokens past the seam can be delivered.
        slack_s: For how long the reader has something to read when the target speaks.
        written: What the source has written by then.
        read_tokens: What the target is charged for reading.
        cached_tokens: How much of that it had read already.
    """

    made: Flags
    resumed_s: Floats
    slack_s: Floats
    written: Integers
    read_tokens: Floats
    cached_tokens: Floats


class _Books:
    """The accounts of all requests while they are written."""

    def __init__(
        self, world: World, requests: Requests, luck: Mapping[str, Luck], entered: _Field, race: Race
    ) -> None:
        count, endpoints = len(requests), len(world.known.endpoints)
        self.world, self.requests, self.luck, self.entered, self.race = world, requests, luck, entered, race
        self.source = np.where(race.winner == NOBODY, NOBODY, entered.endpoints[race.winner])
        self.recording = np.zeros(count, np.int64)
        self.read_tokens = np.zeros((count, endpoints))
        self.cached_tokens = np.zeros((count, endpoints))
        self.wrote_tokens = np.zeros((count, endpoints))
        self.seam = np.zeros(count, np.int64)
        self.moved = np.zeros(count, bool)
        self.resumed_s = np.full(count, np.inf)
        self.delayed_tokens = np.zeros(count, np.int64)
        self.late_s = np.zeros(count)
        self.waits: list[tuple[Floats, Integers]] = []

    def charge_race(self) -> None:
        """Prompts count in full from an attempt's start, unless it was refused; caches save their energy."""
        for column, (name, endpoint) in enumerate(
            zip(self.entered.names, self.entered.endpoints, strict=True)
        ):
            refused = self.luck[name].failed_after_s[self.entered.tries[column]] < SILENCE_S
            charged = self.race.started[:, column] & ~(refused & self.race.failed[:, column])
            self.read_tokens[:, endpoint] += self.requests.prompt_tokens * charged
            if self.world.known.endpoints[endpoint].kind is Kind.DEVICE:
                wait_s = self.luck[name].wait_s(self.entered.tries[column], np.arange(charged.size))
                served = self.race.start_s[:, column] + wait_s < self.race.ended_s
                self.cached_tokens[:, endpoint] += self.requests.cached_tokens * (charged & served)

    def deliver(self, endpoint: int) -> None:
        """Stream the answers that begin at one endpoint, and move those that should."""
        rows = np.flatnonzero(self.source == endpoint)
        if not rows.size:
            return
        name = self.world.known.endpoints[endpoint].name
        reading = self.world.services[name].reading
        recording = self.luck[name].recording[self.entered.tries[self.race.winner[rows]], rows]
        tokens = self.requests.output_tokens[rows]
        self.recording[rows] = recording
        self.wrote_tokens[rows, endpoint] = tokens
        self.seam[rows] = self._seams(endpoint, rows, recording)
        moving = np.flatnonzero(self.seam[rows])
        if moving.size:
            self._hand_over(endpoint, rows[moving], recording[moving])
        from_here = np.where(self.moved[rows], self.seam[rows], tokens)
        self.waits.append(reading.waits_from_start(recording, from_here))
        self.late_s[rows] += tokens * self.race.ttft_s[rows] + reading.late_sum_s(recording, from_here)

    def close(self) -> Answers:
        """The accounts, which nothing changes any more."""
        return Answers(
            world=self.world,
            requests=self.requests,
            luck=self.luck,
            source=self.source,
            ttft_s=self.race.ttft_s,
            recording=self.recording,
            read_tokens=self.read_tokens,
            cached_tokens=self.cached_tokens,
            wrote_tokens=self.wrote_tokens,
            seam=self.seam,
            moved=self.moved,
            resumed_s=self.resumed_s,
            delayed_tokens=self.delayed_tokens,
            late_s=self.late_s,
            waits_s=np.concatenate([np.empty(0), *(spans_s for spans_s, _ in self.waits)]),
            waits=np.concatenate([np.empty(0, np.int64), *(times for _, times in self.waits)]),
        )

    def _seams(self, endpoint: int, rows: Integers, recording: Integers) -> Integers:
        """Only whom the plan names goes on with an answer, and not if it failed in the race."""
        source, seam = self.world.known.endpoints[endpoint], np.zeros(rows.size, np.int64)
        target = self.world.other_than(source.name)
        if target is None:
            return seam
        theirs = np.array(self.entered.names) == target.name
        named, failed = (
            each[np.ix_(rows, theirs)].any(axis=1) for each in (self.race.named, self.race.failed)
        )
        able = np.flatnonzero(named & ~failed)
        uncached, tokens = self._uncached_tokens(target, rows[able]), self.requests.output_tokens[rows[able]]
        seam[able] = seams(self.world, source, target, uncached, tokens, recording[able])
        return seam

    def _uncached_tokens(self, target: EndpointProfile, rows: Integers) -> Floats:
        """What a target is taken to have to read of prompts: a device knows some, and read on in the race."""
        prompt_tokens = self.requests.prompt_tokens[rows]
        if target.kind is Kind.SERVER:
            return prompt_tokens
        uncached = prompt_tokens - self.requests.cached_tokens[rows]
        column = self.entered.column_of(target.name)
        if column is None or not self.world.warm_standby:
            return uncached
        served_s = self.race.start_s[rows, column] + self.luck[target.name].wait_s(0, rows)
        return np.asarray(uncached * (1.0 - target.read_part(self.race.ended_s[rows] - served_s, uncached)))

    def _hand_over(self, endpoint: int, rows: Integers, recording: Integers) -> None:
        """Move answers before the tokens at their seams, if the target speaks in time."""
        source = self.world.known.endpoints[endpoint]
        target = self.world.other_than(source.name)
        assert target is not None
        other = self.world.known.endpoints.index(target)
        moves = self._moves(source, target, rows, recording)
        self.moved[rows], self.resumed_s[rows] = moves.made, moves.resumed_s
        self.read_tokens[rows, other] += moves.read_tokens
        self.cached_tokens[rows, other] += moves.cached_tokens
        taken, seam = rows[moves.made], self.seam[rows[moves.made]]
        rest = self.requests.output_tokens[taken] - seam
        self.wrote_tokens[taken, endpoint], self.wrote_tokens[taken, other] = moves.written[moves.made], rest
        onward = self.luck[target.name].recording[TAKEOVER, taken]
        here, there = (self.world.services[each.name].reading for each in (source, target))
        slack_s = moves.slack_s[moves.made]
        waits_s = there.waits_s(onward, rest, slack_s)
        self.waits.append((waits_s, np.ones(waits_s.size, np.int64)))
        self.delayed_tokens[taken] = there.delayed_tokens(onward, rest, slack_s)
        late_s = here.late_s[recording[moves.made], seam - 1]
        self.late_s[taken] = rest * late_s + there.felt_sum_s(onward, rest, slack_s)

    def _moves(
        self, source: EndpointProfile, target: EndpointProfile, rows: Integers, recording: Integers
    ) -> _Moves:
        here, ttft_s = self.world.services[source.name].reading, self.race.ttft_s[rows]
        seam, tokens = self.seam[rows], self.requests.output_tokens[rows]
        failed_after_s = self.luck[target.name].failed_after_s[TAKEOVER, rows]
        asked_s = ttft_s + here.at_s[recording, seam]
        dry_s = ttft_s + here.done_s(recording, seam)
        asked_tokens, luck = self.requests.prompt_tokens[rows] + seam, self.luck[target.name]
        cached_tokens, service = self._cached_tokens(target, rows), self.world.services[target.name]
        ready_s = asked_s + service.ttft_s(asked_tokens - cached_tokens, luck.ttft_s[TAKEOVER, rows])
        failed_s = asked_s + failed_after_s
        if self.world.handoff is Handoff.STOP_THEN_START:
            ready_s = np.minimum(ready_s, failed_s + target.ttft.quantile(0, 0.5))
            made = np.ones(rows.size, bool)
            return _Moves(made, ready_s, dry_s - ready_s, seam + 1, asked_tokens, cached_tokens)
        given_up_s = np.minimum(np.minimum(dry_s, failed_s), ttft_s + here.at_s[recording, tokens - 1])
        made = ready_s <= given_up_s
        refused = ~made & (failed_s <= given_up_s) & (failed_after_s < SILENCE_S)
        return _Moves(
            made=made,
            resumed_s=np.where(made, ready_s, given_up_s),
            slack_s=dry_s - ready_s,
            written=np.minimum(here.come_by(recording, ready_s - ttft_s), tokens),
            read_tokens=np.where(refused, 0.0, asked_tokens),
            cached_tokens=np.where(asked_s + luck.wait_s(TAKEOVER, rows) < given_up_s, cached_tokens, 0.0),
        )

    def _cached_tokens(self, target: EndpointProfile, rows: Integers) -> Floats:
        """What a target need not read of prompts that it takes over; some it may have read in the race."""
        if target.kind is Kind.SERVER:
            return np.zeros(rows.size)
        service, luck = self.world.services[target.name], self.luck[target.name]
        cached, column = self.requests.cached_tokens[rows], self.entered.column_of(target.name)
        if self.world.warm_standby and service.s_per_token and column is not None:
            began_s = self.race.start_s[rows, column] + service.startup_s + luck.ttft_s[0, rows]
            read = np.maximum(self.race.ended_s[rows] - began_s, 0.0) / service.s_per_token
            cached = np.minimum(cached + read, self.requests.prompt_tokens[rows])
        return cached
