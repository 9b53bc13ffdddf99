"""Reading a bot token: judge, commit the record, open, release, in this order."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import pytest

from interlock_chassis.errors import ServiceError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import (
    FakeKms,
    Faults,
    ManualClock,
    MemoryStore,
    counting_ids,
)
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.audit_log import find_first_break
from interlock_token_vault.domain.envelope import (
    CannotOpen,
    KeyContext,
    PlaintextAtRest,
    SealedBytes,
    TokenContext,
)
from interlock_token_vault.domain.installation import (
    ClientId,
    Installation,
    InstallationId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
    TokenSlot,
)
from interlock_token_vault.vault import (
    DatabaseUnavailable,
    InstallationNotFound,
    KekDisabled,
    KmsUnavailable,
    NeedsReinstall,
    OnHold,
    ReadAsk,
    ReleasesFrozen,
    Stop,
    TokenVault,
    UserTokenNotFound,
)

ENVIRONMENT = "development"
NORTHWIND = InstallationKey(ClientId("client"), "A0APP", "", "T0NORTHWIND")
CONTOSO = InstallationKey(ClientId("client"), "A0APP", "", "T0CONTOSO")
ORIGIN = Origin(actor="gateway-worker", rpc="/x/ReadBotToken", grant_id="jti-1", subject="U0MIA")


@dataclass
class Stage:
    """A vault on ports in memory, with what they are told to do."""

    faults: Faults = field(default_factory=Faults)
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.kms = FakeKms(self.faults)
        self.store = MemoryStore(self.clock, chain_id=UUID(int=99), faults=self.faults)
        self.new_id = counting_ids()
        self.keys = KmsKeys(
            self.kms,
            fingerprint_key=Secret("k" * 32),
            clock=self.clock,
            new_id=self.new_id,
        )
        self.vault = TokenVault(self.store, self.keys, environment=ENVIRONMENT)

    async def install(
        self,
        key: InstallationKey,
        token: str,
        *,
        generation: int = 1,
        expires_in: timedelta | None = None,
    ) -> Installation:
        """Put an active installation with a sealed token into the store."""
        installation = Installation(
            id=InstallationId(self.new_id()),
            key=key,
            tenant_id=TenantId("tenant"),
            state=InstallationState.ACTIVE,
            generation=generation,
            name="Northwind",
            bot_user_id="U0BOT",
            bot_scopes=("chat:write",),
            installed_at=self.clock.now(),
        )
        wrapped, data_key = await self.keys.make(
            KeyContext(ENVIRONMENT, key.client_id, installation.id)
        )
        context = TokenContext(
            environment=ENVIRONMENT,
            key=key,
            installation_id=installation.id,
            user_id="",
            kind=TokenKind.BOT,
            slot=TokenSlot.ACCESS,
            dek_id=wrapped.dek_id,
            generation=generation,
        )
        expires_at = self.clock.now() + expires_in if expires_in else None
        sealed = await data_key.seal(Secret(token), context, expires_at)
        self.store.installations[installation.id] = installation
        self.store.deks[installation.id] = wrapped
        self.store.tokens[installation.id] = (sealed,)
        return installation

    async def read(self, key: InstallationKey = NORTHWIND, newer_than: int = 0) -> str:
        """Read a token as the worker would."""
        released = await self.vault.read(ReadAsk(key, ORIGIN, newer_than))
        return released.token.reveal()

    @property
    def events(self) -> list[AuditEvent]:
        """The audit log, oldest first."""
        return [record.event for record in self.store.records]

    def outcomes(self) -> list[tuple[str, str]]:
        """Say what the audit log says happened."""
        return [(event.action, event.outcome) for event in self.events]


@pytest.fixture
def stage() -> Stage:
    """Give a vault with nothing installed."""
    return Stage()


async def test_a_read_releases_the_token_and_says_so_first(stage: Stage) -> None:
    """I3: the released token has a record naming who, with which grant, and which token."""
    installation = await stage.install(NORTHWIND, "xoxb-northwind")
    assert await stage.read() == "xoxb-northwind"
    (event,) = stage.events
    assert event.origin == ORIGIN
    assert (event.action, event.outcome) == ("token.read", "allowed")
    assert event.installation_id == installation.id
    assert event.team_id == "T0NORTHWIND"
    assert event.token_ref == stage.store.tokens[installation.id][0].ref
    assert (event.kek_version, event.dek_source) == ("fake-1", "kms")


async def test_no_record_no_token(stage: Stage) -> None:
    """When the record cannot be committed nothing is opened, and the KMS is not asked."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    stage.faults.fail_next("store.load_recorded", DatabaseUnavailable())
    with pytest.raises(DatabaseUnavailable):
        await stage.read()
    assert stage.faults.calls["kms.unwrap"] == 0


async def test_a_lost_answer_of_the_database_releases_nothing(stage: Stage) -> None:
    """A record that may or may not be committed counts as none."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    stage.faults.fail_after("store.load_recorded", DatabaseUnavailable())
    with pytest.raises(DatabaseUnavailable):
        await stage.read()
    assert stage.faults.calls["kms.unwrap"] == 0


async def test_the_record_says_where_the_data_key_came_from(stage: Stage) -> None:
    """The second read within the key's time is recorded as served from the cache."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    await stage.read()
    await stage.read()
    assert [event.dek_source for event in stage.events] == ["kms", "cache"]
    assert stage.faults.calls["kms.unwrap"] == 1


async def test_where_nothing_is_installed_the_refusal_is_recorded(stage: Stage) -> None:
    """A read of a workspace without the app is absent, and on record."""
    with pytest.raises(InstallationNotFound):
        await stage.read()
    assert stage.outcomes() == [("token.refused", "INSTALLATION_NOT_FOUND")]


async def test_a_pending_installation_answers_nobody(stage: Stage) -> None:
    """Until the workspace is claimed, its token is as good as not there."""
    installation = await stage.install(NORTHWIND, "xoxb-northwind")
    stage.store.installations[installation.id] = replace(
        installation, state=InstallationState.PENDING
    )
    with pytest.raises(InstallationNotFound):
        await stage.read()


@pytest.mark.parametrize(
    "other",
    [
        replace(NORTHWIND, team_id="T0OTHER"),
        replace(NORTHWIND, enterprise_id="E0GRID"),
        replace(NORTHWIND, app_id="A0OTHER"),
        replace(NORTHWIND, client_id=ClientId("other")),
        replace(NORTHWIND, enterprise_id="E0GRID", team_id=""),
    ],
)
async def test_only_the_exact_key_finds_an_installation(
    stage: Stage, other: InstallationKey
) -> None:
    """I4: no part of the key is a wildcard, and an empty part least of all."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    with pytest.raises(InstallationNotFound):
        await stage.read(other)


async def test_an_expired_token_is_not_released(stage: Stage) -> None:
    """By the database's clock, a token that has ended needs a new install."""
    await stage.install(NORTHWIND, "xoxb-northwind", expires_in=timedelta(hours=12))
    stage.clock.advance(timedelta(hours=12))
    with pytest.raises(NeedsReinstall):
        await stage.read()


async def test_a_reader_whose_token_slack_refused_gets_no_older_one(stage: Stage) -> None:
    """`newer_than` is a floor: the same generation again is no answer."""
    await stage.install(NORTHWIND, "xoxb-northwind", generation=3)
    assert await stage.read(newer_than=2) == "xoxb-northwind"
    with pytest.raises(NeedsReinstall):
        await stage.read(newer_than=3)


async def test_a_ciphertext_of_another_team_does_not_open(stage: Stage) -> None:
    """KM-01: moved within the database, a token fails, is recorded, and stays closed."""
    ours = await stage.install(NORTHWIND, "xoxb-northwind")
    theirs = await stage.install(CONTOSO, "xoxb-contoso")
    stage.store.tokens[ours.id] = stage.store.tokens[theirs.id]
    stage.store.deks[ours.id] = stage.store.deks[theirs.id]
    with pytest.raises(CannotOpen):
        await stage.read()
    assert stage.outcomes() == [("token.read", "allowed"), ("token.unopened", "CANNOT_OPEN")]


async def test_a_row_re_pointed_at_another_team_does_not_open(stage: Stage) -> None:
    """The context comes from the grant: a row that claims another's key is of no use."""
    theirs = await stage.install(CONTOSO, "xoxb-contoso")
    stage.store.installations[theirs.id] = replace(theirs, key=NORTHWIND)
    with pytest.raises(CannotOpen):
        await stage.read()


async def test_a_wrapped_key_of_another_installation_does_not_unwrap(stage: Stage) -> None:
    """KM-04: the KMS refuses a data key under another installation's context."""
    ours = await stage.install(NORTHWIND, "xoxb-northwind")
    theirs = await stage.install(CONTOSO, "xoxb-contoso")
    stage.store.deks[ours.id] = stage.store.deks[theirs.id]
    with pytest.raises(CannotOpen):
        await stage.read()


async def test_a_ciphertext_of_an_older_generation_is_refused(stage: Stage) -> None:
    """KM-03: a token put back without its row shows by its generation."""
    installation = await stage.install(NORTHWIND, "xoxb-old")
    stage.store.installations[installation.id] = replace(installation, generation=2)
    with pytest.raises(CannotOpen):
        await stage.read()
    assert stage.outcomes() == [("token.refused", "CANNOT_OPEN")]


async def test_a_whole_row_of_an_older_state_is_refused(stage: Stage) -> None:
    """KM-03: an installation put back with its token shows against the audit log."""
    installation = await stage.install(NORTHWIND, "xoxb-old")
    await stage.store.record(
        [AuditEvent("install.activated", ORIGIN, installation_id=installation.id, generation=2)]
    )
    with pytest.raises(CannotOpen):
        await stage.read()
    assert stage.faults.calls["kms.unwrap"] == 0


async def test_a_plaintext_token_in_the_database_is_refused(stage: Stage) -> None:
    """KM-08: what was never sealed is never released, however good it looks."""
    installation = await stage.install(NORTHWIND, "xoxb-northwind")
    (sealed,) = stage.store.tokens[installation.id]
    stage.store.tokens[installation.id] = (
        replace(sealed, sealed=SealedBytes(b"xoxb-17653672481-19874698323-plain")),
    )
    with pytest.raises(PlaintextAtRest):
        await stage.read()
    assert stage.outcomes()[-1] == ("token.unopened", "PLAINTEXT_AT_REST")


async def test_a_shredded_key_is_not_taken_for_an_uninstall(stage: Stage) -> None:
    """A data key that is gone without a purge pages; it does not read as absent."""
    installation = await stage.install(NORTHWIND, "xoxb-northwind")
    del stage.store.deks[installation.id]
    with pytest.raises(CannotOpen):
        await stage.read()


async def test_a_kms_that_is_away_fails_the_read(stage: Stage) -> None:
    """There is no cached token to fall back on; the failure is recorded too."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    await stage.read()
    stage.clock.advance(timedelta(seconds=300))
    stage.faults.fail_next("kms.unwrap", KmsUnavailable())
    with pytest.raises(KmsUnavailable):
        await stage.read()
    assert stage.outcomes()[-1] == ("token.unopened", "KMS_UNAVAILABLE")
    assert await stage.read() == "xoxb-northwind"


async def test_a_disabled_key_ends_reads_within_the_cache_time(stage: Stage) -> None:
    """KM-13: a data key that is still warm serves for 300 s and not a moment more."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    await stage.read()
    stage.kms.disable("fake-1")
    stage.clock.advance(timedelta(seconds=299))
    assert await stage.read() == "xoxb-northwind"
    stage.clock.advance(timedelta(seconds=1))
    with pytest.raises(KekDisabled):
        await stage.read()


async def test_a_failure_to_open_is_told_even_when_it_cannot_be_recorded(stage: Stage) -> None:
    """The caller hears why; that the read was allowed is on record already."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    stage.faults.fail_next("kms.unwrap", KmsUnavailable())
    stage.faults.fail_next("store.record", DatabaseUnavailable())
    with pytest.raises(KmsUnavailable):
        await stage.read()


async def test_many_reads_have_each_its_own_verdict(stage: Stage) -> None:
    """One refusal among many reads takes nothing from the others, and order is kept."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    await stage.install(CONTOSO, "xoxb-contoso")
    absent = replace(NORTHWIND, team_id="T0NOBODY")
    verdicts = await stage.vault.read_many(
        [ReadAsk(key, ORIGIN) for key in (CONTOSO, absent, NORTHWIND)]
    )
    assert [
        verdict.reason if isinstance(verdict, ServiceError) else verdict.token.reveal()
        for verdict in verdicts
    ] == ["xoxb-contoso", "INSTALLATION_NOT_FOUND", "xoxb-northwind"]
    assert len(stage.events) == 3


async def test_pages_of_the_audit_log_lose_and_repeat_nothing(stage: Stage) -> None:
    """Walking the pages shows every record once, newest first, and the chain is sound."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    for _ in range(7):
        await stage.read()
        stage.clock.advance(timedelta(milliseconds=1))
    seen: list[int] = []
    after = None
    while True:
        records, after = await stage.vault.list_audit_events(NORTHWIND, 3, after)
        seen += [record.seq for record in records]
        if after is None:
            break
    assert seen == [7, 6, 5, 4, 3, 2, 1]
    assert find_first_break(stage.store.records) is None


async def test_the_audit_log_is_scoped_to_one_installation(stage: Stage) -> None:
    """A grant of one workspace shows nothing of another; no key shows all."""
    await stage.install(NORTHWIND, "xoxb-northwind")
    await stage.install(CONTOSO, "xoxb-contoso")
    await stage.read(NORTHWIND)
    await stage.read(CONTOSO)
    ours, _ = await stage.vault.list_audit_events(NORTHWIND, 0, None)
    everything, _ = await stage.vault.list_audit_events(None, 0, None)
    assert [record.event.team_id for record in ours] == ["T0NORTHWIND"]
    assert len(everything) == 2


async def test_a_frozen_workspace_releases_nothing_until_it_is_resumed(stage: Stage) -> None:
    """The switch works on what is asked after it, without asking the KMS, and leaves records."""
    ours = await stage.install(NORTHWIND, "xoxb-ours")
    await stage.install(CONTOSO, "xoxb-theirs")
    await stage.vault.freeze(ours.id, "leak", ORIGIN)
    with pytest.raises(ReleasesFrozen):
        await stage.vault.read(ReadAsk(NORTHWIND, ORIGIN))
    assert stage.faults.calls["kms.unwrap"] == 0
    assert (await stage.vault.read(ReadAsk(CONTOSO, ORIGIN))).token == Secret("xoxb-theirs")
    await stage.vault.unfreeze(ours.id, "over", ORIGIN)
    assert (await stage.vault.read(ReadAsk(NORTHWIND, ORIGIN))).token == Secret("xoxb-ours")
    actions = [(record.event.action, record.event.outcome) for record in stage.store.records]
    assert actions == [
        ("releases.frozen", "allowed"),
        ("token.refused", "RELEASES_FROZEN"),
        ("token.read", "allowed"),
        ("releases.resumed", "allowed"),
        ("token.read", "allowed"),
    ]
    assert stage.store.records[0].event.origin.purpose == "leak"


async def test_a_freeze_of_all_stops_every_workspace(stage: Stage) -> None:
    """One switch for the day on which nobody knows yet what leaked."""
    await stage.install(NORTHWIND, "xoxb-ours")
    await stage.vault.freeze(None, "leak", ORIGIN)
    with pytest.raises(ReleasesFrozen):
        await stage.vault.read(ReadAsk(NORTHWIND, ORIGIN))


async def test_a_held_workspace_says_so(stage: Stage) -> None:
    """What was restored is not released before it was looked at."""
    ours = await stage.install(NORTHWIND, "xoxb-ours")
    stage.store.stops[ours.id, Stop.HELD] = "restored"
    with pytest.raises(OnHold):
        await stage.vault.read(ReadAsk(NORTHWIND, ORIGIN))


async def test_a_user_without_a_token_gets_no_other(stage: Stage) -> None:
    """A user's read is never answered with the bot's token."""
    await stage.install(NORTHWIND, "xoxb-ours")
    with pytest.raises(UserTokenNotFound):
        await stage.vault.read(ReadAsk(NORTHWIND, ORIGIN, user_id="U0MIA"))
    assert stage.store.records[-1].event.token_kind == "user"


async def test_a_users_token_opens_for_that_user_alone(stage: Stage) -> None:
    """Each user's token is sealed to that user, with a generation of its own."""
    ours = await stage.install(NORTHWIND, "xoxb-ours", generation=3)
    wrapped = stage.store.deks[ours.id]
    data_key = stage.keys.take(wrapped, KeyContext(ENVIRONMENT, NORTHWIND.client_id, ours.id))
    place = TokenContext(
        environment=ENVIRONMENT,
        key=NORTHWIND,
        installation_id=ours.id,
        user_id="U0MIA",
        kind=TokenKind.USER,
        slot=TokenSlot.ACCESS,
        dek_id=wrapped.dek_id,
        generation=1,
    )
    mias = await data_key.seal(Secret("xoxp-mia"), place, None)
    stage.store.tokens[ours.id] += (mias,)
    released = await stage.vault.read(ReadAsk(NORTHWIND, ORIGIN, user_id="U0MIA"))
    assert (released.token, released.generation) == (Secret("xoxp-mia"), 1)
    stage.store.tokens[ours.id] += (replace(mias, user_id="U0BOB"),)
    with pytest.raises(CannotOpen):
        await stage.vault.read(ReadAsk(NORTHWIND, ORIGIN, user_id="U0BOB"))
