"""`disco doctor`: what works, what does not, and what to do about it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, version

import anyio

from discostream.config import GatewaySettings, Settings
from discostream.core.plugins import load_policy
from discostream.endpoints.base import Endpoint
from discostream.endpoints.registry import build_endpoint
from discostream.engine.catalogue import CATALOGUE, find_model, is_intact
from discostream.errors import ConfigError, DiscoError
from discostream.gateway.access import client_key
from discostream.gateway.app import HEALTHY, listen
from discostream.ledger.store import Ledger, default_ledger_path
from discostream.types import Finish, Message, Prefix, Request

__all__ = ["Finding", "examine"]

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    good: bool
    found: str
    fix: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything an answer needs. Every endpoint is asked for one token, at its own price."""
    endpoints: list[Endpoint] = []
    findings = [_engine()]
    for described in settings.endpoint:
        try:
            endpoints.append(build_endpoint(described))
        except ConfigError as error:
            findings.append(Finding(f"endpoint {described.name}", False, str(error), "correct its settings"))
    findings += [_model(name) for name in sorted({name for e in endpoints for name in e.models})]
    findings += [await _answer(endpoint) for endpoint in endpoints]
    findings += [_policy(settings.policy.name), _client_key(settings.gateway), _port(settings.gateway)]
    return [*findings, _ledger(settings.ledger.path)]


def _engine() -> Finding:
    try:
        return Finding("engine", True, f"llama.cpp in xllamacpp {version('xllamacpp')}")
    except PackageNotFoundError:
        return Finding("engine", False, "xllamacpp is not installed", "pip install xllamacpp")


def _model(name: str) -> Finding:
    check = f"model {name}"
    path = find_model(name)
    if path is None:
        return Finding(check, False, "not on this machine", f"disco models {name}")
    if not is_intact(path, CATALOGUE[name].sha256):
        return Finding(check, False, f"{path} is damaged", f"delete it, then: disco models {name}")
    return Finding(check, True, str(path))


async def _answer(endpoint: Endpoint) -> Finding:
    check = f"endpoint {endpoint.name}"
    missing = [name for name in endpoint.models if find_model(name) is None]
    if missing:
        return Finding(check, False, "its model is not on this machine", f"disco models {missing[0]}")
    try:
        with anyio.fail_after(PATIENCE_S):
            took_s = await _one_token(endpoint)
    except TimeoutError:
        return Finding(
            check, False, f"silent for {PATIENCE_S:.0f} s", "see whether it runs, and is not overloaded"
        )
    except DiscoError as error:
        return Finding(check, False, str(error), "correct its [[endpoint]] settings, or start what it names")
    except Exception as error:
        return Finding(check, False, repr(error), "report this: its adapter should have told what is wrong")
    return Finding(check, True, f"answered in {took_s:.2f} s")


async def _one_token(endpoint: Endpoint) -> float:
    try:
        await endpoint.prepare()
        asked_at = anyio.current_time()
        hello = Message("user", "Say hello.")
        request = Request(messages=(hello,), arrived_at=asked_at, request_id="doctor", max_tokens=1)
        async with aclosing(endpoint.generate(request, Prefix())) as events:
            async for event in events:
                if isinstance(event, Finish):
                    break
        return anyio.current_time() - asked_at
    finally:
        with anyio.CancelScope(shield=True):
            await endpoint.aclose()


def _policy(name: str) -> Finding:
    try:
        load_policy(name)
    except ConfigError as error:
        return Finding("policy", False, str(error), "correct policy.name")
    return Finding("policy", True, name)


def _client_key(gateway: GatewaySettings) -> Finding:
    try:
        asked_for = bool(client_key(gateway))
    except ConfigError as error:
        return Finding("client key", False, str(error), "set it before `disco serve`")
    return Finding(
        "client key", True, f"in {gateway.api_key_env}" if asked_for else "none, which is fine on loopback"
    )


def _port(gateway: GatewaySettings) -> Finding:
    try:
        with listen(gateway):
            return Finding("port", True, f"{gateway.host}:{gateway.port} is free")
    except ConfigError as error:
        if _serves(gateway):
            return Finding("port", True, f"discostream is serving on {gateway.host}:{gateway.port}")
        return Finding("port", False, str(error), "stop what listens there, or set gateway.port")


def _serves(gateway: GatewaySettings) -> bool:
    connection = HTTPConnection(gateway.host, gateway.port, timeout=1.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().read() == HEALTHY
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _ledger(path: str) -> Finding:
    try:
        with Ledger(path or default_ledger_path()) as ledger:
            return Finding("ledger", True, str(ledger.path))
    except DiscoError as error:
        return Finding("ledger", False, str(error), "set ledger.path to a file that can be written")
