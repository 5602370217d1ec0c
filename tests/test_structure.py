"""The house rules that a program can check: imports, exports, and what must be documented."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.main import get_command

import discostream
from discostream import config, errors
from discostream.cli.app import app
from discostream.core.handoff import Signal, State, diagram
from discostream.endpoints.presets import PRESETS
from discostream.endpoints.registry import dialects
from discostream.sim.shelf import COMPUTING

PACKAGE = Path(discostream.__file__).parent
DOCS = Path(__file__).parent.parent / "docs"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)
LAYERS = (
    ("errors", "types", "checks", "config"),
    ("core",),
    ("wire", "engine", "ledger", "builtin", "traces", "endpoints"),
    ("session",),
    ("library",),
    ("sim",),
    ("gateway",),
    ("telemetry",),
    ("cli",),
)
STANDS_ON = {"traces": {*LAYERS[0], "core", "builtin", "traces"}}
STANDS_ON["sim"] = {*STANDS_ON["traces"], "sim"}
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(module: str) -> set[str]:
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.startswith("discostream.")}


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in LEVEL])
def test_imports_point_one_way(module):
    """No module imports from a layer above its own."""
    above = {name for name in imports_of(module) if LEVEL[room_of(name)] > LEVEL[room_of(module)]}
    assert not above


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in STANDS_ON])
def test_recordings_and_the_simulator_stand_on_the_core(module):
    """What is read and simulated is not the live path: neither sessions nor endpoints, engines or ledgers."""
    assert {room_of(name) for name in imports_of(module)} <= STANDS_ON[room_of(module)]


def test_figures_are_kept_under_all_the_code_that_computes_them():
    """A cell of an evaluation is computed anew when any room changes that the simulator stands on."""
    assert set(COMPUTING) == STANDS_ON["sim"] - set(LAYERS[0])


def test_every_room_has_its_place():
    """A new folder or file is given a layer before it is used."""
    assert {room_of(module) for module in MODULES} - {"", "__init__"} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are_and_export_in_order(module):
    """Every module opens with a docstring; what it exports is sorted and exists."""
    loaded = importlib.import_module(module.removesuffix(".__init__"))
    exported = getattr(loaded, "__all__", [])
    assert loaded.__doc__
    assert list(exported) == sorted(
        exported, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert all(hasattr(loaded, name) for name in exported)


def test_importing_has_no_effects():
    """Importing the package loads nothing heavy, starts no thread, and is over in a moment."""
    program = (
        "import sys, threading, discostream; "
        "heavy = {'numpy', 'aiohttp', 'xllamacpp', 'typer', 'anyio'} & set(sys.modules); "
        "sys.exit(f'{heavy} {threading.enumerate()}' if heavy or threading.active_count() > 1 else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", discostream.__all__)
def test_public_names_are_there(name):
    """Every public name of the package can be had from it, and says what it is."""
    assert getattr(discostream, name).__doc__


def test_unknown_names_are_refused():
    """A name that the package does not have is an AttributeError, as usual."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        discostream.nothing  # noqa: B018


def test_entry_points_load():
    """Built-in endpoints and policies come in by the groups that strangers use."""
    ours = {"anthropic", "emulated", "gemini", "llamacpp", "ollama", "openai", "scripted"}
    assert ours <= set(dialects())
    for group in ("discostream.endpoints", "discostream.policies"):
        assert all(entry.load() for entry in entry_points(group=group))


def test_every_error_is_in_the_tree():
    """The picture at the top of errors.py shows every error class, and no other."""
    drawn = {word for line in (errors.__doc__ or "").splitlines() for word in line.split()[:8]}
    ours = {name for name in errors.__all__ if name not in {"Phase"}}
    assert ours <= drawn


def test_every_setting_is_documented():
    """docs/configuration.md names every table and key, those of the built-in dialects included."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    tables = {
        "endpoint": config.EndpointSettings,
        "policy": config.PolicySettings,
        "budget": config.BudgetSettings,
        "profile": config.ProfileSettings,
        "migration": config.MigrationSettings,
        "pacing": config.PacingSettings,
        "cost": config.CostSettings,
        "gateway": config.GatewaySettings,
        "ledger": config.LedgerSettings,
    }
    keys = {key for table in tables.values() for key in table.__struct_fields__ if key != "options"}
    for entry in dialects().values():
        keys |= set(entry.load().Options.__struct_fields__)
    missing = {key for key in keys if f"`{key}`" not in page}
    missing |= {table for table in tables if f"[{table}]" not in page}
    assert not missing


def test_every_server_is_in_the_support_table():
    """docs/endpoints.md has a row for each preset and each dialect, docs/configuration.md names them."""
    page = (DOCS / "endpoints.md").read_text(encoding="utf-8")
    settings = (DOCS / "configuration.md").read_text(encoding="utf-8")
    rows = [f"| `openai`, `{preset}` |" for preset in PRESETS]
    rows += [f"| `{dialect}` |" for dialect in ("anthropic", "gemini", "llamacpp", "ollama")]
    assert not [row for row in rows if row not in page]
    assert not [preset for preset in PRESETS if f"`{preset}`" not in settings]


def test_every_command_is_documented():
    """docs/commands.md names every command and every option."""
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    commands = get_command(app).commands
    missing = {f"disco {name}" for name in commands if f"`disco {name}" not in page}
    for command in commands.values():
        options = [
            option for parameter in command.params for option in parameter.opts if option.startswith("--")
        ]
        missing |= {option for option in options if f"`{option}" not in page}
    assert not missing


def test_the_handoff_page_shows_the_table():
    """The diagram in docs/handoff.md is the table, row for row, and the page explains each of its words."""
    page = (DOCS / "handoff.md").read_text(encoding="utf-8")
    assert diagram() in page
    assert all(f"`{word.value}`" in page for word in [*State, *Signal])
