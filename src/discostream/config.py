"""Settings: one TOML file and the environment, read once into frozen values."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from discostream.checks import refuse_contradictions
from discostream.errors import ConfigError
from discostream.types import Feature, Kind

__all__ = [
    "DEFAULT_CONFIG",
    "BudgetSettings",
    "CostSettings",
    "EndpointSettings",
    "GatewaySettings",
    "LedgerSettings",
    "MigrationSettings",
    "PacingSettings",
    "PolicySettings",
    "ProfileSettings",
    "Settings",
    "check_settings",
    "convert_options",
    "embedded_pair",
    "load_settings",
    "settings_from",
    "suggest",
]

DEFAULT_CONFIG = Path("disco.toml")
ENV_PREFIX = "DISCO_"

Table = TypeVar("Table", bound=Struct)
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Meta(ge=0.0, le=1e9)]
Positive = Annotated[float, Meta(gt=0.0, le=1e6)]


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the settings file."""


class EndpointSettings(_Table, frozen=True):
    """One `[[endpoint]]`: what every dialect shares, and the dialect's own keys in `options`.

    Attributes:
        name: How plans, logs and the ledger call it.
        kind: `device` costs joules, `server` costs dollars.
        dialect: The protocol it speaks, a name in the `discostream.endpoints` entry-point group.
        model: The model's name there; for `llamacpp`, a catalogue name or a path to a GGUF file.
        prompt_usd_per_mtok: Dollars per million prompt tokens; looked up in the price library when absent.
        completion_usd_per_mtok: Dollars per million completion tokens; likewise.
        priced_as: The model name to look prices up under, when it is not `model`.
        cancel_stops_billing: Whether closing the stream ends the bill; yes when absent, unless the dialect or
            its preset knows better.
        features: What it can do beyond text; the dialect's usual abilities when absent.
        prefill_joules_per_token: Measured energy; computed from the model's shape when absent.
        decode_joules_per_token: Likewise.
        options: The keys that only this dialect knows.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    kind: Kind
    dialect: str
    model: str = ""
    prompt_usd_per_mtok: NotNegative | None = None
    completion_usd_per_mtok: NotNegative | None = None
    priced_as: str = ""
    cancel_stops_billing: bool | None = None
    features: tuple[Feature, ...] | None = None
    prefill_joules_per_token: NotNegative | None = None
    decode_joules_per_token: NotNegative | None = None
    options: dict[str, Any] = {}


class PolicySettings(_Table, frozen=True):
    """`[policy]`: who starts when.

    Attributes:
        name: A policy in the `discostream.policies` entry-point group.
        constraint: Which kind the budget holds back; `auto` decides from converted prices.
        share: b, the share of all prompt tokens that the constrained kind may take; when absent, one half
            if there is no `[[budget]]`, and no limit of its own if there is.
        alpha: Share of the budget kept for the tail before anything else (`disco`, device constraint).
        deadline_s: A TTFT beyond it counts as late (`optimal` only).
        lateness_weight: How much a second of expected lateness counts beside one of TTFT (`optimal` only).
        private: Whether no request may ever leave the device.
        offsets: Seconds after arrival per endpoint, for `name = "offsets"`.
    """

    name: str = "disco"
    constraint: Literal["auto", "server", "device"] = "auto"
    share: Share | None = None
    alpha: Share = 0.05
    deadline_s: Positive = 2.0
    lateness_weight: NotNegative = 0.0
    private: bool = False
    offsets: dict[str, NotNegative] = {}


class BudgetSettings(_Table, frozen=True):
    """One `[[budget]]`: exactly one of `share`, `usd`, `joules` and `battery_percent`.

    Attributes:
        name: How messages and the ledger call it; made from what it says when absent.
        share: The share of all prompt tokens that the kind `of` may process.
        of: `device` or `server`, for a share.
        usd: Dollars.
        joules: Joules.
        battery_percent: Joules, as a part of the full battery of `cost.battery_wh`.
        per: The window after which the budget renews; for all but a share.
        mode: `soft` holds in the long run, `hard` is never exceeded.
    """

    name: str = ""
    share: Share | None = None
    of: Kind | None = None
    usd: NotNegative | None = None
    joules: NotNegative | None = None
    battery_percent: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    per: Literal["hour", "day", "month"] | None = None
    mode: Literal["soft", "hard"] = "soft"

    @property
    def amounts(self) -> dict[str, float]:
        """What it limits, by the key that says so: one entry, once the settings are checked."""
        keys = ("share", "usd", "joules", "battery_percent")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @property
    def label(self) -> str:
        """Its name, or else what it says, such as `2 usd per day`."""
        units = {"battery_percent": "% of the battery"}
        told = ", ".join(f"{value:g} {units.get(key, key)}" for key, value in self.amounts.items())
        where = f" of {self.of}" if self.of else ""
        return self.name or f"{told}{where}{f' per {self.per}' if self.per else ''}"


class MigrationSettings(_Table, frozen=True):
    """`[migration]`: whether and how a running answer may move, and how fast it is read.

    Attributes:
        enabled: Off keeps answers where they started, unless they have to be rescued.
        mode: `make-before-break` lets the source go on until the target has proved itself;
            `stop-then-start`, the paper's, stops it when the target is asked.
        consumption_tokens_per_s: How fast the reader consumes tokens.
        max_moves: How often one answer may move for cost.
        rescue: Whether another endpoint goes on with an answer whose stream breaks or falls silent.
        max_rescues: How often one answer may be rescued.
    """

    enabled: bool = True
    mode: Literal["make-before-break", "stop-then-start"] = "make-before-break"
    consumption_tokens_per_s: Positive = 4.8
    max_moves: Annotated[int, Meta(ge=0, le=100)] = 1
    rescue: bool = True
    max_rescues: Annotated[int, Meta(ge=0, le=100)] = 2


class PacingSettings(_Table, frozen=True):
    """`[pacing]`: when tokens that have come are passed on.

    Attributes:
        mode: `immediate` passes them on as they come; `reading` evens bursts out and keeps what comes faster
            than it is read (`migration.consumption_tokens_per_s`) back, for at most `max_lag_s`.
        max_lag_s: How long a token may be kept back at the most.
    """

    mode: Literal["immediate", "reading"] = "immediate"
    max_lag_s: Annotated[float, Meta(gt=0.0, le=60.0)] = 1.0


class CostSettings(_Table, frozen=True):
    """`[cost]`: the exchange rate between energy and money.

    Attributes:
        usd_per_joule: What a joule of the device is worth, always; when absent it follows the power supply.
        usd_per_kwh: What it is worth from a socket, per kilowatt-hour.
        usd_per_joule_empty: What it is worth when the battery is all but empty; on battery, the rate rises
            to it from the socket's as the charge falls.
        battery_wh: What the full battery holds, where the system does not say.
    """

    usd_per_joule: NotNegative | None = None
    usd_per_kwh: NotNegative = 0.17
    usd_per_joule_empty: NotNegative = 1e-3
    battery_wh: Positive | None = None


class ProfileSettings(_Table, frozen=True):
    """`[profile]`: how soon what was learnt is forgotten.

    Attributes:
        half_life_requests: After so many requests an observation counts for half.
        half_life_s: After so many seconds it counts for half, too.
    """

    half_life_requests: Positive = 500.0
    half_life_s: Annotated[float, Meta(gt=0.0)] = 86_400.0


class GatewaySettings(_Table, frozen=True):
    """`[gateway]`: where the HTTP face listens, and the key its clients must send.

    Attributes:
        api_key_env: The environment variable that holds the clients' key; required off loopback.
        allow_origins: Web pages that may use it from a browser, by scheme, host and port.
        keep_alive_s: After so much silence a stream carries a comment, so that nothing between cuts it.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8377
    api_key_env: str = ""
    allow_origins: tuple[Annotated[str, Meta(pattern=r"^https?://[^/\s]+$")], ...] = ()
    keep_alive_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 15.0


class LedgerSettings(_Table, frozen=True):
    """`[ledger]`: where requests are recorded.

    Attributes:
        path: The SQLite file; empty puts it under the platform's data folder.
    """

    path: str = ""


class Settings(_Table, frozen=True):
    """Everything in `disco.toml`."""

    endpoint: tuple[EndpointSettings, ...] = ()
    policy: PolicySettings = PolicySettings()
    budget: tuple[BudgetSettings, ...] = ()
    profile: ProfileSettings = ProfileSettings()
    migration: MigrationSettings = MigrationSettings()
    pacing: PacingSettings = PacingSettings()
    cost: CostSettings = CostSettings()
    gateway: GatewaySettings = GatewaySettings()
    ledger: LedgerSettings = LedgerSettings()


_ENDPOINT_KEYS = frozenset(EndpointSettings.__struct_fields__) - {"options"}


def embedded_pair() -> list[dict[str, Any]]:
    """What is served when the settings name no endpoint: the embedded model, and again as an emulated server.

    Each engine gets half of the cores: llama.cpp's threads wait for each other by spinning, and two engines
    that both take every core slow each other down several times over.
    """
    engine = {"threads": max(1, (os.cpu_count() or 2) // 2), "batch_tokens": 64}
    model = "smollm2-135m-instruct"
    return [
        {"name": "device", "kind": "device", "dialect": "llamacpp", "model": model, **engine},
        {
            "name": "server",
            "kind": "server",
            "dialect": "emulated",
            "model": model,
            "inner": engine,
            "ttft": "azure-gpt-4o",
            "tokens_per_s": 60.0,
            "prompt_usd_per_mtok": 2.5,
            "completion_usd_per_mtok": 10.0,
        },
    ]


def load_settings(
    path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read the settings: the file, then the environment on top.

    Args:
        path: The TOML file; `None` takes `disco.toml` of the working directory, if there is one. Settings
            without an endpoint get the embedded pair.
        environ: The environment to read `DISCO_…` overrides from (default: this process's).

    Raises:
        ConfigError: The file cannot be read, or holds a wrong or unknown key.
    """
    environ = os.environ if environ is None else environ
    tree = {} if path is None and not DEFAULT_CONFIG.exists() else _read_toml(Path(path or DEFAULT_CONFIG))
    if not tree.get("endpoint"):
        tree["endpoint"] = embedded_pair()
    return settings_from(_with_environment(tree, environ))


def settings_from(tree: Mapping[str, Any]) -> Settings:
    """Check a tree of plain values, as a TOML file holds them, and freeze it.

    Raises:
        ConfigError: Naming the field, the value and what would be right.
    """
    tree = dict(tree)
    for name in ("endpoint", "budget"):
        if not isinstance(tree.setdefault(name, []), list):
            raise ConfigError(f"{name}: must be written as [[{name}]], once per {name}")
    tree["endpoint"] = [_split_options(index, table) for index, table in enumerate(tree["endpoint"])]
    for index, budget in enumerate(tree["budget"]):
        if isinstance(budget, Mapping):
            _refuse_unknown(budget, BudgetSettings.__struct_fields__, f"budget[{index}]: ")
    for name, value in tree.items():
        _refuse_unknown([name], Settings.__struct_fields__, "")
        if isinstance(value, Mapping):
            table = type(getattr(_DEFAULTS, name))
            _refuse_unknown(value, table.__struct_fields__, f"{name}: ")
    settings = _convert(tree, Settings, "")
    check_settings(settings)
    return settings


def convert_options(settings: EndpointSettings, options: type[Table]) -> Table:
    """An endpoint's own keys, checked against what its dialect knows.

    Raises:
        ConfigError: A key or value that the dialect does not accept.
    """
    where = f"endpoint {settings.name!r}: "
    known = [*options.__struct_fields__, *_ENDPOINT_KEYS]
    for key in settings.options:
        if key not in options.__struct_fields__:
            raise ConfigError(f"{where}{_unknown(key, known)} (dialect {settings.dialect!r})")
    return _convert(settings.options, options, where)


_DEFAULTS = Settings()
_TABLES = frozenset(Settings.__struct_fields__) - {"endpoint", "budget"}


def _split_options(index: int, table: Any) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"endpoint[{index}]: must be a table of keys, not {table!r}")
    common = {key: value for key, value in table.items() if key in _ENDPOINT_KEYS}
    return {**common, "options": {key: value for key, value in table.items() if key not in _ENDPOINT_KEYS}}


def _refuse_unknown(keys: Iterable[str], known: Collection[str], where: str) -> None:
    for key in keys:
        if key not in known:
            raise ConfigError(where + _unknown(key, known))


def _unknown(key: str, known: Collection[str]) -> str:
    return f"unknown key `{key}`; {suggest(key, known)}"


def suggest(word: str, known: Collection[str]) -> str:
    """What somebody who wrote `word` may have meant, of all that is known."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known))}"


def _convert(tree: Mapping[str, Any], table: type[Table], where: str) -> Table:
    try:
        return msgspec.convert(tree, table)
    except msgspec.ValidationError as error:
        raise ConfigError(where + _explain(tree, table, str(error))) from None


def _explain(tree: Any, table: type[Table], message: str) -> str:
    """Turn `Expected X - at `$.a[0].b`` into `a[0].b = value: expected X`."""
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        path = f"{path}.{missing[1]}".removeprefix(".")
        choices = _choices(table, path)
        return f"{path}: is missing" + (f"; must be one of {choices}" if choices else "")
    if not path:
        return what[:1].lower() + what[1:]
    what = f"must be one of {choices}" if (choices := _choices(table, path)) else what[:1].lower() + what[1:]
    value = tree
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            value = value[int(index)] if index else value[name]
        except (KeyError, IndexError, TypeError):
            return f"{path}: {what}"
    return f"{path} = {value!r}: {what}"


def _choices(table: type[Table], path: str) -> str:
    """The values of a setting that takes only some, in words; empty for any other setting."""
    called, _, name = re.sub(r"\[\d+\]", "", path).rpartition(".")
    hint = get_type_hints(_table_called(called) if called else table).get(name)
    # Arguments are those of `… | None`, and theirs those of a tuple.
    for option in (hint, *(each for part in get_args(hint) for each in (part, *get_args(part)))):
        if get_origin(option) is Literal:
            return ", ".join(get_args(option))
        if isinstance(option, type) and issubclass(option, StrEnum):
            return ", ".join(option)
    return ""


def _table_called(name: str) -> Any:
    """The class of one table of the settings, of those that are lists too."""
    hint = get_type_hints(Settings).get(name, Settings)
    return next(iter(get_args(hint)), hint)


def check_settings(settings: Settings) -> None:
    """Refuse settings that are out of range, or contradict each other; those made in code are held to it too.

    Raises:
        ConfigError: Naming the field, the value and what would be right.
    """
    _convert(msgspec.to_builtins(settings), Settings, "")
    refuse_contradictions(settings)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give the path of a disco.toml, or none for the embedded pair"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _with_environment(tree: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Lay `DISCO_SECTION__KEY` and `DISCO_ENDPOINT__NAME__KEY` over the file's values."""
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        section, *rest = variable.removeprefix(ENV_PREFIX).lower().split("__")
        if section == "endpoint" and len(rest) == 2:
            table, name, hints = _endpoint_named(tree, rest[0], variable), rest[1], EndpointSettings
        elif section in _TABLES and len(rest) == 1:
            table, name, hints = tree.setdefault(section, {}), rest[0], type(getattr(_DEFAULTS, section))
        else:
            raise ConfigError(
                f"{variable}: names no setting; write DISCO_SECTION__KEY or DISCO_ENDPOINT__NAME__KEY, "
                f"as in DISCO_POLICY__SHARE=0.3"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{section}: must be a table of keys, not {table!r}")
        table[name] = text if get_type_hints(hints).get(name) is str else _scalar(text)
    return tree


def _endpoint_named(tree: dict[str, Any], name: str, variable: str) -> Any:
    endpoints = tree.get("endpoint", [])
    for endpoint in endpoints if isinstance(endpoints, list) else []:
        known = endpoint.get("name", "") if isinstance(endpoint, dict) else ""
        if re.sub(r"[^a-z0-9]", "_", str(known).lower()) == name:
            return endpoint
    raise ConfigError(f"{variable}: the settings have no endpoint called {name!r}")


def _scalar(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
