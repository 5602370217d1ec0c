"""Delivery: pieces go to the client; the rest of the answer moves when that pays, or must."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import anyio

from discostream.config import MigrationSettings
from discostream.core.handoff import FINAL, Decision, Signal, State, advance
from discostream.core.pacing import Pulse
from discostream.core.seam import Proof, ends_sentence
from discostream.errors import BudgetSpent, EndpointError, Phase
from discostream.session.attempts import Attempts, LiveAttempt
from discostream.session.race import Lead
from discostream.session.successors import Successor, Successors
from discostream.session.target import NoContinuation, Target
from discostream.session.written import Written
from discostream.types import (
    AttemptOutcome,
    Carrier,
    Event,
    Finish,
    FinishReason,
    Migration,
    MigrationReason,
    Piece,
    Request,
)

__all__ = ["Delivery"]

log = logging.getLogger(__name__)


class Delivery:
    """Delivers one answer from the race's winner on, wherever it goes.

    Args:
        request: What is being answered.
        attempts: The running attempts.
        written: The answer so far.
        successors: Who could go on with it.
        settings: Whether, how and how often it may move.
    """

    def __init__(
        self,
        request: Request,
        attempts: Attempts,
        written: Written,
        successors: Successors,
        settings: MigrationSettings,
    ) -> None:
        self.request = request
        self.attempts = attempts
        self.written = written
        self.successors = successors
        self.settings = settings
        self.state = State.STREAMING
        self.source: LiveAttempt
        self.pulse: Pulse
        self.listening_until = math.inf
        self.source_waits = False
        self.target: Target | None = None
        self.held: list[Piece] = []
        self.moves = 0
        self.rescues = 0
        self.decision: Decision | None = None
        self.failures: list[EndpointError] = []
        self.blamed_from = 0
        self.failed: set[str] = set()
        self.late: set[str] = set()
        self.finish: FinishReason | None = None

    async def run(self, lead: Lead) -> FinishReason:
        """Deliver until the answer ends; says why it did.

        Raises:
            AllEndpointsFailed: The stream broke, and nothing could go on with it.
        """
        self.source = lead.winner
        self.pulse = Pulse(anyio.current_time())  # what came before the first content is no gap
        for failure in lead.failures:
            self._note_failure(failure)
        self.blamed_from = len(self.failures)
        for event in lead.events:
            if self.state not in FINAL:
                self._from_source(event, anyio.current_time())
        for loser in lead.losers:
            loser.cancel()
        self.attempts.listen(self)
        while self.state not in FINAL:
            if not await self.attempts.news(self._due_at) and self._due_at <= anyio.current_time():
                self._on_time()
        await self.written.close()
        if self.finish is None:
            raise self.attempts.exhausted(self.failures)
        return self.finish

    def hear(self, attempt: LiveAttempt, report: Event | EndpointError, at: float) -> None:
        """See `Listener.hear`."""
        if self.state in FINAL:
            return
        due_at = self._due_at
        if attempt is self.source:
            self._from_source(report, at)
        elif self.target is not None and attempt is self.target.attempt:
            self._from_target(self.target, report, at)
        if self._due_at < due_at or self.state in FINAL:
            self.attempts.wake()

    def must_wait(self, attempt: LiveAttempt) -> bool:
        """See `Listener.must_wait`. What a target says is not for the client yet."""
        return attempt is self.source and self.written.outlet.is_full

    async def room(self) -> None:
        """See `Listener.room`."""
        self.source_waits = True
        await self.written.outlet.room()
        self.source_waits = False
        self.pulse = self.pulse.resume(anyio.current_time())
        self.listening_until = self.pulse.silent_at

    @property
    def _due_at(self) -> float:
        """When something has to be done if nobody speaks."""
        return self.target.late_at if self.target else self.listening_until

    def why_stayed(self) -> str | None:
        """Why the answer did not move for cost; `None` if it did, or if there was none."""
        reasons = [move.reason for move in self.written.migrations]
        if not self.written.begun or MigrationReason.COST in reasons:
            return None
        if (forbidden := self._must_stay()) is not None:
            return forbidden
        asked = [each for each in self.attempts.started if each.dropped is not None]
        if self.moves and asked:
            return f"{asked[-1].endpoint.name} was asked to go on, and let go: {asked[-1].dropped}"
        if self.decision is not None:
            return self.decision.in_words()
        if not self.successors.weighed:
            return "it was over before it could move"
        return "no other endpoint could go on with it at a lower price"

    def _from_source(self, report: Event | EndpointError, at: float) -> None:
        self.pulse = self.pulse.beat(at)
        self.listening_until = self.pulse.silent_at
        match report:
            case Piece() if self.state is State.PREPARING and self.target is not None:
                self.held.append(report)
                self.target.follow(report)
            case Piece():
                if self.state is State.HEDGING:
                    self._signal(Signal.SOURCE_SPOKE)
                    self._cancel_target("the source spoke again")
                if not self._moves_before(report, at):
                    self._write(report, at)
            case Finish(reason):
                self._finish_at_source(reason)
            case EndpointError() if self._is_full():
                self._finish_at_source(FinishReason.LENGTH)
            case EndpointError():
                self._lose_source(report)

    def _from_target(self, target: Target, report: Event | EndpointError, at: float) -> None:
        try:
            match report:
                case Piece():
                    if piece := target.hear(report):
                        self._hand_off(target, piece, at)
                case Finish(reason):
                    self._end_of_target(target, reason, at)
                case EndpointError():
                    self._note_failure(report)
                    self._drop_target("it failed")
        except NoContinuation as error:
            self._refuse(target, str(error))

    def _on_time(self) -> None:
        """Nobody has spoken until the moment that something was due."""
        if self.target is None:
            self._hedge()
        else:
            self.late.add(self.target.name)
            self._drop_target("it was late")

    def _moves_before(self, following: Piece, at: float) -> bool:
        """Let another endpoint take over if the rest, from `following` on, should be generated there."""
        if self.moves >= self.settings.max_moves or self.written.reader.done_at is None:
            return False  # before the first piece nothing is unread that could hide a move
        if not self.successors.worth_weighing(self.source, at):
            return False
        if following.extra is not None:  # nobody can be asked to go on with that
            return False
        if self.written.holds_text or self._must_stay() is not None:
            return False
        spent = {*self.failed, self.source.endpoint.name}
        successor, decision = self.successors.weigh(self.source, following, spent, self.moves, at)
        self.decision = decision or self.decision
        if successor is None or decision is None:
            return False
        self.moves += 1
        if self.settings.mode == "stop-then-start":
            self._signal(Signal.SOURCE_STOPPED)
            self._let_source_go()
            late_at = math.inf
        else:
            self._signal(Signal.MIGRATE)
            self.held = [following]
            late_at = self.written.reader.done_at or math.inf
        self._start_target(successor, MigrationReason.COST, decision.in_words(), late_at, following.text)
        return True

    def _must_stay(self) -> str | None:
        """What forbids a move for cost, whatever it would save; `None` if nothing does."""
        if self.request.pinned is not None:
            return self.request.pinned
        if not self.settings.enabled or not self.settings.max_moves:
            return "migration is switched off"
        if not self.request.migrate:
            return "the request asks to stay where it starts"
        return self._unfit_to_move()

    def _unfit_to_move(self) -> str | None:
        return self.written.unfit_to_move(opened=self.source.opens_thought)

    def _hedge(self) -> None:
        """The source has been silent for too long: start another, unless the reader has enough to wait.

        A source that waits for a slow client is not silent.
        """
        if self.source_waits:
            self.pulse = self.pulse.resume(anyio.current_time())
            self.listening_until = self.pulse.silent_at
            return
        able = [] if self._is_full() else self._rescuers()
        if not able:
            self.listening_until = math.inf
            return
        self.listening_until = (self.written.reader.done_at or 0.0) - able[0].handoff_s
        if self.listening_until > anyio.current_time():
            return
        self._signal(Signal.SOURCE_SILENT)
        self._rescue_by(able, str(self._blame(self._silence())))

    def _lose_source(self, error: EndpointError) -> None:
        """The source broke: whoever is being prepared goes on, or somebody else."""
        self._signal(Signal.SOURCE_BROKE)
        self.failed.add(error.endpoint)
        self.failures.insert(self.blamed_from, error)  # its silence came before what its hedges died of
        if self.target is None:
            self._rescue()
        elif self.target.reason is MigrationReason.RESCUE:
            self.target.why = str(error)
        elif self._may_be_rescued():
            self.target.reason, self.target.why = MigrationReason.RESCUE, str(error)
        else:
            self._drop_target("the source broke, and rescues are not allowed")

    def _rescue(self) -> None:
        """Let another endpoint go on. The last one that can is never cut, even if it was late before."""
        self._release_held()
        if self.written.stopped:
            self._signal(Signal.COMPLETE)
            self.finish = FinishReason.STOP
            return
        able = self._rescuers()
        why = self.failures or [self._blame("was stopped, and nobody went on with the answer")]
        if not able:
            self.failures = why
            self._signal(Signal.NO_TARGET)
            return
        self._rescue_by(able, str(why[-1]))

    def _rescue_by(self, able: Sequence[Successor], why: str) -> None:
        """Start the first; it has to be in time only while there is a second one that was never late."""
        another = len(able) > 1 and able[1].name not in self.late
        late_at = anyio.current_time() + able[0].handoff_s if another else math.inf
        self._start_target(able[0], MigrationReason.RESCUE, why, late_at)

    def _rescuers(self) -> list[Successor]:
        """Whoever could rescue the answer, if that is allowed; who was late before comes last.

        A source that was stopped in good health may always take back what it was stopped for.
        """
        source = self.source.endpoint.name
        stopped = self.state is State.RESCUING and self.source.error is None
        able = self.successors.able(self.source, self.failed if stopped else {*self.failed, source})
        if not self._may_be_rescued():
            able = [successor for successor in able if stopped and successor.name == source]
        return sorted(able, key=lambda successor: successor.name in self.late)

    def _may_be_rescued(self) -> bool:
        return (
            self.settings.rescue
            and self.request.rescue
            and self.request.pinned is None
            and self.rescues < self.settings.max_rescues
            and self._unfit_to_move() is None
        )

    def _start_target(
        self,
        successor: Successor,
        reason: MigrationReason,
        why: str,
        late_at: float,
        following: str = "",
        *,
        exact: bool = False,
    ) -> None:
        """Ask an endpoint to go on.

        By text it goes on from a place where text may be cut; if the answer broke off in mid-word, it has to
        say the beginning of that once more. `exact` is for one that said something else.
        """
        written = self.written.text
        is_cut = reason is MigrationReason.COST or exact
        sent = written if is_cut else self.successors.rescued_from(successor)
        by_text = successor.by is Carrier.TEXT and bool(written)
        proof = Proof(sent, written[len(sent) :], following) if by_text else None
        attempt = self.attempts.start(successor.name, *self.successors.rest(successor, sent))
        self.target = Target(attempt, successor, reason, why, late_at, sent, proof)
        self._log("asks %s to go on (%s: %s)", successor.name, reason.value, why)

    def _hand_off(self, target: Target, piece: Piece, at: float) -> None:
        written = self.written
        if self.state is State.HEDGING:
            self.failures.insert(self.blamed_from, self._blame(self._silence()))
        self._signal(Signal.TARGET_READY)
        self._let_source_go()
        self.rescues += target.reason is MigrationReason.RESCUE
        written.forget_unwritten(keep_ids=target.successor.by is Carrier.TOKENS)
        written.migrations.append(
            Migration(
                source=self.source.endpoint.name,
                target=target.name,
                at_token=written.tokens,
                at_char=len(written.text),
                reason=target.reason,
                gap_s=at - written.last_at,
                by=target.successor.by,
                why=target.why,
            )
        )
        self._log("goes on at %s from token %d", target.name, written.tokens)
        self._become_source(target.attempt)
        self._write(piece, at)

    def _become_source(self, attempt: LiveAttempt) -> None:
        attempt.outcome = AttemptOutcome.MIGRATED_TO
        self.source, self.target, self.held = attempt, None, []
        self.source_waits = False  # the one before may have been let go in the middle of that
        self.blamed_from = len(self.failures)
        self.pulse = Pulse(anyio.current_time())
        self.listening_until = self.pulse.silent_at

    def _let_source_go(self) -> None:
        if self.source.error is None:
            self.source.outcome = AttemptOutcome.MIGRATED_FROM
        self.source.cancel()

    def _finish_at_source(self, reason: FinishReason) -> None:
        self._signal(Signal.SOURCE_FINISHED)
        self._cancel_target("the source had finished")
        self._release_held()
        self.finish = FinishReason.STOP if self.written.stopped else reason

    def _end_of_target(self, target: Target, reason: FinishReason, at: float) -> None:
        """A target that ends before it has proved itself: held back too long, believed, or dropped."""
        if piece := target.end():
            self._hand_off(target, piece, at)
            if self.state is State.STREAMING:
                self._from_source(Finish(reason), at)
        elif target.reason is MigrationReason.RESCUE and self._may_be_whole(target, reason):
            self._signal(Signal.COMPLETE)
            self._let_source_go()
            self._become_source(target.attempt)
            self.finish = reason
        else:
            self._distrust(target)
            self._drop_target("it ended the answer at once")

    def _may_be_whole(self, target: Target, reason: FinishReason) -> bool:
        """Whether a rescuer that adds nothing is believed; in its own tokens the answer may be full.

        Not while words are held with which the source went on from there.
        """
        if self.held:
            return False
        return reason is FinishReason.LENGTH or target.agrees or ends_sentence(self.written.text)

    def _refuse(self, target: Target, why: str) -> None:
        """Drop a target that does not go on; ask it once more if it was asked to say a word again."""
        if target.sent == self.written.text:
            self._distrust(target)
            self._drop_target(why)
            return
        self._cancel_target(why)
        try:
            self._start_target(target.successor, target.reason, target.why, target.late_at, exact=True)
        except BudgetSpent as error:
            self._note_failure(error)
            self._drop_target(str(error))

    def _distrust(self, target: Target) -> None:
        """Ask a rescuer for nothing more; but one that was asked at an earlier seam may try from the end."""
        if target.reason is MigrationReason.RESCUE and not self.held:
            self.failed.add(target.name)

    def _drop_target(self, why: str) -> None:
        self._signal(Signal.TARGET_DROPPED)
        self._cancel_target(why)
        if self.state is State.RESCUING:
            self._rescue()
        else:
            self._release_held()
            self.listening_until = self.pulse.silent_at

    def _release_held(self) -> None:
        held, self.held = self.held, []
        for piece in held:
            self._write(piece, anyio.current_time())

    def _write(self, piece: Piece, at: float) -> None:
        """Deliver a piece that came at this moment."""
        self.written.write(self.source, piece, at)
        if self.written.stopped and self.state is State.STREAMING:
            self.source.cancel()
            self._finish_at_source(FinishReason.STOP)

    def _cancel_target(self, why: str) -> None:
        if self.target:
            self._log("lets %s go: %s", self.target.name, why)
            self.target.attempt.dropped = why
            self.target.attempt.cancel()
            self.target = None

    def _is_full(self) -> bool:
        """Whether the source has written all it was allowed to, so that nothing is left to ask for."""
        most = self.request.max_tokens
        return most is not None and self.written.tokens + sum(piece.tokens for piece in self.held) >= most

    def _silence(self) -> str:
        return f"silent for {anyio.current_time() - self.pulse.quiet_since:.1f} s"

    def _blame(self, what: str) -> EndpointError:
        return EndpointError(self.source.endpoint.name, Phase.DECODE, what)

    def _note_failure(self, error: EndpointError) -> None:
        self.failed.add(error.endpoint)
        self.failures.append(error)

    def _signal(self, signal: Signal) -> None:
        self.state = advance(self.state, signal)

    def _log(self, what: str, *values: object) -> None:
        log.info("request %s: %s " + what, self.request.request_id, self.source.endpoint.name, *values)
