"""Money and energy of tokens, and the exchange rate that makes them one cost."""

from __future__ import annotations

from dataclasses import dataclass

from discostream.config import CostSettings
from discostream.types import Kind

__all__ = [
    "JOULES_PER_FLOP",
    "JOULES_PER_KWH",
    "Energy",
    "ModelShape",
    "Prices",
    "Rates",
    "constrained_kind",
    "energy_of",
    "exchange_rate",
]

JOULES_PER_FLOP = 1.6e-10
"""Whole-board energy of llama.cpp on a CPU, measured.

T-MAC's profiling data (github.com/microsoft/T-MAC, docs/profiling_data.md): Llama-2-7B on the CPU of
a Jetson AGX Orin decodes at 2.12 J a token, which is 2 x 6.74e9 FLOPs of work.
"""


JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Prices:
    """What a server charges, in dollars per million tokens."""

    prompt_usd_per_mtok: float = 0.0
    completion_usd_per_mtok: float = 0.0

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Dollars for this many prompt and completion tokens."""
        return (
            self.prompt_usd_per_mtok * prompt_tokens + self.completion_usd_per_mtok * completion_tokens
        ) / 1e6


@dataclass(frozen=True, slots=True)
class Energy:
    """What a device burns, in joules per token."""

    prefill_j_per_token: float = 0.0
    decode_j_per_token: float = 0.0

    def joules(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Joules to prefill and decode this many tokens."""
        return self.prefill_j_per_token * prompt_tokens + self.decode_j_per_token * completion_tokens


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers of a transformer that decide its FLOPs per token.

    Attributes:
        parameters: All weights, with the token embedding counted once.
        vocabulary: Tokens in the vocabulary.
        width: Length of a token's embedding.
        layers: Transformer blocks.
        context_tokens: The longest context the model was trained for.
    """

    parameters: int
    vocabulary: int
    width: int
    layers: int
    context_tokens: int

    @property
    def output_parameters(self) -> int:
        """Weights of the projection onto the vocabulary."""
        return self.vocabulary * self.width

    def decode_flops(self, context_tokens: float = 512.0) -> float:
        """FLOPs to generate one token after `context_tokens` others: two per weight, plus attention."""
        return 2.0 * self.parameters + self._attention_flops(context_tokens)

    def prefill_flops(self, context_tokens: float = 512.0) -> float:
        """FLOPs to read one prompt token: as decoding, without the projection onto the vocabulary."""
        return 2.0 * (self.parameters - self.output_parameters) + self._attention_flops(context_tokens / 2)

    def _attention_flops(self, context_tokens: float) -> float:
        return 4.0 * self.layers * self.width * context_tokens


def energy_of(shape: ModelShape, joules_per_flop: float = JOULES_PER_FLOP) -> Energy:
    """A model's energy per token, from its shape alone."""
    return Energy(shape.prefill_flops() * joules_per_flop, shape.decode_flops() * joules_per_flop)


@dataclass(frozen=True, slots=True)
class Rates:
    """What one endpoint costs per token of each phase, both currencies converted to dollars.

    The paper's unified cost: server tokens cost money, device tokens cost energy, and the exchange
    rate (dollars per joule) puts both on one scale.
    """

    prefill_usd: float
    decode_usd: float

    @classmethod
    def of(cls, prices: Prices, energy: Energy, usd_per_joule: float) -> Rates:
        """Combine an endpoint's prices and energy at an exchange rate."""
        return cls(
            prices.prompt_usd_per_mtok / 1e6 + energy.prefill_j_per_token * usd_per_joule,
            prices.completion_usd_per_mtok / 1e6 + energy.decode_j_per_token * usd_per_joule,
        )


def exchange_rate(settings: CostSettings, charge: float | None) -> float:
    """What a joule of the device is worth now, in dollars.

    A fixed rate always holds. Otherwise it is the price of electricity, and on battery it rises from there
    to the rate of an empty one with the cube of what is missing: half-way at a charge of a fifth.

    Args:
        settings: `[cost]`.
        charge: How full the battery is that the device runs on, in [0, 1]; `None` from a socket.
    """
    if settings.usd_per_joule is not None:
        return settings.usd_per_joule
    socket = settings.usd_per_kwh / JOULES_PER_KWH
    if charge is None:
        return socket
    return float(socket + (settings.usd_per_joule_empty - socket) * (1.0 - charge) ** 3)


def constrained_kind(device: Rates, server: Rates) -> Kind:
    """Which endpoint a budget should hold back, by the paper's rule.

    The device, when its cheaper phase costs more than the server's dearer one; the server otherwise.
    """
    if min(device.prefill_usd, device.decode_usd) > max(server.prefill_usd, server.decode_usd):
        return Kind.DEVICE
    return Kind.SERVER
