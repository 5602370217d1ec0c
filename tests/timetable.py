"""Sessions of scripted endpoints: a timetable in, what was delivered and settled out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel

from discostream.config import CostSettings, MigrationSettings, PolicySettings
from discostream.endpoints.base import Endpoint
from discostream.endpoints.scripted import ScriptedEndpoint
from discostream.session.conversations import Conversations
from discostream.session.house import House, Surroundings
from discostream.session.knowledge import Knowledge
from discostream.session.planner import Planner
from discostream.session.run import run
from discostream.types import Delivered, Kind, Message, Outcome, Request

WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


@dataclass
class Played:
    """What one session delivered, and how it was settled."""

    pieces: list[Delivered]
    outcome: Outcome
    failure: Exception | None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def outcomes(self) -> dict[str, str]:
        return {attempt.endpoint: attempt.outcome.value for attempt in self.outcome.attempts}


@dataclass
class Book:
    """A ledger in memory."""

    outcomes: list[Outcome] = field(default_factory=list)

    async def record(self, outcome: Outcome, at_s: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.outcomes.append(outcome)


def device(name: str = "laptop", **script: object) -> ScriptedEndpoint:
    return ScriptedEndpoint.of(name, Kind.DEVICE, **{"answer": WORDS, **script})


def server(name: str = "cloud", **script: object) -> ScriptedEndpoint:
    script = {"answer": WORDS.upper(), "usd_per_mtok": 10.0, **script}
    return ScriptedEndpoint.of(name, Kind.SERVER, **script)


def a_request(text: str = "count for me", **fields: object) -> Request:
    return Request(
        messages=(Message("user", text),), arrived_at=anyio.current_time(), request_id="r1", **fields
    )


def a_house(
    endpoints: Sequence[Endpoint],
    offsets: Mapping[str, float] | None = None,
    *,
    migrate: bool = False,
    policy: PolicySettings | None = None,
    usd_per_joule: float = 0.0,
) -> House:
    by_name = {endpoint.name: endpoint for endpoint in endpoints}
    offsets = dict.fromkeys(by_name, 0.0) if offsets is None else offsets
    knowledge = Knowledge(by_name)
    planner = Planner(
        policy or PolicySettings(name="offsets", offsets=dict(offsets)),
        Surroundings(knowledge, CostSettings(usd_per_joule=usd_per_joule)),
        seed=1,
        elsewhere=lambda work: work(),
    )
    migration = MigrationSettings(enabled=migrate)
    return House(by_name, knowledge, planner, Book(), migration, Counter(), Conversations(by_name))


class AClient:
    """Reads everything at once, unless told to leave after some pieces."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.left = anyio.CancelScope()
        self.pieces: list[Delivered] = []
        self.outcome: Outcome | None = None
        self._leaves_after = leaves_after

    def take(self, piece: Delivered) -> None:
        self.pieces.append(piece)
        if len(self.pieces) == self._leaves_after:
            self.left.cancel()

    @property
    def is_full(self) -> bool:
        return self.left.cancel_called

    async def room(self) -> None:
        await anyio.lowlevel.checkpoint()

    def settled(self, outcome: Outcome) -> None:
        assert self.outcome is None
        self.outcome = outcome


async def play(house: House, request: Request | None = None, leaves_after: int | None = None) -> Played:
    client, failure = AClient(leaves_after), None
    try:
        await run(request or a_request(), house, client)
    except Exception as error:
        failure = error
    assert client.outcome is not None
    return Played(client.pieces, client.outcome, failure)
