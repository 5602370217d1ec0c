"""What the names of models decide, from the library down to the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from discostream.config import Settings, settings_from
from discostream.errors import ConfigError, RequestRejected
from discostream.ledger.queries import recent
from discostream.library import Disco, connect
from discostream.types import Outcome

pytestmark = pytest.mark.anyio

LAPTOP = {
    "name": "laptop",
    "kind": "device",
    "dialect": "scripted",
    "ttft_s": 0.05,
    "prefill_joules_per_token": 0.1,
    "decode_joules_per_token": 0.1,
}
CLOUD = {
    "name": "cloud",
    "kind": "server",
    "dialect": "scripted",
    "prompt_usd_per_mtok": 0.5,
    "completion_usd_per_mtok": 1.0,
}


def settings(folder: Path, *endpoints: dict[str, Any], **tables: Any) -> Settings:
    policy = {"name": "device-only"} if LAPTOP in endpoints else {"name": "server-only"}
    ledger = {"path": str(folder / "ledger.db")}
    return settings_from({"endpoint": list(endpoints), "policy": policy, "ledger": ledger, **tables})


async def outcome_of(disco: Disco, **wishes: Any) -> Outcome:
    answer = disco.stream("Why is the sky blue?", max_tokens=4, **wishes)
    async for _ in answer:
        pass
    assert answer.outcome
    return answer.outcome


async def test_virtual_models_choose_and_the_ledger_says_how(tmp_path):
    """Each starts whom it says, and its choice stands in the `disco` object and in the ledger."""
    dear = {"usd_per_joule": 1.0}
    async with connect(settings(tmp_path, LAPTOP, CLOUD, cost=dear)) as disco:
        told = {
            model: await outcome_of(disco, model=model)
            for model in ("disco", "disco-private", "disco-fast", "disco-cheap", "cloud")
        }
    started = {model: {each.endpoint for each in outcome.attempts} for model, outcome in told.items()}
    assert started == {
        "disco": {"laptop"},
        "disco-private": {"laptop"},
        "disco-fast": {"laptop", "cloud"},
        "disco-cheap": {"cloud"},
        "cloud": {"cloud"},
    }
    assert told["disco-fast"].winner == "cloud"
    policies = ["device-only", "device-only, private", "fast", "cheap", "pinned to cloud"]
    assert [outcome.as_disco()["policy"] for outcome in told.values()] == policies
    assert [row.policy for row in recent(tmp_path / "ledger.db")][::-1] == policies


async def test_the_cheap_model_follows_the_exchange_rate(tmp_path):
    """Where energy costs next to nothing the device is the cheaper one."""
    async with connect(settings(tmp_path, LAPTOP, CLOUD, cost={"usd_per_joule": 1e-9})) as disco:
        outcome = await outcome_of(disco, model="disco-cheap")
    assert {each.endpoint for each in outcome.attempts} == {"laptop"}


async def test_who_stands_by_answers_when_the_cheap_one_fails(tmp_path):
    """The one that costs least starts alone, and another steps in when it refuses."""
    cloud = {**CLOUD, "refuses": "busy"}
    async with connect(settings(tmp_path, LAPTOP, cloud, cost={"usd_per_joule": 1.0})) as disco:
        outcome = await outcome_of(disco, model="disco-cheap")
    assert outcome.winner == "laptop"
    assert [each.endpoint for each in outcome.attempts] == ["cloud", "laptop"]


async def test_the_fast_model_keeps_hard_budgets_and_no_soft_shares(tmp_path):
    """A soft share of nothing does not keep a server from racing; a hard budget of nothing does."""
    soft = {"share": 0.0, "of": "server", "mode": "soft"}
    for mode, winner in (("soft", "cloud"), ("hard", "laptop")):
        folder = tmp_path / mode
        folder.mkdir()
        async with connect(settings(folder, LAPTOP, CLOUD, budget=[{**soft, "mode": mode}])) as disco:
            assert (await outcome_of(disco, model="disco-fast")).winner == winner


async def test_a_request_of_its_own_may_say_more_than_its_model(tmp_path):
    """A policy of its own goes first, and privacy holds whichever of the two asks for it."""
    async with connect(settings(tmp_path, LAPTOP, CLOUD)) as disco:
        assert (await outcome_of(disco, model="disco-fast", policy="server-only")).winner == "cloud"
        private = await outcome_of(disco, model="disco-fast", private=True)
        assert {each.endpoint for each in private.attempts} == {"laptop"}
        assert private.policy == "fast, private"
        with pytest.raises(RequestRejected, match="must not leave the device"):
            await outcome_of(disco, model="disco-private", policy="server-only")


async def test_without_a_device_there_is_no_private_model(tmp_path):
    """It is not on offer, and asking for it names what is."""
    async with connect(settings(tmp_path, CLOUD)) as disco:
        with pytest.raises(RequestRejected, match="no model 'disco-private'; there are: disco, disco-fast, "):
            disco.stream("Why?", model="disco-private")


@pytest.mark.parametrize("name", ["disco", "disco-fast"])
async def test_an_endpoint_cannot_take_a_virtual_name(name, tmp_path):
    """What nobody could name is refused by the settings, with what to do."""
    with pytest.raises(ConfigError, match=rf"^endpoint.name = '{name}': is the name of a virtual model"):
        connect(settings(tmp_path, {**CLOUD, "name": name}))
