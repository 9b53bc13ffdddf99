"""Give every pair that Slack answers its place, whatever fails meanwhile.

An answer may be the only living pair of its chain. It is sealed with a key that
was opened before Slack was asked, put on a disk of our own, and only then
offered to the database, until that has taken it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.audit import ALLOWED, AuditEvent, Origin
from interlock_token_vault.domain.envelope import (
    CannotOpen,
    KeyContext,
    SealedToken,
    TokenContext,
)
from interlock_token_vault.domain.install import SlackAnswerUnusable, require_same_user
from interlock_token_vault.domain.installation import (
    DekId,
    InstallationKey,
    TokenKind,
    TokenRef,
    TokenSlot,
)
from interlock_token_vault.domain.rotation import (
    AnswerFacts,
    Chain,
    Fate,
    Quality,
    RefreshAnswer,
    choose,
    judge_quality,
    life_of,
)
from interlock_token_vault.install_ports import SlackUnavailable, TokenDead
from interlock_token_vault.rotation_ports import (
    Candidate,
    Failpoint,
    HeldChain,
    Lease,
    RotationStore,
    SealedAnswer,
    SealedPair,
    SlackTokens,
    Slot,
    Spool,
    SpoolFull,
    pass_by,
)
from interlock_token_vault.vault import DatabaseUnavailable, DataKey, Keys

# A database that fails over is back within a minute; until it is, the answer waits.
_PAUSES_S = (0.1, 0.3, 1.0, 2.0, 5.0)
# An unwanted token ends by itself after 12 h. Slack's troubles are mostly over within five
# minutes; a process that ends waits for the first half of a minute only.
_REVOKE_PAUSES_S = (1.0, 5.0, 20.0)
_PATIENT_PAUSES_S = (*_REVOKE_PAUSES_S, *(20.0,) * 14)
# Served by nobody; known to be short only so that it is refreshed before it is needed.
_ODD_LIFE = timedelta(hours=1)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Claimed:
    """A chain under a lease, with its data key opened."""

    held: HeldChain
    lease: Lease
    data_key: DataKey


@dataclass(slots=True)
class _Kept:
    """An answer on its way.

    Attributes:
        opened: The answer in the open; None for one that an earlier process left.
        was_spooled: Whether a restart would find it.
    """

    key: InstallationKey | None
    sealed: SealedAnswer
    slot: Slot
    opened: RefreshAnswer | None
    expires_at: datetime | None
    was_spooled: bool


class Keeper:
    """Bring answers to their places.

    Args:
        environment: As the envelope binds it.
        sleep: Waits between tries, in seconds.
        failpoint: Where tests end the process.
    """

    def __init__(
        self,
        *,
        store: RotationStore,
        keys: Keys,
        slack: SlackTokens,
        spool: Spool,
        environment: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        failpoint: Failpoint = pass_by,
    ) -> None:
        self._store = store
        self._keys = keys
        self._slack = slack
        self._spool = spool
        self._environment = environment
        self._sleep = sleep
        self._failpoint = failpoint
        self._running: set[asyncio.Task[Fate | None]] = set()
        self._is_ending = False

    def open_key(self, held: HeldChain) -> DataKey:
        """Prepare the data key of a chain; asks nobody yet."""
        key = held.installation.key
        return self._keys.take(
            held.wrapped, KeyContext(self._environment, key.client_id, held.installation.id)
        )

    async def open(self, held: HeldChain, data_key: DataKey, sealed: SealedToken) -> Secret[str]:
        """Open a token of a chain.

        Raises:
            CannotOpen, KmsUnavailable, KekDisabled: As DataKey.open.
        """
        context = self._context(held.installation.key, held.chain, sealed.dek_id, sealed.generation)
        return await data_key.open(sealed, replace(context, slot=sealed.slot))

    async def rehearse(self, held: HeldChain, data_key: DataKey) -> SealedPair:
        """Seal a pair of nothing, as an answer would be; raises as `open`."""
        nothing = Secret("xoxe-rehearsal-" + "-" * 180)
        return await self._seal(
            held.installation.key, held, data_key, (nothing, nothing), expires_at=held.at
        )

    async def take_in(
        self, claimed: Claimed, answer: RefreshAnswer, slot: Slot, *, is_doubtful: bool
    ) -> "asyncio.Task[Fate | None] | None":
        """Secure an answer, and begin to store it.

        Returns:
            What ends when it has its place, with None where the process ended
            first; None for an answer that is not of this chain and was revoked.
        """
        held = claimed.held
        quality = judge_quality(answer, held.chain, held.installation.key)
        if quality is Quality.FOREIGN:
            await self._refuse_foreign(held, answer)
            await slot.clear()
            return None
        if quality is Quality.ODD:
            _log.error("refresh_answer_odd", installation_id=str(held.installation.id))
        life = life_of(answer) or _ODD_LIFE
        expires_at = claimed.lease.at + life
        sealed = SealedAnswer(
            held.chain,
            claimed.lease.epoch,
            AnswerFacts(
                generation=held.state.generation,
                base_ref=held.state.refresh_ref,
                refresh_ref=self._keys.ref(answer.refresh_token),
                dek_id=held.wrapped.dek_id,
                is_odd=quality is Quality.ODD,
                is_doubtful=is_doubtful,
            ),
            await self._seal(
                held.installation.key,
                held,
                claimed.data_key,
                (answer.token, answer.refresh_token),
                expires_at=expires_at,
            ),
        )
        was_spooled = await self._write(slot, sealed)
        kept = _Kept(held.installation.key, sealed, slot, answer, expires_at, was_spooled)
        return self._begin(kept)

    async def replay(self) -> None:
        """Begin to store what an earlier process left in the spool."""
        for slot, sealed in await self._spool.list_left():
            await self._failpoint("during_replay")
            _log.info("spooled_answer_found", installation_id=str(sealed.chain.installation_id))
            self._begin(_Kept(None, sealed, slot, None, None, was_spooled=True))

    async def drain(self) -> None:
        """Wait until every answer has its place, or lies in the spool where a restart finds it."""
        self._is_ending = True
        while self._running:
            await asyncio.wait(set(self._running))

    async def settle(self, held: HeldChain) -> None:
        """Find out which of two pairs Slack goes on with, and serve that one.

        The other stays beside it until the chain has been refreshed once more:
        a living access token does not prove its refresh token.

        Raises:
            SlackUnavailable: It is not known yet.
            CannotOpen, KmsUnavailable, KekDisabled, DatabaseUnavailable: As usual.
        """
        data_key = self.open_key(held)
        pairs = [each.pair for each in held.candidates if await self._opens(held, data_key, each)]
        is_current_alive = await self._is_alive(held, data_key, held.access)
        # Nobody needs to be asked about what will not be chosen.
        alive = (
            []
            if is_current_alive
            else [await self._is_alive(held, data_key, p.access) for p in pairs]
        )
        place = choose(is_current_alive, alive)
        if place is None:
            event = event_of("token.probed", held.chain, held.installation.key)
            refs = [each.pair.refresh.ref for each in held.candidates]
            await self._store.mark_probed(held.chain, refs, event)
            return
        chosen = pairs[place]
        opened = (
            await self.open(held, data_key, chosen.access),
            await self.open(held, data_key, chosen.refresh),
        )
        pair = await self._seal(
            held.installation.key, held, data_key, opened, expires_at=chosen.access.expires_at
        )
        event = event_of(_rotated(held.chain), held.chain, held.installation.key, pair.access)
        await self._store.promote(held, pair, event)

    async def is_served_alive(self, held: HeldChain) -> bool:
        """Ask Slack whether the stored access token lives; raises as `settle`."""
        return await self._is_alive(held, self.open_key(held), held.access)

    # One answer.

    def _begin(self, kept: _Kept) -> "asyncio.Task[Fate | None]":
        task = asyncio.create_task(self._bring_home(kept))
        self._running.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Fate | None]") -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # The answer is still in the spool, and in nobody's hands.
            _log.error("answer_not_kept", cause=type(task.exception()).__name__)

    async def _bring_home(self, kept: _Kept) -> Fate | None:
        """Offer an answer to the database until it takes it; None when the process ends first."""
        fate = await self._store_until_taken(kept)
        if fate is None:
            return None
        await self._failpoint("after_commit")
        chain = kept.sealed.chain
        if fate is not Fate.STORED:
            _log.warning(
                "refresh_answer_late", fate=fate.value, installation_id=str(chain.installation_id)
            )
        if fate is Fate.GONE:
            await self._revoke(kept)
        await kept.slot.clear()
        if fate is Fate.KEPT_BESIDE:
            await self._try_to_settle(chain)
        return fate

    async def _store_until_taken(self, kept: _Kept) -> Fate | None:
        tries = 0
        while True:
            try:
                await self._failpoint("before_commit")
                fate = await self._store.keep(kept.sealed, self._events(kept))
                if fate is Fate.RESEAL:
                    if not await self._reseal(kept):
                        return await self._lose(kept)
                    continue
            except DatabaseUnavailable:
                if self._is_ending and kept.was_spooled:
                    return None
                await self._sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
                tries += 1
            else:
                return fate

    def _events(self, kept: _Kept) -> Callable[[Fate], list[AuditEvent]]:
        sealed = kept.sealed
        actions = {
            Fate.STORED: _rotated(sealed.chain),
            Fate.KEPT_BESIDE: "token.kept_beside",
            Fate.OUTDATED: "token.answer_dropped",
            Fate.GONE: "token.answer_dropped",
        }

        def events(fate: Fate) -> list[AuditEvent]:
            if fate not in actions:
                return []
            event = event_of(actions[fate], sealed.chain, kept.key, sealed.pair.access)
            return [replace(event, outcome=ALLOWED if fate is Fate.STORED else fate.value.upper())]

        return events

    async def _reseal(self, kept: _Kept) -> bool:
        """Seal an answer under the data key that replaced the one it was sealed under."""
        if kept.opened is None:
            return False
        held = await self._store.find_chain(kept.sealed.chain)
        if held is None:
            return True
        sealed = kept.sealed
        try:
            pair = await self._seal(
                held.installation.key,
                replace(held, state=replace(held.state, generation=sealed.facts.generation)),
                self.open_key(held),
                (kept.opened.token, kept.opened.refresh_token),
                expires_at=kept.expires_at,
            )
        except ServiceError as error:
            _log.warning("answer_not_resealed", reason=error.reason)
            await self._sleep(_PAUSES_S[-1])
            return True
        facts = replace(sealed.facts, dek_id=held.wrapped.dek_id)
        kept.key, kept.sealed = held.installation.key, replace(sealed, facts=facts, pair=pair)
        await self._write(kept.slot, kept.sealed)
        return True

    async def _lose(self, kept: _Kept) -> Fate:
        """Give up an answer whose data key is gone; nothing can open it any more."""
        _log.error("spooled_answer_lost", installation_id=str(kept.sealed.chain.installation_id))
        event = event_of("token.answer_lost", kept.sealed.chain, kept.key)
        await self._store.record([replace(event, outcome=CannotOpen.reason)])
        return Fate.OUTDATED

    async def _write(self, slot: Slot, sealed: SealedAnswer) -> bool:
        try:
            await slot.write(sealed)
        except SpoolFull:
            # The space was reserved, so the disk itself fails. The database may still do.
            _log.error("answer_not_spooled", installation_id=str(sealed.chain.installation_id))
            return False
        await self._failpoint("after_spool")
        return True

    async def _try_to_settle(self, chain: Chain) -> None:
        try:
            held = await self._store.find_chain(chain)
            if held is not None and held.has_to_settle:
                await self.settle(held)
        except ServiceError as error:
            # The candidate is marked as not probed; whoever comes round tries again.
            _log.warning("candidates_not_settled", reason=error.reason)

    async def _opens(self, held: HeldChain, data_key: DataKey, candidate: Candidate) -> bool:
        """Tell whether a candidate's refresh token can be opened; else it cannot be served."""
        try:
            await self.open(held, data_key, candidate.pair.refresh)
        except CannotOpen:
            # The chain must not stand still for it.
            _log.error("candidate_not_opened", installation_id=str(held.installation.id))
            return False
        return True

    async def _is_alive(self, held: HeldChain, data_key: DataKey, sealed: SealedToken) -> bool:
        """Ask Slack whether an access token lives, and is this chain's."""
        try:
            token = await self.open(held, data_key, sealed)
        except CannotOpen:
            # As good as dead: nobody can use it.
            _log.error("token_not_opened", installation_id=str(held.installation.id))
            return False
        try:
            identity = await self._slack.test(token)
            if held.chain.user_id:
                return identity.user_id == held.chain.user_id
            require_same_user(identity, held.installation.key, held.installation.bot_user_id)
        except (TokenDead, SlackAnswerUnusable):
            return False
        return True

    async def _refuse_foreign(self, held: HeldChain, answer: RefreshAnswer) -> None:
        _log.error("refresh_answer_foreign", installation_id=str(held.installation.id))
        ref = self._keys.ref(answer.token)
        # The lease is held meanwhile.
        await self._end_token(
            answer.token, held.chain, held.installation.key, ref, _REVOKE_PAUSES_S
        )

    async def _revoke(self, kept: _Kept) -> None:
        """End a token whose installation is gone; without its data key nobody can use it either."""
        if kept.opened is not None:
            ref = kept.sealed.pair.access.ref
            await self._end_token(
                kept.opened.token, kept.sealed.chain, kept.key, ref, _PATIENT_PAUSES_S
            )

    async def _end_token(
        self,
        token: Secret[str],
        chain: Chain,
        key: InstallationKey | None,
        ref: TokenRef,
        pauses: Sequence[float],
    ) -> None:
        event = replace(event_of("token.revoked", chain, key), token_ref=ref)
        is_recorded = False
        for tries, pause in enumerate((*pauses, None)):
            try:
                if not is_recorded:
                    await self._store.record([event])
                is_recorded = True
                await self._slack.revoke(token)
            except TokenDead:
                return
            except (SlackUnavailable, DatabaseUnavailable) as error:
                if pause is None or (self._is_ending and tries >= len(_REVOKE_PAUSES_S)):
                    _log.error("unwanted_token_not_revoked", reason=error.reason)
                    return
                await self._sleep(pause)
            else:
                return

    # Sealing.

    async def _seal(
        self,
        key: InstallationKey,
        held: HeldChain,
        data_key: DataKey,
        opened: tuple[Secret[str], Secret[str]],
        *,
        expires_at: datetime | None,
    ) -> SealedPair:
        """Seal a pair for the generation after the held one."""
        access, refresh = opened
        place = self._context(key, held.chain, held.wrapped.dek_id, held.state.generation + 1)
        return SealedPair(
            await data_key.seal(access, replace(place, slot=TokenSlot.ACCESS), expires_at),
            await data_key.seal(refresh, replace(place, slot=TokenSlot.REFRESH), None),
        )

    def _context(
        self, key: InstallationKey, chain: Chain, dek_id: DekId, generation: int
    ) -> TokenContext:
        return TokenContext(
            environment=self._environment,
            key=key,
            installation_id=chain.installation_id,
            user_id=chain.user_id,
            kind=chain.kind,
            slot=TokenSlot.ACCESS,
            dek_id=dek_id,
            generation=generation,
        )


def event_of(
    action: str,
    chain: Chain,
    key: InstallationKey | None,
    sealed: SealedToken | None = None,
) -> AuditEvent:
    """Make the record of something that rotation did to a chain."""
    return AuditEvent(
        action,
        Origin(actor="token-vault", rpc="rotation", subject=chain.user_id),
        installation_id=chain.installation_id,
        enterprise_id=key.enterprise_id if key else "",
        team_id=key.team_id if key else "",
        token_kind=chain.kind.value,
        token_ref=sealed.ref if sealed else "",
        generation=sealed.generation if sealed else 0,
    )


def _rotated(chain: Chain) -> str:
    """Name the fact; a bot's raises the installation's generation in the audit log's eyes."""
    return "token.rotated" if chain.kind is TokenKind.BOT else "user_token.rotated"
