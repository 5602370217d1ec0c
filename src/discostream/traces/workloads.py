"""Recorded workloads: how long the prompts and answers of requests are, and when they came."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from discostream.builtin import builtin_output_lengths, builtin_prompt_lengths
from discostream.config import suggest
from discostream.errors import ConfigError
from discostream.traces.paces import strata
from discostream.traces.servers import BUILTIN, BUILTIN_REQUESTS, CHARS_PER_TOKEN, whole_tokens
from discostream.traces.tables import Table, read_table, stem

__all__ = ["Workload", "read_workload"]

Floats = NDArray[np.float64]

CHAT = "chat"

NotNegative = Annotated[float, Meta(ge=0.0)]


@dataclass(frozen=True, eq=False)
class Workload:
    """Requests, a row each; where they have arrival times, in their order.

    Attributes:
        name: The file's, without what says its format, or what follows `builtin:`.
        prompt_tokens: Whole and at least one, shape (requests,).
        output_tokens: The length of each one's answer, likewise; `None` if not recorded.
        arrived_at_s: Seconds after the first, never falling; `None` if not recorded.
        cached_tokens: How much of each prompt its endpoint had read before; `None` if not recorded.
        note: What was estimated or left out, in words; empty if nothing.
    """

    name: str
    prompt_tokens: Floats
    output_tokens: Floats | None = None
    arrived_at_s: Floats | None = None
    cached_tokens: Floats | None = None
    note: str = ""

    def __len__(self) -> int:
        return self.prompt_tokens.size

    def rows(self, rows: NDArray[np.intp]) -> Workload:
        """These rows; arrival times stay what they were, so they must be taken in order where these count."""

        def of(column: Floats | None) -> Floats | None:
            return None if column is None else column[rows]

        return replace(
            self,
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=of(self.output_tokens),
            arrived_at_s=of(self.arrived_at_s),
            cached_tokens=of(self.cached_tokens),
        )


def read_workload(source: str) -> Workload:
    """The requests of `builtin:chat` or of a file, told by its columns.

    Raises:
        ConfigError: There is no such file, or it holds what cannot be right, or no requests.
    """
    if source.startswith(BUILTIN):
        return _builtin(source)
    path = Path(source)
    if not path.exists():
        raise ConfigError(f"workload {source!r}: there is no such file; {suggest(source, [BUILTIN + CHAT])}")
    table = read_table(path)
    kind = _kind_of(table.columns)
    if kind is None:
        wanted = "; or ".join(f"{', '.join(each.columns)} ({each.says})" for each in KINDS)
        raise ConfigError(
            f"{path}: is no workload: it has the columns {', '.join(table.columns)}; wanted: {wanted}"
        )
    return _in_order(kind.read(stem(path), table))


def _builtin(source: str) -> Workload:
    if source != BUILTIN + CHAT:
        raise ConfigError(f"workload {source!r}: no such workload; {suggest(source, [BUILTIN + CHAT])}")
    rng = np.random.default_rng(0)
    prompts, answers = (
        whole_tokens(rng.permutation(strata(lengths, BUILTIN_REQUESTS)))
        for lengths in (builtin_prompt_lengths(), builtin_output_lengths())
    )
    return Workload(CHAT, prompts, answers, note="prompt and answer lengths are independent of each other")


@dataclass(frozen=True)
class _Kind:
    """A kind of file.

    Attributes:
        says: What people call it.
        columns: What it must have.
        read: Makes a workload of its name and rows.
    """

    says: str
    columns: tuple[str, ...]
    read: Callable[[str, Table], Workload]


def _kind_of(columns: Collection[str]) -> _Kind | None:
    return next((kind for kind in KINDS if set(kind.columns) <= set(columns)), None)


def _in_order(workload: Workload) -> Workload:
    at_s = workload.arrived_at_s
    if at_s is None:
        return workload
    order = np.argsort(at_s, kind="stable")
    return replace(workload.rows(order), arrived_at_s=at_s[order] - at_s[order[0]])


def _own(name: str, table: Table) -> Workload:
    def optional(column: str, least: float = 0.0) -> Floats | None:
        return table.numbers(column, least=least) if column in table.columns else None

    prompt_tokens, cached_tokens = table.numbers("prompt_tokens", least=1), optional("cached_tokens")
    if cached_tokens is not None and np.any(cached_tokens > prompt_tokens):
        row = int(np.argmax(cached_tokens > prompt_tokens))
        raise table.wrong(row, "cached_tokens", f"must be at most the {prompt_tokens[row]:g} of the prompt")
    output_tokens = optional("output_tokens", least=1)
    return Workload(
        name,
        whole_tokens(prompt_tokens),
        None if output_tokens is None else whole_tokens(output_tokens),
        optional("arrived_at_s"),
        cached_tokens,
    )


def _azure(name: str, table: Table) -> Workload:
    arrived_at_s = table.seconds_since_first("TIMESTAMP")
    return replace(_lengths("ContextTokens", "GeneratedTokens")(name, table), arrived_at_s=arrived_at_s)


def _mooncake(name: str, table: Table) -> Workload:
    arrived_at_s = table.numbers("timestamp_ms") / 1000
    return replace(_lengths("input_length", "output_length")(name, table), arrived_at_s=arrived_at_s)


def _lengths(prompt: str, output: str) -> Callable[[str, Table], Workload]:
    """Reads two columns of counted tokens."""

    def read(name: str, table: Table) -> Workload:
        return Workload(name, whole_tokens(table.numbers(prompt)), whole_tokens(table.numbers(output)))

    return read


class _Answer(Struct):
    """Arena-Hard's account of a model's answer."""

    chars: NotNegative
    tokens: NotNegative | None = None

    @property
    def length(self) -> float:
        return self.chars / CHARS_PER_TOKEN if self.tokens is None else self.tokens


class _Question(Struct):
    """A prompt and, for each model that was asked, its answer; the first one counts."""

    prompt: str
    outputs: dict[str, _Answer] = {}

    @property
    def prompt_tokens(self) -> float:
        return len(self.prompt) / CHARS_PER_TOKEN

    @property
    def output_tokens(self) -> float | None:
        return next((answer.length for answer in self.outputs.values()), None)


class _Instance(Struct):
    """One input to an instruction, and what should come of it."""

    input: str = ""
    output: str | None = None


class _Task(Struct):
    """Self-Instruct's: an instruction, and the inputs it was given."""

    instruction: str
    instances: Annotated[list[_Instance], Meta(min_length=1)]

    @property
    def prompt_tokens(self) -> float:
        return len(self.instruction + self.instances[0].input) / CHARS_PER_TOKEN

    @property
    def output_tokens(self) -> float | None:
        output = self.instances[0].output
        return None if output is None else len(output) / CHARS_PER_TOKEN


class _Part(Struct):
    """A part of a message; an image has no text."""

    text: str = ""


class _Message(Struct):
    """One turn of a chat, in OpenAI's words."""

    role: str
    content: str | list[_Part] | None = None

    @property
    def chars(self) -> int:
        if isinstance(self.content, list):
            return sum(len(part.text) for part in self.content)
        return len(self.content or "")


class _Chat(Struct):
    """A conversation; its last message is the answer, not a part of the prompt, if the assistant wrote it."""

    messages: Annotated[list[_Message], Meta(min_length=1)]

    @property
    def answered(self) -> bool:
        return self.messages[-1].role == "assistant"

    @property
    def prompt_tokens(self) -> float:
        asked = self.messages[:-1] if self.answered else self.messages
        return sum(message.chars for message in asked) / CHARS_PER_TOKEN

    @property
    def output_tokens(self) -> float | None:
        return self.messages[-1].chars / CHARS_PER_TOKEN if self.answered else None


def _texts(shape: type[_Question | _Task | _Chat]) -> Callable[[str, Table], Workload]:
    """Reads texts; answers count where every prompt has one."""

    def read(name: str, table: Table) -> Workload:
        rows = table.objects(shape)
        prompts = np.array([row.prompt_tokens for row in rows])
        answers = [tokens for row in rows if (tokens := row.output_tokens) is not None]
        known = len(answers) == len(rows)
        return Workload(
            name,
            whole_tokens(prompts),
            whole_tokens(np.array(answers)) if known else None,
            note=f"tokens estimated at {CHARS_PER_TOKEN:g} characters each",
        )

    return read


KINDS = (
    _Kind("your own", ("prompt_tokens",), _own),
    _Kind("Azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _azure),
    _Kind("Mooncake", ("timestamp_ms", "input_length", "output_length"), _mooncake),
    _Kind(
        "Vidur",
        ("num_prefill_tokens", "num_decode_tokens"),
        _lengths("num_prefill_tokens", "num_decode_tokens"),
    ),
    _Kind("Self-Instruct's texts", ("instruction", "instances"), _texts(_Task)),
    _Kind("chats as OpenAI writes them", ("messages",), _texts(_Chat)),
    _Kind("prompts, perhaps with Arena-Hard's outputs", ("prompt",), _texts(_Question)),
)
"""What can be read; a file is of the first kind that it fits."""
