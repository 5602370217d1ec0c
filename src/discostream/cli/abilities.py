"""`disco doctor --probe`: what each endpoint really does, beside what the settings say of it.

A last assistant message is taken by some servers as the beginning of the answer, and by others as history, to
which a model may well say what comes next. To tell one from the other, the partial answer breaks off within a
word, at the hyphen, where every vocabulary can: only who goes on with it begins by the other half. It begins
by what no model comes to by itself, so that who says it again is known to repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import product
from typing import Any, get_args, get_type_hints

import anyio
import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from discostream.cli.screen import output
from discostream.config import EndpointSettings, convert_options
from discostream.core.budget import most_prompt_tokens
from discostream.core.seam import NoContinuation, Proof
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.engine.catalogue import find_model
from discostream.errors import DiscoError, EndpointError, Phase
from discostream.types import Carrier, Finish, FinishReason, Message, Piece, Prefix, Request, Sampling

__all__ = ["Ability", "Probed", "probe", "show_probed", "what_probes_take"]

PATIENCE_S = 60.0
LIMIT_TOKENS = 32
"""As many as the partial answer has, for servers that repeat it, and some more."""
TOO_MANY_TOKENS = 4 * LIMIT_TOKENS
"""Whoever has said so much is not held by the limit, and is not listened to any longer."""

QUESTION = "Count from twenty to forty in English words, separated by commas."
BEGUN, OTHER_HALF = "Here is count 4071: Twenty, twenty-one, twenty-two, twenty-", "three"
REFUSED = (400, 422)
GOING_ON = "goes on with an answer"


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that an endpoint can do, or not.

    Attributes:
        configured: What the settings say; empty for what they say nothing of.
        good: Whether it does as the settings say, and as an endpoint must.
        change: The lines of its `[[endpoint]]` that would say it as it is.
    """

    name: str
    configured: str
    found: str
    good: bool = True
    change: tuple[str, ...] = ()


@dataclass
class Probed:
    """What was found out about one endpoint; or why nothing could be."""

    endpoint: str
    requests: int = 0
    abilities: list[Ability] = field(default_factory=list)
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether it answers, and does all that the settings say."""
        return self.error is None and all(ability.good for ability in self.abilities)


async def probe(settings: EndpointSettings) -> Probed:
    """Ask one endpoint a few things, and see what it makes of them."""
    probed = Probed(settings.name)
    try:
        endpoint = build_endpoint(settings)
        missing = [name for name in endpoint.models if find_model(name) is None]
        if missing:
            probed.error = f"its model is not on this machine; fetch it with: disco models {missing[0]}"
        else:
            await _Examination(endpoint, settings, probed).run()
    except DiscoError as error:
        probed.error = str(error)
    return probed


async def what_probes_take(settings: EndpointSettings) -> str:
    """What finding out about an endpoint may cost.

    Raises:
        ConfigError: Its settings are wrong.
        EndpointError: Nothing can be learnt of it.
    """
    endpoint = build_endpoint(settings)
    await endpoint.inspect()
    requests = len(_ways_to_start(endpoint)) + max(1, len(_ways_to_go_on(endpoint)))
    prompt = most_prompt_tokens(_request(), Prefix(BEGUN))
    usd = requests * endpoint.prices.usd(prompt, LIMIT_TOKENS)
    joules = requests * endpoint.energy.joules(prompt, LIMIT_TOKENS)
    return f"{endpoint.name}: up to {requests} answers of {LIMIT_TOKENS} tokens, ${usd:.6f}, {joules:.0f} J"


def show_probed(probed: Sequence[Probed]) -> None:
    """Print a table for each endpoint, and what its settings should say."""
    for each in probed:
        output.print(f"\n{each.endpoint}", style="bold")
        if each.error is not None:
            output.print(f"  {each.error}", style="red")
            continue
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        for heading in ("", "configured", "found"):
            table.add_column(heading, overflow="fold")
        for ability in each.abilities:
            style = None if ability.good else "red"
            table.add_row(ability.name, ability.configured, ability.found, style=style)
        output.print(table)
        lines = [line for ability in each.abilities for line in ability.change]
        if lines:
            output.print("  in its [[endpoint]]:", *lines, sep="\n    ")


@dataclass(frozen=True, slots=True)
class _Heard:
    """What came of one request."""

    text: str
    pieces: int
    tokens: int
    ttft_s: float | None
    finish: Finish | None
    error: EndpointError | None = None

    @property
    def limited(self) -> bool:
        """Whether it ended where it was to end."""
        if self.finish is None:
            return False
        wrote = self.finish.completion_tokens or self.tokens
        return self.finish.reason is FinishReason.LENGTH or wrote <= LIMIT_TOKENS

    @property
    def refused(self) -> bool:
        """Whether it was what was asked that was not to its liking."""
        return self.error is not None and self.error.status in REFUSED


class _Examination:
    """Of one endpoint; what is found goes into `probed`."""

    def __init__(self, endpoint: Endpoint, settings: EndpointSettings, probed: Probed) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._probed = probed
        self._cached: list[int] = []
        self._opened: dict[str, Endpoint] = {}

    async def run(self) -> None:
        """Let it start an answer, then go on with one."""
        try:
            await self._examine()
        finally:
            with anyio.CancelScope(shield=True):
                for endpoint in self._opened.values():
                    await endpoint.aclose()

    async def _examine(self) -> None:
        heard, changes = await self._start()
        self._probed.abilities += [_streaming(heard), *_of_the_start(self._endpoint, heard, changes)]
        self._probed.abilities.append(await self._going_on(changes))
        cached = f"{max(self._cached)} tokens" if self._cached else "not told"
        self._probed.abilities.append(Ability("prompt found in its cache", "", cached))

    async def _start(self) -> tuple[_Heard, dict[str, Any]]:
        """An answer that was started, at best within its limit, and the keys that this took."""
        tried = []
        for changes in _ways_to_start(self._endpoint):
            heard = await self._ask("", changes)
            if heard.error is not None and not heard.refused:
                raise heard.error
            if heard.error is None and heard.limited:
                return heard, changes
            tried.append((heard, changes))
        accepted = [one for one in tried if one[0].error is None]
        if not accepted:
            first, _ = tried[0]
            assert first.error is not None
            raise first.error
        return accepted[0]

    async def _going_on(self, changes: dict[str, Any]) -> Ability:
        claimed, verdicts = bool(self._endpoint.continues), []
        configured = _option(self._endpoint, "continuation")
        repeats = bool(_option(self._endpoint, "repeats_prefix"))
        said = f"{configured or ('yes' if claimed else 'no')}{', repeating it' if repeats else ''}"
        for way in _ways_to_go_on(self._endpoint):
            heard = await self._ask(BEGUN, changes | way)
            name = way.get("continuation", configured)
            verdict, goes_on, echoes = _judged(heard)
            verdicts.append(f"{name}: {verdict}" if name else verdict)
            if heard.error is not None and not heard.refused:
                return Ability(GOING_ON, said, verdicts[-1], False)
            if goes_on:
                as_said = claimed and configured in ("auto", name)
                lines = {} if as_said else {"continuation": name}
                lines |= {"repeats_prefix": echoes} if echoes != repeats and "repeats_prefix" in way else {}
                return Ability(GOING_ON, said, verdicts[-1], as_said or not claimed, _toml(lines))
        lines = {"continuation": "none"} if claimed and configured else {}
        found = verdicts[0] if verdicts else "its dialect takes no partial answers"
        return Ability(GOING_ON, said, found, not claimed, _toml(lines))

    async def _ask(self, told: str, changes: dict[str, Any]) -> _Heard:
        endpoint = self._with(changes)
        await endpoint.prepare()
        heard = await _listen(endpoint, told)
        self._probed.requests += 1
        if heard.finish is not None and heard.finish.cached_tokens is not None:
            self._cached.append(heard.finish.cached_tokens)
        return heard

    def _with(self, changes: dict[str, Any]) -> Endpoint:
        """The endpoint as it would be with other keys."""
        as_text = json.dumps(changes, sort_keys=True)
        if as_text not in self._opened:
            options = self._settings.options | changes
            self._opened[as_text] = build_endpoint(msgspec.structs.replace(self._settings, options=options))
        return self._opened[as_text]


async def _listen(endpoint: Endpoint, told: str) -> _Heard:
    """One answer, as far as it is of interest."""
    texts: list[str] = []
    tokens, ttft_s, finish, failure = 0, None, None, None
    asked_at = anyio.current_time()
    try:
        with anyio.fail_after(PATIENCE_S):
            async with aclosing(endpoint.generate(_request(), Prefix(told))) as events:
                async for event in events:
                    if isinstance(event, Finish):
                        finish = event
                    elif isinstance(event, Piece) and event.text:
                        ttft_s = anyio.current_time() - asked_at if ttft_s is None else ttft_s
                        texts.append(event.text)
                        tokens += event.tokens
                        if tokens > TOO_MANY_TOKENS:
                            break
    except TimeoutError:
        failure = EndpointError(endpoint.name, Phase.PREFILL, f"no answer within {PATIENCE_S:.0f} s")
    except EndpointError as error:
        failure = error
    return _Heard("".join(texts), len(texts), tokens, ttft_s, finish, failure)


def _streaming(heard: _Heard) -> Ability:
    if heard.ttft_s is None:
        return Ability("streams", "", f"no text within {LIMIT_TOKENS} tokens; it may be thinking")
    pieces = f"{heard.pieces} pieces" if heard.pieces > 1 else "all in one piece"
    return Ability("streams", "", f"{pieces}, the first after {heard.ttft_s:.2f} s", heard.pieces > 1)


def _of_the_start(endpoint: Endpoint, heard: _Heard, changes: dict[str, Any]) -> Iterator[Ability]:
    """Whether the limit holds and tokens are counted, by which keys."""
    limit = {key: value for key, value in changes.items() if key == "max_tokens_field"}
    how = f", as {limit['max_tokens_field']}" if limit else ""
    found = f"yes{how}" if heard.limited else "no; more was said than was asked for"
    asked = _option(endpoint, "max_tokens_field") or ""
    yield Ability("keeps to max_tokens", asked, found, heard.limited and not limit, _toml(limit))
    counting = {key: value for key, value in changes.items() if key == "include_usage"}
    asked = {True: "asked for", False: "not asked for", None: ""}[_option(endpoint, "include_usage")]
    found = f"{_counts(heard.finish)}{'; to be asked for them is refused' if counting else ''}"
    yield Ability("counts tokens", asked, found, not counting, _toml(counting))


def _counts(finish: Finish | None) -> str:
    if finish is None or finish.prompt_tokens is None:
        return "not told"
    return f"{finish.prompt_tokens} prompt, {finish.completion_tokens} answer"


def _judged(heard: _Heard) -> tuple[str, bool, bool]:
    """What an endpoint made of the partial answer; whether it went on, and repeated it first."""
    if heard.error is not None:
        return f"{'refused' if heard.refused else 'failed'}: {heard.error.message}", False, False
    text = heard.text.lstrip()
    if text.startswith(BEGUN):
        goes_on = text.removeprefix(BEGUN).startswith(OTHER_HALF)
        return f"repeated it{' and went on' if goes_on else ''}", goes_on, True
    if text.startswith(OTHER_HALF):
        return "went on", True, False
    proof = Proof(BEGUN)
    try:
        _ = proof.feed(text) or proof.end()
    except NoContinuation as found:
        return str(found), False, False
    return f"said something else: {text[:20]!r}" if text else "said nothing", False, False


def _ways_to_start(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The keys to try until an answer starts and ends as it should, first of all those of the settings."""
    field_name, counts = _option(endpoint, "max_tokens_field"), _option(endpoint, "include_usage")
    if field_name is None:
        return [{}]
    (other,) = {"max_tokens", "max_completion_tokens"} - {field_name}
    ways: Iterator[tuple[dict[str, Any], ...]] = product(
        ({}, {"include_usage": False}) if counts else ({},), ({}, {"max_tokens_field": other})
    )
    return [one | two for one, two in ways]


def _ways_to_go_on(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The keys to try until an answer is gone on with, first of all those of the settings."""
    configured = _option(endpoint, "continuation")
    if configured is None:
        return [{}] if Carrier.TEXT in endpoint.continues else []
    known = get_args(get_type_hints(type(endpoint).Options)["continuation"])
    names = sorted(set(known) - {"none", "auto"}, key=lambda name: (name != configured, -known.index(name)))
    bare = {} if _option(endpoint, "repeats_prefix") is None else {"repeats_prefix": False}
    return [{"continuation": name, **bare} for name in names]


def _option(endpoint: Endpoint, key: str) -> Any:
    """What holds for the endpoint, be it said or by default; `None` if its dialect has no such key."""
    return getattr(convert_options(endpoint.settings, type(endpoint).Options), key, None)


def _toml(keys: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key} = {json.dumps(value)}" for key, value in keys.items())


def _request() -> Request:
    return Request(
        messages=(Message("user", QUESTION),),
        arrived_at=0.0,
        request_id="doctor",
        max_tokens=LIMIT_TOKENS,
        sampling=Sampling(temperature=0.0),
    )
