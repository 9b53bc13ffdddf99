"""The catalogue's rows on keys, each tried at the vault over Cloud KMS's stand-in.

The id of a test is the row's. Google's own client speaks to the stand-in; the
vault's store is the one in memory, which the contract suite holds to Postgres.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from structlog.testing import capture_logs
from yarl import URL

from interlock_chassis.clock import Clock, SystemClock
from interlock_chassis.config import load_settings, variable_of
from interlock_chassis.errors import ConfigError, ServiceError
from interlock_chassis.secret import Secret
from interlock_chassis.statuses import code_of
from interlock_sandbox.config import Address
from interlock_sandbox.kms.crypto_keys import State
from interlock_sandbox.kms.server import KmsStandIn, serving_kms
from interlock_sandbox.kms.testing import KEY, PROJECT
from interlock_sandbox.kms.trouble import Fault
from interlock_token_vault import key_lifecycle
from interlock_token_vault.__main__ import open_kms
from interlock_token_vault.adapters.gcp_kms import open_gcp_kms
from interlock_token_vault.adapters.kms_keys import Kms, KmsKeys, WrappedKey
from interlock_token_vault.adapters.local_kms import create_keyset
from interlock_token_vault.adapters.memory import (
    FakeClaims,
    FakeSlack,
    ManualClock,
    MemoryStore,
    ProcessKilled,
    counting_ids,
)
from interlock_token_vault.adapters.probed_keks import ProbedKeks
from interlock_token_vault.adapters.remote_kms import RemoteKms
from interlock_token_vault.config import VaultSettings
from interlock_token_vault.domain.audit import AuditEvent, Origin
from interlock_token_vault.domain.envelope import (
    NONCE_BYTES,
    SALT_BYTES,
    KeyContext,
    SealedBytes,
    TokenContext,
    seal,
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
from interlock_token_vault.key_lifecycle import KekInUse, KeyLifecycle
from interlock_token_vault.vault import ReadAsk, TokenVault

ENVIRONMENT = "development"
CLIENT = ClientId("client")
ORIGIN = Origin(actor="gateway-worker", rpc="/x/ReadBotToken")
FIRST, SECOND = (f"{KEY}/cryptoKeyVersions/{number}" for number in "12")
FOR_LONG = 1_000_000
UNAVAILABLE, DATA_LOSS = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def row(number: str) -> pytest.MarkDecorator:
    """Give a test the id of its row."""
    return pytest.mark.parametrize("row_id", [number], ids=[number])


@dataclass
class Crashing:
    """A KMS whose caller's process dies when it has wrapped so many keys.

    Attributes:
        wraps_left: Kill after this many; -1 for never.
    """

    kms: Kms
    wraps_left: int = -1

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wrap a data key; see Kms."""
        wrapped = await self.kms.wrap(dek, bound)
        self.wraps_left -= 1
        if self.wraps_left == 0:
            raise ProcessKilled
        return wrapped

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap a data key; see Kms."""
        return await self.kms.unwrap(key, bound)


@dataclass
class Stage:
    """A vault, its KMS, and the stand-in that this reaches."""

    cloud: KmsStandIn
    kms: Crashing
    clock: Clock
    store: MemoryStore
    ttl: timedelta = timedelta(seconds=300)
    installed: list[InstallationKey] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._new_id = counting_ids()
        self.restart()

    def restart(self) -> None:
        """Start the vault's process anew: nothing it kept in memory is left."""
        self.keys = KmsKeys(
            self.kms,
            fingerprint_key=Secret("k" * 32),
            clock=self.clock,
            new_id=self._new_id,
            ttl=self.ttl,
        )
        self.vault = TokenVault(self.store, self.keys, environment=ENVIRONMENT)
        self.lifecycle = KeyLifecycle(
            store=self.store,
            keys=self.keys,
            keks=ProbedKeks(self.kms),
            slack=FakeSlack(self.store.faults),
            claims=FakeClaims(self.store.faults),
            client_id=CLIENT,
            environment=ENVIRONMENT,
        )

    async def install(self, team_id: str = "T0NORTHWIND") -> InstallationId:
        """Seal a bot token of a workspace, `xoxb-` and its id."""
        key = InstallationKey(CLIENT, "A0APP", "", team_id)
        installation = Installation(
            id=InstallationId(self._new_id()),
            key=key,
            tenant_id=TenantId("tenant"),
            state=InstallationState.ACTIVE,
            generation=1,
            name=team_id,
            bot_user_id="U0BOT",
            bot_scopes=(),
            installed_at=self.clock.now(),
        )
        wrapped, data_key = await self.keys.make(KeyContext(ENVIRONMENT, CLIENT, installation.id))
        place = TokenContext(
            environment=ENVIRONMENT,
            key=key,
            installation_id=installation.id,
            user_id="",
            kind=TokenKind.BOT,
            slot=TokenSlot.ACCESS,
            dek_id=wrapped.dek_id,
            generation=1,
        )
        sealed = await data_key.seal(Secret(f"xoxb-{team_id}"), place, None)
        self.store.installations[installation.id] = installation
        self.store.deks[installation.id] = wrapped
        self.store.tokens[installation.id] = (sealed,)
        self.installed.append(key)
        return installation.id

    async def read(self, team_id: str = "T0NORTHWIND") -> None:
        """Read a workspace's token; it is the right one."""
        key = InstallationKey(CLIENT, "A0APP", "", team_id)
        released = await self.vault.read(ReadAsk(key, ORIGIN))
        assert released.token == Secret(f"xoxb-{team_id}")

    async def refused(self, team_id: str = "T0NORTHWIND") -> ServiceError:
        """Fail to read a workspace's token, within 2 s of real time."""
        started = time.monotonic()
        with pytest.raises(ServiceError) as refusal:
            await self.read(team_id)
        assert time.monotonic() - started < 2
        return refusal.value

    @property
    def outcomes(self) -> list[str]:
        """What the audit log says of reads, oldest first."""
        return [record.event.outcome for record in self.store.records]

    def codes(self, method: str) -> list[str]:
        """List how the KMS ended the calls of a method."""
        return [each["code"] for each in self.cloud.trouble.rows(method)]


@asynccontextmanager
async def _stage(
    *, clock: Clock | None = None, ttl: timedelta = timedelta(seconds=300)
) -> AsyncIterator[Stage]:
    # Nobody waits between attempts where time moves by hand.
    patience = {} if clock else {"pauses": (timedelta(0), timedelta(0))}
    clock = clock or ManualClock()
    async with (
        serving_kms([KEY]) as cloud,
        open_gcp_kms(URL(f"http://{cloud.address}"), KEY) as attempt,
    ):
        store = MemoryStore(ManualClock(), chain_id=UUID(int=99))
        yield Stage(cloud, Crashing(RemoteKms(attempt, clock, **patience)), clock, store, ttl)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a vault with a clock that moves when told to."""
    async with _stage() as made:
        yield made


async def _alarmed(stage: Stage, reason: str, team_id: str = "T0NORTHWIND") -> None:
    """Fail to open, as DATA_LOSS, with an error line and a record, and no plaintext anywhere."""
    with capture_logs() as lines:
        error = await stage.refused(team_id)
    assert (code_of(error), error.reason) == (DATA_LOSS, reason)
    assert stage.outcomes[-1] == reason
    assert "xoxb-" not in str(lines) + str(error.metadata) + str(stage.store.records)


@row("KM-01")
async def test_a_token_in_another_teams_row_stays_closed(stage: Stage, row_id: str) -> None:
    """Of the same tenant or not: neither the ciphertext alone nor with its key opens there."""
    theirs, ours = await stage.install("T0THEIRS"), await stage.install("T0OURS")
    own = stage.store.tokens[ours]
    stage.store.tokens[ours] = stage.store.tokens[theirs]
    await _alarmed(stage, "CANNOT_OPEN", "T0OURS")
    (moved,) = stage.store.tokens[theirs]
    stage.store.tokens[ours] = (replace(moved, dek_id=own[0].dek_id),)
    await _alarmed(stage, "CANNOT_OPEN", "T0OURS")
    await stage.read("T0THEIRS")
    stage.store.tokens[ours] = own
    await stage.read("T0OURS")


@row("KM-02")
async def test_a_bots_token_in_another_column_stays_closed(stage: Stage, row_id: str) -> None:
    """As a user's, a webhook's, or from the refresh slot, it is not what the row says."""
    where = await stage.install()
    (bots,) = stage.store.tokens[where]
    key = stage.installed[0]
    stage.store.tokens[where] = (replace(bots, kind=TokenKind.USER, user_id="U0MIA"),)
    with pytest.raises(ServiceError) as refusal:
        await stage.vault.read(ReadAsk(key, ORIGIN, user_id="U0MIA"))
    assert (code_of(refusal.value), refusal.value.reason) == (DATA_LOSS, "CANNOT_OPEN")
    place = TokenContext(
        environment=ENVIRONMENT,
        key=key,
        installation_id=where,
        user_id="",
        kind=TokenKind.BOT,
        slot=TokenSlot.REFRESH,
        dek_id=bots.dek_id,
        generation=1,
    )
    data_key = stage.keys.take(stage.store.deks[where], KeyContext(ENVIRONMENT, CLIENT, where))
    refresh = await data_key.seal(Secret("xoxe-1-refresh"), place, None)
    stage.store.tokens[where] = (replace(refresh, slot=TokenSlot.ACCESS),)
    await _alarmed(stage, "CANNOT_OPEN")
    stage.store.tokens[where] = (bots,)
    await stage.read()


@row("KM-03")
async def test_an_older_state_put_back_stays_closed(stage: Stage, row_id: str) -> None:
    """A token alone shows by its generation, also renamed; a whole row by the audit log's head."""
    where = await stage.install()
    (old,) = stage.store.tokens[where]
    row = stage.store.installations[where]
    stage.store.installations[where] = replace(row, generation=2)
    await _alarmed(stage, "CANNOT_OPEN")
    stage.store.tokens[where] = (replace(old, generation=2),)
    await _alarmed(stage, "CANNOT_OPEN")
    stage.store.installations[where], stage.store.tokens[where] = row, (old,)
    await stage.read()
    event = AuditEvent("install.activated", ORIGIN, installation_id=where, generation=2)
    await stage.store.record([event])
    await _alarmed(stage, "CANNOT_OPEN")


async def _put(stage: Stage, where: InstallationId, sealed: bytes) -> None:
    (token,) = stage.store.tokens[where]
    stage.store.tokens[where] = (replace(token, sealed=SealedBytes(sealed)),)


@row("KM-05")
async def test_no_bit_of_a_sealed_token_may_change(stage: Stage, row_id: str) -> None:
    """Every one, tried through a read: the version's are a format that is not known."""
    where = await stage.install()
    sealed = stage.store.tokens[where][0].sealed
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        await _put(stage, where, bytes(changed))
        error = await stage.refused()
        assert code_of(error) is DATA_LOSS
        is_version = bit < 8
        assert (error.reason == "CANNOT_OPEN") != is_version
    await _put(stage, where, sealed)
    await stage.read()


@row("KM-06")
async def test_no_length_of_a_sealed_token_may_change(stage: Stage, row_id: str) -> None:
    """Cut anywhere, or with a byte more: one typed error."""
    where = await stage.install()
    sealed = stage.store.tokens[where][0].sealed
    for changed in (*(sealed[:length] for length in range(len(sealed))), sealed + b"\0"):
        await _put(stage, where, changed)
        error = await stage.refused()
        assert (code_of(error), error.reason) == (DATA_LOSS, "CANNOT_OPEN")


@row("KM-07")
async def test_another_version_of_a_sealed_token_is_named(stage: Stage, row_id: str) -> None:
    """0, 2 and 255 are formats that nobody here writes; none is tried as anything else."""
    where = await stage.install()
    sealed = stage.store.tokens[where][0].sealed
    for version in (0, 2, 255):
        await _put(stage, where, bytes([version]) + sealed[1:])
        await _alarmed(stage, "UNSUPPORTED_VERSION")


@row("KM-08")
async def test_a_token_in_the_clear_is_an_alarm(stage: Stage, row_id: str) -> None:
    """What was never sealed is not released, and says so by its own name."""
    where = await stage.install()
    for text in (b"xoxb-17653672481-19874698323-plain", b"xoxe.xoxb-1-" + b"a" * 160):
        await _put(stage, where, text)
        await _alarmed(stage, "PLAINTEXT_AT_REST")


@row("KM-09")
async def test_one_ciphertext_does_not_open_under_two_keys(stage: Stage, row_id: str) -> None:
    """A valid ciphertext of the key in force, with another key's commitment, is refused by that."""
    where = await stage.install()
    (token,) = stage.store.tokens[where]
    place = TokenContext(
        environment=ENVIRONMENT,
        key=stage.installed[0],
        installation_id=where,
        user_id="",
        kind=TokenKind.BOT,
        slot=TokenSlot.ACCESS,
        dek_id=token.dek_id,
        generation=1,
    )
    salt, nonce = bytes(SALT_BYTES), bytes(NONCE_BYTES)
    ours = stage.store.deks[where]
    dek = await stage.kms.unwrap(
        WrappedKey(ours.kek_version, ours.wrapped),
        KeyContext(ENVIRONMENT, CLIENT, where).encode(),
    )
    mine = seal(dek.reveal(), b"xoxb-collides", place, salt=salt, nonce=nonce)
    other = seal(bytes(range(32)), b"xoxb-collides", place, salt=salt, nonce=nonce)
    committed = slice(1 + SALT_BYTES, 1 + SALT_BYTES + 32)
    await _put(stage, where, mine[: committed.start] + other[committed] + mine[committed.stop :])
    await _alarmed(stage, "CANNOT_OPEN")
    await _put(stage, where, mine)
    assert (await stage.vault.read(ReadAsk(stage.installed[0], ORIGIN))).token == Secret(
        "xoxb-collides"
    )


@row("KM-04")
async def test_a_wrapped_key_of_another_tenant_stays_closed(stage: Stage, row_id: str) -> None:
    """The KMS itself refuses it, so that a thief of the database needs more than rows."""
    theirs, ours = await stage.install("T0THEIRS"), await stage.install("T0OURS")
    stolen = stage.store.deks[theirs]
    stage.store.deks[ours] = replace(stolen, installation_id=ours)
    error = await stage.refused("T0OURS")
    assert code_of(error) is DATA_LOSS
    assert stage.codes("Decrypt") == ["INVALID_ARGUMENT"]
    assert stage.outcomes == ["allowed", "CANNOT_OPEN"]
    await stage.read("T0THEIRS")


@row("KM-10")
async def test_a_reply_that_is_not_to_be_trusted_is_discarded(stage: Stage, row_id: str) -> None:
    """Two more tries, then UNAVAILABLE; nothing of such a reply is stored or used."""
    await stage.install()
    for kind in ("wrong_crc", "unverified", "other_key"):
        asked = len(stage.codes("Encrypt"))
        stage.cloud.trouble.add("Encrypt", Fault(kind), 3)
        with pytest.raises(ServiceError) as refusal:
            await stage.install("T0OTHER")
        assert code_of(refusal.value) is UNAVAILABLE
        assert len(stage.codes("Encrypt")) == asked + 3
    assert len(stage.store.deks) == 1
    stage.cloud.trouble.add("Decrypt", Fault("wrong_crc"), 3)
    assert code_of(await stage.refused()) is UNAVAILABLE
    assert len(stage.codes("Decrypt")) == 3
    stage.cloud.trouble.add("Decrypt", Fault("wrong_crc"), 2)
    await stage.read()


@row("KM-11")
async def test_a_data_key_of_another_size_opens_nothing(stage: Stage, row_id: str) -> None:
    """16 and 33 bytes with a right checksum are DATA_LOSS, and are not kept."""
    await stage.install()
    for size in (16, 33):
        stage.cloud.trouble.add("Decrypt", Fault("other_plaintext", size=size))
        assert code_of(await stage.refused()) is DATA_LOSS
    await stage.read()


@row("KM-12")
async def test_ten_minutes_without_a_kms(stage: Stage, row_id: str) -> None:
    """Fails closed within 2 s; keys in memory serve for 300 s; then nothing; then all again."""
    assert isinstance(stage.clock, ManualClock)
    await stage.install("T0WARM")
    await stage.install("T0COLD")
    await stage.read("T0WARM")
    asked = len(stage.codes("Decrypt"))
    stage.cloud.trouble.add("*", Fault("unavailable"), FOR_LONG)
    for seconds in range(10, 610, 10):
        stage.clock.advance(timedelta(seconds=10))
        assert code_of(await stage.refused("T0COLD")) is UNAVAILABLE
        if seconds < 300:
            await stage.read("T0WARM")
        else:
            assert code_of(await stage.refused("T0WARM")) is UNAVAILABLE
    # One question each time, of three attempts; the other one met an open circuit.
    assert len(stage.codes("Decrypt")) - asked == 3 * 60
    stage.cloud.trouble.clear()
    stage.clock.advance(timedelta(seconds=1))
    await stage.read("T0COLD")
    await stage.read("T0WARM")


@row("KM-12")
async def test_a_hanging_kms_fails_closed_and_comes_back(row_id: str) -> None:
    """With real time: no reader waits 2 s, most do not wait at all, and all is well in 5 s."""
    async with _stage(clock=SystemClock(), ttl=timedelta(0)) as stage:
        teams = [f"T0TEAM{number}" for number in range(10)]
        for team in ("T0NORTHWIND", *teams):
            await stage.install(team)
        stage.cloud.trouble.add("*", Fault("hang"), FOR_LONG)
        errors = await asyncio.gather(*(stage.refused(team) for team in teams))
        assert {code_of(error) for error in errors} == {UNAVAILABLE}
        started = time.monotonic()
        await stage.refused()
        assert time.monotonic() - started < 0.5
        stage.cloud.trouble.clear()
        assert await _seconds_until_read(stage) < 5


@row("KM-12")
async def test_a_kms_that_was_away_for_long_comes_back_soon(tmp_path: Path, row_id: str) -> None:
    """The client's own patience, which grows with an outage, does not prolong it."""
    state = tmp_path / "kms.json"
    async with AsyncExitStack() as stack:
        cloud = await stack.enter_async_context(serving_kms([KEY], state_file=state))
        url = URL(f"http://{cloud.address}")
        async with open_gcp_kms(url, KEY) as attempt:
            clock = SystemClock()
            store = MemoryStore(ManualClock(), chain_id=UUID(int=99))
            kms = Crashing(RemoteKms(attempt, clock))
            stage = Stage(cloud, kms, clock, store, timedelta(0))
            await stage.install()
            await stack.aclose()
            ends = time.monotonic() + 10
            while time.monotonic() < ends:
                error = await stage.refused()
                assert code_of(error) is UNAVAILABLE
                await asyncio.sleep(0.1)
            listen = Address(str(url.host), url.port or 0)
            async with serving_kms([KEY], listen=listen, state_file=state):
                assert await _seconds_until_read(stage) < 5


async def _seconds_until_read(stage: Stage) -> float:
    """Read as a caller does that comes again when it was told to."""
    started = time.monotonic()
    while True:
        try:
            await stage.read()
        except ServiceError as error:
            await asyncio.sleep((error.retry_after or timedelta(0)).total_seconds())
        else:
            return time.monotonic() - started


@row("KM-13")
async def test_a_key_that_may_not_be_used_ends_reads(stage: Stage, row_id: str) -> None:
    """Denied, disabled, destroyed: one question, FAILED_PRECONDITION, an error line to page on."""
    clock = stage.clock
    assert isinstance(clock, ManualClock)
    await stage.install()

    async def stopped(expected: str) -> None:
        asked = len(stage.codes("Decrypt"))
        with capture_logs() as lines:
            error = await stage.refused()
        assert (code_of(error), error.reason) == (FAILED_PRECONDITION, "KEK_DISABLED")
        assert stage.codes("Decrypt")[asked:] == [expected]
        assert ("token_not_opened", "error") in [
            (line["event"], line["log_level"]) for line in lines
        ]

    async def stopped_by_the_time_to_live() -> None:
        clock.advance(timedelta(seconds=299))
        await stage.read()
        clock.advance(timedelta(seconds=1))
        await stopped("FAILED_PRECONDITION")

    stage.cloud.trouble.add("Decrypt", Fault("permission_denied"))
    await stopped("PERMISSION_DENIED")
    await stage.read()
    stage.cloud.keys.set_state(FIRST, State.DISABLED)
    await stopped_by_the_time_to_live()
    stage.cloud.keys.set_state(FIRST, State.ENABLED)
    await stage.read()
    stage.cloud.keys.destroy(FIRST)
    await stopped_by_the_time_to_live()


@asynccontextmanager
async def _traffic(stage: Stage, teams: Sequence[str]) -> AsyncIterator[None]:
    """Read all the time; no read may fail. At the end, reads under way are let finish."""
    stop = asyncio.Event()

    async def reader() -> int:
        reads = 0
        while not stop.is_set():
            await stage.read(teams[reads % len(teams)])
            reads += 1
        return reads

    readers = [asyncio.create_task(reader()) for _ in range(3)]
    yield
    stop.set()
    assert min(await asyncio.gather(*readers)) > 0


@row("KM-14")
async def test_a_key_is_rotated_under_traffic_and_crashes(
    monkeypatch: pytest.MonkeyPatch, row_id: str
) -> None:
    """No read fails while a re-wrap is killed at each row, nor when the old version is disabled."""
    monkeypatch.setattr(key_lifecycle, "_REWRAP_BATCH", 1)
    async with _stage(ttl=timedelta(0)) as stage:
        teams = [f"T0TEAM{number}" for number in range(6)]
        for team in teams:
            await stage.install(team)
        tokens = dict(stage.store.tokens)
        async with _traffic(stage, teams):
            stage.cloud.keys.create_version(KEY)
            stage.cloud.keys.set_primary(KEY, "2")
            for rewrapped in range(1, len(teams)):
                # One wrap finds the primary version, one comes through, one is lost.
                stage.kms.wraps_left = 3
                with pytest.raises(ProcessKilled):
                    await _rewrap(stage)
                versions = [each.kek_version for each in stage.store.deks.values()]
                assert versions.count(SECOND) == rewrapped
                stage.restart()
            stage.kms.wraps_left = -1
            await _rewrap(stage)
        assert {each.kek_version for each in stage.store.deks.values()} == {SECOND}
        async with _traffic(stage, teams):
            stage.cloud.keys.set_state(FIRST, State.DISABLED)
            for team in teams:
                await stage.read(team)
        assert set(stage.codes("Decrypt")) == {"OK"}
        assert stage.store.tokens == tokens


async def _rewrap(stage: Stage) -> None:
    """Re-wrap everything, as an operator does."""
    async for _ in stage.lifecycle.rewrap(ORIGIN, dry_run=False):
        pass


@row("KM-14")
async def test_a_rotation_that_has_no_effect_yet_is_not_believed(stage: Stage, row_id: str) -> None:
    """While Google still wraps by the old version, the vault says so and retires nothing."""
    stage.cloud.keys.propagation_s = 3600
    await stage.install()
    stage.cloud.keys.create_version(KEY)
    stage.cloud.keys.set_primary(KEY, "2")
    await _rewrap(stage)
    assert [(each.version, each.is_primary) for each in await stage.lifecycle.list_keks()] == [
        (FIRST, True)
    ]
    with pytest.raises(KekInUse):
        await stage.lifecycle.retire(FIRST, ORIGIN)
    await stage.read()


def _environ(folder: Path, **fields: str) -> dict[str, str]:
    """Write the least environment that a development vault starts with."""
    files = {
        "database_url_file": "postgresql://interlock_vault:pw@127.0.0.1:9/interlock_vault",
        "slack_client_secret_file": "client-secret",
        "grant_public_keys_file": '{"keys": []}',
        "fingerprint_key_file": "f" * 32,
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    settings = {
        "environment": "development",
        "listen": "127.0.0.1:0",
        "ops_listen": "127.0.0.1:0",
        "tls_ca_file": "ca",
        "tls_cert_file": "cert",
        "tls_key_file": "key",
        "slack_client_id": "1111.2222",
        "identity_address": "127.0.0.1:9",
        **{name: str(folder / name) for name in files},
        **fields,
    }
    return {variable_of(name): value for name, value in settings.items()}


async def _refused_start(environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as refusal:
        async with open_kms(load_settings(VaultSettings, environ)):
            raise AssertionError("the vault starts")
    return refusal.value


@row("KM-15")
async def test_a_key_file_that_is_not_ours_alone_stops_the_start(
    tmp_path: Path, row_id: str
) -> None:
    """Mode 0644, a link, 31 bytes, all zero, or production: the vault refuses to start."""
    good = tmp_path / "keyset.json"
    create_keyset(good)
    readable = tmp_path / "readable.json"
    create_keyset(readable)
    readable.chmod(0o644)
    link = tmp_path / "link.json"
    link.symlink_to(good)
    short, zero = _keyset(tmp_path / "short", b"k" * 31), _keyset(tmp_path / "zero", bytes(32))
    for path, problem in (
        (readable, "0600"),
        (link, "links are refused"),
        (short, "32 bytes"),
        (zero, "all zero"),
    ):
        error = await _refused_start(_environ(tmp_path, kms="local", local_keyset_file=str(path)))
        assert error.variable == "INTERLOCK_LOCAL_KEYSET_FILE"
        assert problem in error.problem
    environ = _environ(tmp_path, kms="local", local_keyset_file=str(good))
    async with open_kms(load_settings(VaultSettings, environ)):
        pass
    (tmp_path / "database_url_file").write_text(
        "postgresql://interlock_vault:pw@db.example/interlock_vault?sslmode=verify-full"
    )
    error = await _refused_start(environ | {"INTERLOCK_ENVIRONMENT": "production"})
    assert (error.variable, error.problem) == (
        "INTERLOCK_KMS",
        "keys in a file are for development only",
    )


def _keyset(path: Path, key: bytes) -> Path:
    path.write_text(json.dumps({"primary": "k", "keys": {"k": base64.b64encode(key).decode()}}))
    path.chmod(0o600)
    return path


@row("CF-03")
async def test_a_pinned_version_and_another_project_stop_the_start(
    tmp_path: Path, row_id: str
) -> None:
    """A key that could not rotate, or is somebody else's, is refused by name, and not quoted."""
    other = KEY.replace(PROJECT, "another-project")
    for key in (FIRST, other, f"{KEY}/cryptoKeyVersions/", "dek", f"{KEY}/../other"):
        environ = _environ(tmp_path, kms="gcp", gcp_kms_project=PROJECT, gcp_kms_key=key)
        error = await _refused_start(environ)
        assert error.variable == "INTERLOCK_GCP_KMS_KEY"
        assert key not in error.problem
