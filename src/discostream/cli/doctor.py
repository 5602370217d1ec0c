"""`disco doctor`: what works, what does not, and what to do about it."""

from __future__ import annotations

import os
import socket
from contextlib import aclosing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import anyio

from discostream.config import EndpointSettings, GatewaySettings, Settings
from discostream.endpoints.registry import build_endpoint
from discostream.engine.catalogue import CATALOGUE, find_model, is_intact
from discostream.errors import DiscoError
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
    models = {endpoint.model for endpoint in settings.endpoint if endpoint.model in CATALOGUE}
    return [
        _engine(),
        *[_model(name) for name in sorted(models)],
        *[await _endpoint(endpoint) for endpoint in settings.endpoint],
        _client_key(settings.gateway),
        _port(settings.gateway),
        _ledger(settings.ledger.path),
    ]


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


async def _endpoint(settings: EndpointSettings) -> Finding:
    check = f"endpoint {settings.name}"
    if settings.model in CATALOGUE and find_model(settings.model) is None:
        return Finding(check, False, "its model is not on this machine", f"disco models {settings.model}")
    try:
        with anyio.fail_after(PATIENCE_S):
            took_s = await _one_token(settings)
    except TimeoutError:
        return Finding(
            check, False, f"no answer in {PATIENCE_S:.0f} s", "see whether it runs and is not overloaded"
        )
    except DiscoError as error:
        return Finding(check, False, str(error), "correct its [[endpoint]] settings, or start what it names")
    return Finding(check, True, f"answered in {took_s:.2f} s")


async def _one_token(settings: EndpointSettings) -> float:
    endpoint = build_endpoint(settings)
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


def _client_key(gateway: GatewaySettings) -> Finding:
    if not gateway.api_key_env:
        return Finding("client key", True, "none asked for; fine on loopback")
    if not os.environ.get(gateway.api_key_env):
        missing = f"{gateway.api_key_env} is not set"
        return Finding("client key", False, missing, f"export {gateway.api_key_env}=… before `disco serve`")
    return Finding("client key", True, f"in {gateway.api_key_env}")


def _port(gateway: GatewaySettings) -> Finding:
    where = f"{gateway.host}:{gateway.port}"
    try:
        with socket.create_server((gateway.host, gateway.port)):
            return Finding("port", True, f"{where} is free")
    except OSError as error:
        return Finding(
            "port", False, f"{where}: {error.strerror}", "stop what listens there, or set gateway.port"
        )


def _ledger(path: str) -> Finding:
    try:
        with Ledger(path or default_ledger_path()) as ledger:
            return Finding("ledger", True, str(ledger.path))
    except DiscoError as error:
        return Finding("ledger", False, str(error), "set ledger.path to a file that can be written")
