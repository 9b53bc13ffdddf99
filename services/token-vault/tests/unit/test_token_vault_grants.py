"""Grants that verified are recalled, for as long as they would verify and no longer."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import pytest

from interlock_chassis import server
from interlock_chassis.secret import Secret
from interlock_chassis.server import Call
from interlock_token_vault import rpc
from interlock_token_vault.adapters.memory import ManualClock
from interlock_token_vault.domain.audit import AuditEvent
from interlock_token_vault.domain.installation import ClientId
from interlock_token_vault.refusals import Refusals
from interlock_token_vault.rpc import GrantReader
from interlock_tokens.errors import InvalidToken, PurposeNotGranted
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose, Workspace
from interlock_tokens.keys import Key
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.signing import sign_admin_grant, sign_slack_grant

NORTHWIND = Workspace("", "T0NORTHWIND", is_enterprise_install=False, app_id="A0INTERLOCK")
MINUTE = timedelta(minutes=1)


class WatchedKeyset(Keyset):
    """A keyset that counts how often a token is verified with it."""

    asked = 0

    def find_verifying(self, family: Family, kid: str | None, now: datetime) -> Key | None:
        """Count, and find the key."""
        self.asked += 1
        return super().find_verifying(family, kid, now)


class Log:
    """An audit log that keeps what was refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    async def record(self, events: Sequence[AuditEvent]) -> None:
        """Keep the reasons."""
        self.refused += [event.outcome for event in events]


class Desk:
    """A reader of grants, and who signs them."""

    def __init__(self, **changes: object) -> None:
        key = generate_ed25519_key("k", [Family.SLACK_GRANT, Family.ADMIN_GRANT])
        self.signing = _keyset([key])
        self.keyset = WatchedKeyset(_keyset([key | changes]).keys, variable="KEYS")
        self.clock, self.log = ManualClock(), Log()
        self.reader = GrantReader(
            self.keyset,
            client_id=ClientId("1111.2222"),
            clock=self.clock,
            refusals=Refusals(self.log, self.clock),
        )

    def slack_grant(self, jti: str = "event-1") -> str:
        """Sign a slackGrant, good for 15 minutes from now."""
        now = self.clock.now()
        return sign_slack_grant(
            self.signing,
            now=now,
            jti=jti,
            workspace=NORTHWIND,
            slack_user_id="U0MIA",
            slack_user_team_id="T0NORTHWIND",
            event_key="Ev0",
            event_type="app_mention",
            body_sha256="a" * 64,
            event_at=now,
            is_stranger=False,
        ).reveal()

    def admin_grant(self, purpose: AdminPurpose) -> str:
        """Sign an adminGrant."""
        return sign_admin_grant(
            self.signing,
            now=self.clock.now(),
            jti="admin-1",
            workspace=NORTHWIND,
            tenant_id="northwind",
            user_id="user-ada",
            purpose=purpose,
            slack_user_id="",
        ).reveal()


def _keyset(keys: Sequence[Mapping[str, object]]) -> Keyset:
    return Keyset.from_json(Secret(json.dumps({"keys": keys})), variable="KEYS")


@pytest.fixture(autouse=True)
def _call() -> Iterator[None]:
    token = server._current.set(Call("gateway-worker", "/x/ReadBotToken", "request-1", ""))
    yield
    server._current.reset(token)


async def test_a_grant_is_verified_once_within_its_life() -> None:
    """A second read with it costs no signature check, and comes to the same."""
    desk = Desk()
    grant = desk.slack_grant()
    first = await desk.reader.for_bot(grant)
    desk.clock.advance(14 * MINUTE)
    assert await desk.reader.for_bot(grant) == first
    assert desk.keyset.asked == 1


async def test_a_recalled_grant_is_another_call_of_its_own() -> None:
    """The audit origin is that of the call being served, not of the one that verified it."""
    desk = Desk()
    grant = desk.slack_grant()
    await desk.reader.for_bot(grant)
    server._current.set(Call("gateway-worker", "/x/ReadBotTokens", "request-2", ""))
    _, origin = await desk.reader.for_bot(grant)
    assert (origin.rpc, origin.request_id) == ("/x/ReadBotTokens", "request-2")


async def test_a_grant_that_ended_is_refused_though_it_was_known() -> None:
    """The clock is read each time; the refusal is on record."""
    desk = Desk()
    grant = desk.slack_grant()
    await desk.reader.for_bot(grant)
    desk.clock.advance(15 * MINUTE)
    with pytest.raises(InvalidToken):
        await desk.reader.for_bot(grant)
    assert desk.log.refused == ["INVALID_TOKEN"]


async def test_a_grant_does_not_outlive_its_key() -> None:
    """A key that retires takes the grants along that it verified before."""
    now = ManualClock().now()
    desk = Desk(retire_after=int((now + 5 * MINUTE).timestamp()))
    grant = desk.slack_grant()
    await desk.reader.for_bot(grant)
    desk.clock.advance(5 * MINUTE)
    with pytest.raises(InvalidToken):
        await desk.reader.for_bot(grant)


async def test_a_clock_that_went_back_has_the_grant_verified_anew() -> None:
    """Before the instant at which it verified, nothing is known of it."""
    desk = Desk()
    grant = desk.slack_grant()
    desk.clock.advance(MINUTE)
    await desk.reader.for_bot(grant)
    desk.clock.advance(-MINUTE)
    await desk.reader.for_bot(grant)
    assert desk.keyset.asked == 2


async def test_one_changed_character_makes_another_grant() -> None:
    """Only the very token that verified is recalled."""
    desk = Desk()
    grant = desk.slack_grant()
    await desk.reader.for_bot(grant)
    header, payload, signature = grant.split(".")
    flipped = "A" if signature[0] != "A" else "B"
    with pytest.raises(InvalidToken):
        await desk.reader.for_bot(f"{header}.{payload}.{flipped}{signature[1:]}")


async def test_a_purpose_is_looked_at_each_time() -> None:
    """An adminGrant that verified reads no bot token when it is for something else."""
    desk = Desk()
    grant = desk.admin_grant(AdminPurpose.UNINSTALL)
    for _ in range(2):
        with pytest.raises(PurposeNotGranted):
            await desk.reader.for_bot(grant)
    assert desk.keyset.asked == 1
    assert desk.log.refused == ["PURPOSE_NOT_GRANTED"]


async def test_the_grants_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not shown for the longest is forgotten, and verified again."""
    monkeypatch.setattr(rpc, "_MAX_VERIFIED", 2)
    desk = Desk()
    first, second, third = (desk.slack_grant(f"event-{number}") for number in range(3))
    for grant in (first, second, first, third):
        await desk.reader.for_bot(grant)
    assert desk.keyset.asked == 3
    await desk.reader.for_bot(first)
    assert desk.keyset.asked == 3
    await desk.reader.for_bot(second)
    assert desk.keyset.asked == 4
