"""Recorded servers: when the first token of each request came, and how the others followed.

A file's columns say what it is, not its name; what had to be estimated stands in the `note` of the trace.
docs/traces.md lists the kinds of files, their columns and the estimates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from discostream.builtin import builtin_profiles
from discostream.config import suggest
from discostream.core.forecast import SILENCE_S
from discostream.errors import ConfigError
from discostream.traces.paces import at_even_pace, mean_gaps_s, replayed, strata
from discostream.traces.packets import Capture
from discostream.traces.streams import Streams
from discostream.traces.tables import Table, columns_of, read_table, stem

__all__ = [
    "BUILTIN",
    "BUILTIN_REQUESTS",
    "CHARS_PER_TOKEN",
    "ServerTrace",
    "find_traces",
    "path_and_model",
    "read_trace",
    "whole_tokens",
]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BUILTIN = "builtin:"

BUILTIN_REQUESTS = 16_384
"""Requests that stand for a quantile table: enough for its finest knot, at 0.9999."""

CHARS_PER_TOKEN = 4.0
"""English text in the vocabularies of current models; for prompts, which nobody counted."""

ANSWER_CHARS_PER_TOKEN = 5.16
"""The same for whisper-leak's answers: the median of GPT-4o's, whose tokens were counted. Its built-in
profiles have their pace by it, too.
"""

LIKE_TOKENS = 3.0, 8.0
"""Characters an event, within which events are as good as tokens: OpenAI's and Azure's have 5.1 to 5.4, those
of DeepSeek R1, which thinks in many without text, 2.
"""

SHORTER_THAN_ASKED = -100.0
"""LLMPerf's code for an answer of too few tokens, whose times are as good as any."""

REFUSED = 429
"""HTTP's status for too many requests."""

PROMPTS_ESTIMATED = f"prompt tokens estimated at {CHARS_PER_TOKEN:g} characters each"


@dataclass(frozen=True, eq=False)
class ServerTrace:
    """What clients saw of a server.

    Attributes:
        name: The file's, without what says its format, or the built-in profile's.
        ttft_s: From sending to the first content, shape (requests,); infinite where the request failed.
        failed_after_s: From sending to the failure, same shape; infinite where it did not fail.
        streams: How tokens followed the first. Recordings belong to no particular row.
        output_tokens: Answer lengths, same shape, NaN where there was no answer; `None` if not recorded.
        prompt_tokens: Prompt lengths, same shape, NaN where they are not known; `None` if not recorded.
        arrived_at_s: When requests were sent, seconds after the earliest; `None` if not recorded.
        note: What was estimated or left out, in words; empty if nothing.
    """

    name: str
    ttft_s: Floats
    failed_after_s: Floats
    streams: Streams
    output_tokens: Floats | None = None
    prompt_tokens: Floats | None = None
    arrived_at_s: Floats | None = None
    note: str = ""

    def __len__(self) -> int:
        return self.ttft_s.size

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[ServerTrace, ServerTrace]:
        """Two traces of random rows in their old order, neither empty; they share the streams.

        Args:
            fraction: How much of it the first one has, between 0 and 1.
            rng: What decides.

        Raises:
            ConfigError: There are fewer than two requests, or the fraction is none.
        """
        if not 0.0 < fraction < 1.0:
            raise ConfigError(f"train fraction = {fraction:g}: must lie between 0 and 1")
        if len(self) < 2:
            raise ConfigError(f"server trace {self.name!r}: has one request only; to split it takes two")
        first = min(max(round(fraction * len(self)), 1), len(self) - 1)
        rows = rng.permutation(len(self))
        return self._rows(np.sort(rows[:first])), self._rows(np.sort(rows[first:]))

    def _rows(self, rows: NDArray[np.intp]) -> ServerTrace:
        def of(column: Floats | None) -> Floats | None:
            return None if column is None else column[rows]

        return replace(
            self,
            ttft_s=self.ttft_s[rows],
            failed_after_s=self.failed_after_s[rows],
            output_tokens=of(self.output_tokens),
            prompt_tokens=of(self.prompt_tokens),
            arrived_at_s=of(self.arrived_at_s),
        )


def read_trace(source: str) -> ServerTrace:
    """A server's trace.

    Args:
        source: `builtin:NAME`; a file, told by its columns; or `FILE#MODEL` for one that has several.

    Raises:
        ConfigError: There is no such profile or file, or it holds what cannot be right, or no trace.
    """
    if source.startswith(BUILTIN):
        return _builtin(source.removeprefix(BUILTIN))
    path, model = path_and_model(source)
    if not path.exists():
        known = [BUILTIN + name for name in builtin_profiles()]
        raise ConfigError(f"server trace {source!r}: there is no such file; {suggest(source, known)}")
    table = read_table(path)
    kind = _kind_of(table.columns)
    if kind is None:
        raise ConfigError(f"{path}: is no server trace: {_told(table.columns)}")
    table = _of_model(table, model)
    return kind.read(stem(path) + (f"#{model}" if model else ""), path, table)


def path_and_model(source: str) -> tuple[Path, str]:
    """The two parts of `FILE#MODEL`; the model is empty where only a file is named."""
    file, _, model = source.rpartition("#")
    return (Path(file), model) if file and not Path(source).exists() else (Path(source), "")


def find_traces(folder: Path) -> list[Path]:
    """Every file under a folder that `read_trace` reads, sorted.

    Packets are passed over where their requests lie beside them, and files of several models.

    Raises:
        ConfigError: It is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder; give one with traces in it")
    return sorted(path for path in folder.rglob("*") if path.is_file() and _stands_alone(path))


def whole_tokens(tokens: Floats) -> Floats:
    """Whole token counts, at least one each."""
    return np.asarray(np.maximum(np.rint(tokens), 1.0))


def _builtin(name: str) -> ServerTrace:
    profiles = builtin_profiles()
    if name not in profiles:
        named, known = BUILTIN + name, [BUILTIN + each for each in profiles]
        raise ConfigError(f"server trace {named!r}: no such profile; {suggest(named, known)}")
    profile, rng = profiles[name], np.random.default_rng(0)
    ttft_s = rng.permutation(strata(profile.ttft, BUILTIN_REQUESTS))
    lengths = profile.output_tokens
    return ServerTrace(
        name,
        ttft_s,
        np.full(ttft_s.size, np.inf),
        Streams.steady(profile.tokens_per_s),
        None if lengths is None else whole_tokens(rng.permutation(strata(lengths, BUILTIN_REQUESTS))),
        note=f"quantiles of {profile.samples:,} requests; tokens at an even pace",
    )


def _of_model(table: Table, model: str) -> Table:
    models = [str(cell) for cell in table.columns.get("model", ())]
    known = sorted(set(models))
    if model and model not in known:
        hint = suggest(model, known) if known else "it has no column model"
        raise ConfigError(f"{table.file}: has nothing of model {model!r}; {hint}")
    if not model and len(known) > 1:
        raise ConfigError(
            f"{table.file}: has several models; choose one as {table.file}#{known[0]}, of {known}"
        )
    return table.where(np.array([each == model for each in models])) if model else table


@dataclass(frozen=True)
class _Kind:
    """A kind of file.

    Attributes:
        says: What people call it.
        columns: What it must have.
        read: Makes a trace of its name, path and rows.
    """

    says: str
    columns: tuple[str, ...]
    read: Callable[[str, Path, Table], ServerTrace]


def _kind_of(columns: Collection[str]) -> _Kind | None:
    """The first kind whose columns are all there; a table of devices is none, though it may have a TTFT."""
    if SPEEDS & set(columns):
        return None
    return next((kind for kind in KINDS if set(kind.columns) <= set(columns)), None)


def _told(columns: Collection[str]) -> str:
    wanted = "; or ".join(f"{', '.join(kind.columns)} ({kind.says})" for kind in reversed(KINDS))
    return f"it has the columns {', '.join(columns)}; wanted: {wanted}"


def _stands_alone(path: Path) -> bool:
    columns = columns_of(path)
    kind = _kind_of(columns)
    if kind is None:
        return False
    if kind.read is _captured:
        series = stem(path).removeprefix("packets-")
        return not any((path.parent / f"requests-{series}.csv{packed}").exists() for packed in ("", ".gz"))
    return "model" not in columns or len(set(read_table(path).columns["model"])) == 1


def _own(name: str, path: Path, table: Table) -> ServerTrace:
    """Ours: a request failed that has an error in place of a TTFT; one with neither says nothing."""
    column, per_s = ("ttft_s", 1.0) if "ttft_s" in table.columns else ("ttft_ms", 1000.0)
    silent = table.blank(column) & table.blank("error")
    table = table.where(~silent)
    failed, errors = table.blank(column), table.columns.get("error", [""] * len(table))
    refused = np.array([str(REFUSED) in re.findall(r"\d+", str(error)) for error in errors])
    failures = _Failures(failed, refused, table.numbers("failed_after_s", blanks=True))
    streams, pace = at_even_pace(table.numbers("tbt_s", blanks=True))
    broke_off = ~table.blank("error") & ~failed
    return failures.in_trace(
        ServerTrace(
            name,
            table.numbers(column, blanks=True) / per_s,
            np.full(len(table), np.inf),
            streams,
            _if_any(table.numbers("output_tokens", least=1, blanks=True)),
            _if_any(table.numbers("prompt_tokens", least=1, blanks=True)),
            _since_earliest(table, "arrived_at_s"),
            _note(
                pace,
                _counted(silent, "rows with neither a TTFT nor an error, left out"),
                _counted(broke_off, "answers that broke off, taken as whole"),
            ),
        )
    )


def _llmperf(name: str, path: Path, table: Table) -> ServerTrace:
    """LLMPerf, JSON or CSV. Its own mean gaps are sums in some files, so paces come from whole answers."""
    codes = table.numbers("error_code", least=-math.inf, blanks=True)
    failed = ~np.isnan(codes) & (codes != SHORTER_THAN_ASKED)
    ttft_s, whole_s = table.numbers("ttft_s"), table.numbers("end_to_end_latency_s")
    prefix = "number_" if "number_input_tokens" in table.columns else ""
    output_tokens = np.where(failed, np.nan, table.numbers(f"{prefix}output_tokens"))
    streams, pace = at_even_pace(mean_gaps_s(whole_s - ttft_s, output_tokens))
    return _Failures(failed, codes == REFUSED, whole_s).in_trace(
        ServerTrace(
            name,
            ttft_s,
            np.full(len(table), np.inf),
            streams,
            output_tokens,
            table.numbers(f"{prefix}input_tokens"),
            note=pace,
        )
    )


def _latencylab(name: str, path: Path, table: Table) -> ServerTrace:
    """LatencyLab, whose chunks are tokens, and whose failed rows hold zeros."""
    failed = np.array([str(cell).lower() != "true" for cell in table.columns["success"]])
    ttft_s = table.numbers("first_token_time_seconds")
    whole_s = table.numbers("total_request_time_seconds")
    gaps_s, decode_s = table.series("chunks_time_seconds"), (whole_s - ttft_s).tolist()
    answers = [_since_first_token(*answer) for answer in zip(gaps_s, decode_s, strict=True)]
    prompt_tokens = whole_tokens(table.numbers("input_characters") / CHARS_PER_TOKEN)
    streams, pace = replayed([answer for answer, fails in zip(answers, failed, strict=True) if not fails])
    return _Failures(failed, np.zeros(len(table), bool), whole_s).in_trace(
        ServerTrace(
            name,
            ttft_s,
            np.full(len(table), np.inf),
            streams,
            np.where(failed, np.nan, [answer.size for answer in answers]),
            np.where(failed, np.nan, prompt_tokens),
            table.seconds_since_first("timestamp"),
            _note(PROMPTS_ESTIMATED, "a chunk counts as a token", pace),
        )
    )


def _since_first_token(gaps_s: Floats, decode_s: float) -> Floats:
    """When chunks came after the first token, which came `decode_s` before the last of them.

    Chunks without text may have come before it; the gap that ends in it is then in the file, too.
    """
    until_last_s = np.append(np.cumsum(gaps_s[::-1])[::-1], 0.0)
    first = int(np.argmin(np.abs(until_last_s - decode_s)))
    return np.asarray(until_last_s[first] - until_last_s[first:])


def _requests(name: str, path: Path, table: Table) -> ServerTrace:
    """whisper-leak, a request a row; its packets, if they lie beside it, say how tokens came."""
    table, steps = _without_clock_steps(table)
    ttft_s, whole_s = table.numbers("ttft_ms") / 1000, table.numbers("total_ms") / 1000
    tokens, estimate = _answer_tokens(table)
    beside = _packets_beside(path)
    if beside is None:
        streams, pace = at_even_pace(mean_gaps_s(whole_s - ttft_s, tokens))
    else:
        packets, _ = _without_clock_steps(_packets(beside))
        streams, pace = replayed(Capture.of(packets).token_times(_answer_tokens(packets)[0]))
    return _whisper_leak(name, table, ttft_s, streams, tokens, _note(estimate, pace, steps))


def _captured(name: str, path: Path, table: Table) -> ServerTrace:
    """whisper-leak, an answer a row, with all its packets."""
    table, steps = _without_clock_steps(table)
    capture = Capture.of(table)
    tokens, estimate = _answer_tokens(table)
    streams, pace = replayed(capture.token_times(tokens))
    return _whisper_leak(name, table, capture.ttft_s, streams, tokens, _note(estimate, pace, steps))


def _whisper_leak(
    name: str, table: Table, ttft_s: Floats, streams: Streams, tokens: Floats, note: str
) -> ServerTrace:
    return ServerTrace(
        name,
        ttft_s,
        np.full(len(table), np.inf),
        streams,
        tokens,
        whole_tokens(table.numbers("prompt_chars") / CHARS_PER_TOKEN),
        _since_earliest(table, "timestamp_unix"),
        _note("TTFT without TCP and TLS set-up", "failed requests were not kept", PROMPTS_ESTIMATED, note),
    )


def _without_clock_steps(table: Table) -> tuple[Table, str]:
    """The rows during which the client's clock was not set, as others have gaps that never were; a remark."""
    cells = table.columns.get("clock_step", [False] * len(table))
    steady = np.array([str(cell).lower() in {"", "0", "false", "none"} for cell in cells])
    return table.where(steady), _counted(~steady, "rows in which the clock was set, left out")


def _packets_beside(path: Path) -> Path | None:
    series = stem(path).removeprefix("requests-")
    beside = (path.with_name(f"packets-{series}.jsonl{packed}") for packed in (".gz", ""))
    return next((each for each in beside if each.exists()), None)


def _packets(path: Path) -> Table:
    table = read_table(path)
    kind = _kind_of(table.columns)
    if kind is None or kind.read is not _captured:
        raise ConfigError(f"{path}: lies beside requests, but is no packet capture: {_told(table.columns)}")
    return table


def _answer_tokens(table: Table) -> tuple[Floats, str]:
    """How long the answers are, and how that is known: by their events, where these are like tokens."""
    chars = table.numbers("response_chars")
    events = table.numbers("response_chunks", blanks=True)
    estimated = whole_tokens(chars / ANSWER_CHARS_PER_TOKEN)
    told = events > 0
    if told.any() and LIKE_TOKENS[0] <= np.median(chars[told] / events[told]) <= LIKE_TOKENS[1]:
        return np.where(told, events, estimated), "a content event counts as a token"
    return estimated, f"answer tokens estimated at {ANSWER_CHARS_PER_TOKEN:g} characters each"


@dataclass(frozen=True, eq=False)
class _Failures:
    """Which requests failed, which of them were refused, and when they did, if above zero (seconds)."""

    failed: Flags
    refused: Flags
    after_s: Floats

    def in_trace(self, trace: ServerTrace) -> ServerTrace:
        """A trace with its failures.

        One at an unknown time came as soon as the fastest answer if it was refused, and was a silence if not.

        Raises:
            ConfigError: All of them failed.
        """
        if self.failed.all():
            raise ConfigError(
                f"server trace {trace.name!r}: every request failed; some must have brought content"
            )
        guessed_s = np.where(self.refused, trace.ttft_s[~self.failed].min(), SILENCE_S)
        timed = self.after_s > 0
        untimed = self.failed & ~timed
        return replace(
            trace,
            ttft_s=np.where(self.failed, np.inf, trace.ttft_s),
            failed_after_s=np.where(self.failed, np.where(timed, self.after_s, guessed_s), np.inf),
            note=_note(
                trace.note,
                _counted(untimed & self.refused, "refusals at an unknown time, taken to come at once"),
                _counted(
                    untimed & ~self.refused,
                    f"failures at an unknown time, taken to show after {SILENCE_S:g} s",
                ),
            ),
        )


def _since_earliest(table: Table, name: str) -> Floats | None:
    if name not in table.columns:
        return None
    at_s = table.numbers(name)
    return np.asarray(at_s - at_s.min())


def _if_any(values: Floats) -> Floats | None:
    return None if np.isnan(values).all() else values


def _note(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))


def _counted(rows: Flags, what: str) -> str:
    return f"{what}: {np.count_nonzero(rows)}" if rows.any() else ""


KINDS = (
    _Kind(
        "whisper-leak's packets",
        ("dt_ms", "bytes", "first_content_idx", "prompt_chars", "response_chars"),
        _captured,
    ),
    _Kind("whisper-leak's requests", ("ttft_ms", "total_ms", "prompt_chars", "response_chars"), _requests),
    _Kind(
        "LLMPerf's JSON",
        ("ttft_s", "end_to_end_latency_s", "error_code", "number_input_tokens", "number_output_tokens"),
        _llmperf,
    ),
    _Kind(
        "LLMPerf as CSV",
        ("ttft_s", "end_to_end_latency_s", "error_code", "input_tokens", "output_tokens"),
        _llmperf,
    ),
    _Kind(
        "LatencyLab",
        (
            *("timestamp", "success", "input_characters"),
            *("first_token_time_seconds", "total_request_time_seconds", "chunks_time_seconds"),
        ),
        _latencylab,
    ),
    _Kind("your own, in milliseconds", ("ttft_ms",), _own),
    _Kind("your own", ("ttft_s",), _own),
)
"""What can be read; a file is of the first kind that it fits."""

SPEEDS = {"prefill_tokens_per_s", "decode_tokens_per_s"}
"""Columns of which a table of devices has one."""
