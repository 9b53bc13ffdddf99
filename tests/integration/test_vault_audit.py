"""The audit log out of the database: partitions, checkpoints, exports, and who tampers."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import House, ask, open_house, refusal
from interlock_token_vault.adapters.checkpoints import (
    CheckpointVerifier,
    Ed25519Signer,
    FileCheckpoints,
    create_checkpoint_key,
    load_checkpoints,
)
from interlock_token_vault.adapters.rows import columns_of, query
from interlock_token_vault.auditing import CheckpointNotWritten, CheckpointsUnreadable
from interlock_token_vault.domain.audit import AuditChain, AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.audit_log import ChainHead, ExportReader
from interlock_token_vault.migrations import VAULT_ROLE
from tests.support.bucket import ACCESS_KEY, BUCKET, serving_bucket

ORIGIN = Origin(actor="gateway-worker", rpc="/x/Read")
AN_HOUR = timedelta(hours=1)


@dataclass
class Log:
    """A house whose log holds two chains of an hour ago, signed half-way and at their end."""

    house: House
    chains: tuple[UUID, UUID]
    key: Path

    async def export(self, path: Path, *arguments: str) -> tuple[int | None, str, str]:
        """Export to a file."""
        return await self.house.cli("audit", "export", "--output", str(path), *arguments)

    async def verify(self, path: Path) -> tuple[int | None, str, str]:
        """Verify a file, with files alone."""
        folder = str(self.house.settings.audit_checkpoint_dir)
        keys = ("--checkpoints", folder, "--public-key", str(self.key))
        return await self.house.cli("audit", "verify", str(path), *keys, online=False)


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with nothing installed."""
    async with open_house(cluster, tmp_path) as house:
        yield house


def _signer(house: House) -> Ed25519Signer:
    pem = house.settings.audit_checkpoint_key_file
    assert pem is not None
    return Ed25519Signer.from_pem(pem)


def _head(record: ChainedEvent) -> ChainHead:
    return ChainHead(record.chain_id, record.seq, record.hash, record.at)


@pytest.fixture
async def log(house: House, tmp_path: Path) -> Log:
    """Write two chains past the vault, as two earlier processes did."""
    folder = house.settings.audit_checkpoint_dir
    assert folder is not None
    store = FileCheckpoints(folder)
    began = datetime.now(UTC) - AN_HOUR
    chains: list[UUID] = []
    for _ in range(2):
        chain = AuditChain(uuid4())
        records: list[ChainedEvent] = []
        for number in range(10):
            event = AuditEvent("token.read", ORIGIN, generation=number)
            written = chain.extend([event], began + number * timedelta(minutes=1))
            chain.advance(written)
            records += written
        await house.admin.execute(query("append_audit"), *columns_of(records))
        for place in (4, 9):
            await store.append(_signer(house).sign(_head(records[place])))
        chains.append(chain.chain_id)
    key = tmp_path / "public.pem"
    key.write_text(_signer(house).public_pem)
    return Log(house, (chains[0], chains[1]), key)


async def test_an_exported_log_verifies(log: Log, tmp_path: Path) -> None:
    """From the command line: export, then verify with files alone."""
    path = tmp_path / "export.ndjson"
    assert (await log.export(path))[0] == 0
    assert path.stat().st_mode & 0o777 == 0o600
    code, stdout, stderr = await log.verify(path)
    assert (code, stderr) == (0, "")
    assert stdout == (
        "20 records in 2 chains are as they were written;"
        " 0 of them are younger than the last checkpoint.\n"
    )
    assert len(await log.house.records("audit.exported")) == 1


@pytest.mark.parametrize(
    ("tampering", "seq", "problem"),
    [
        ("UPDATE vault.audit_event SET outcome = 'x' WHERE chain_id = $1 AND seq = 4", 4, "edited"),
        ("DELETE FROM vault.audit_event WHERE chain_id = $1 AND seq = 4", 4, "missing"),
        (
            "UPDATE vault.audit_event SET seq = 9 - seq WHERE chain_id = $1 AND seq IN (4, 5)",
            4,
            "missing",
        ),
        ("DELETE FROM vault.audit_event WHERE chain_id = $1 AND seq > 7", 8, "tail cut"),
        ("DELETE FROM vault.audit_event WHERE chain_id = $1", 1, "tail cut"),
    ],
    ids=["edited", "deleted", "swapped", "tail cut", "chain dropped"],
)
async def test_what_a_superuser_did_is_named(
    log: Log, tmp_path: Path, tampering: str, seq: int, problem: str
) -> None:
    """PG-05: the verifier names the first bad record, whatever was done to the rows."""
    await log.house.admin.execute(tampering, log.chains[1])
    path = tmp_path / "export.ndjson"
    assert (await log.export(path))[0] == 0
    code, stdout, stderr = await log.verify(path)
    assert code == 1
    assert stdout == f"chain {log.chains[1]}, record {seq}: {problem}\n"
    assert stderr == "interlock: the audit log is not as it was written\n"


async def test_a_forged_checkpoint_is_told(log: Log, tmp_path: Path) -> None:
    """A checkpoint under another key is no checkpoint, and its file is named."""
    path = tmp_path / "export.ndjson"
    await log.export(path)
    folder = log.house.settings.audit_checkpoint_dir
    assert folder is not None
    forger = Ed25519Signer.from_pem(Secret(create_checkpoint_key()))
    head = ChainHead(log.chains[0], 5, bytes(32), datetime.now(UTC))
    await FileCheckpoints(folder).append(forger.sign(head))
    code, stdout, _ = await log.verify(path)
    assert code == 1
    assert f"checkpoints {log.chains[0]}.checkpoints: a line is forged or damaged" in stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tenant", "nobody"),
        ("--from", "2026-02-01", "--to", "2026-01-01"),
        ("--from", "yesterday"),
    ],
    ids=["tenant", "order", "instant"],
)
async def test_an_export_that_makes_no_sense_is_refused(
    log: Log, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """CL-02: exit 2 and one line that says why."""
    code, stdout, stderr = await log.export(tmp_path / "export.ndjson", *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("interlock: ")
    assert stderr.count("\n") == 1


async def test_one_tenants_export_is_for_reading_only(log: Log, tmp_path: Path) -> None:
    """Records of others are left out, so it cannot be verified, and says so."""
    await log.house.install("xoxb-northwind")
    path = tmp_path / "export.ndjson"
    assert (await log.export(path, "--tenant", "northwind"))[0] == 0
    with path.open("rb") as lines:
        reader = ExportReader(iter(lines))
        assert reader.span.tenant_id == "northwind"
        assert list(reader.records()) == []
    assert (await log.verify(path))[0] == 2


async def test_ten_years_are_exported_a_page_at_a_time(house: House) -> None:
    """CL-02: however long the log, no more than a page of it is in memory at once."""
    await house.admin.execute("""
        INSERT INTO vault.audit_event
        SELECT '00000000-0000-0000-0000-000000000001', n, now() - interval '10 years' + n * interval
            '1 hour', 'token.read', 'a', 'r', '', '', '', '', '', 'allowed', NULL, '', '', '', '',
            0, '', '', 1, decode(repeat('00', 32), 'hex'), decode(repeat('00', 32), 'hex')
        FROM generate_series(1, 20000) n
    """)
    sizes = [
        len(chunk.ndjson)
        async for chunk in house.operator().ExportAudit(pb.ExportAuditRequest(), timeout=60)
    ]
    assert len(sizes) == 22
    assert max(sizes) < 1024 * 1024
    assert sum(sizes) > 8_000_000


async def test_a_vault_signs_what_it_wrote(cluster: ScratchDatabases, tmp_path: Path) -> None:
    """The last record of a process that stopped is under a signed checkpoint outside."""
    async with open_house(cluster, tmp_path) as house:
        await house.install("xoxb-northwind")
        await house.read(house.slack_grant())
        folder = house.settings.audit_checkpoint_dir
        verifier = CheckpointVerifier.from_pem(_signer(house).public_pem.encode())
        (chain,) = {row["chain_id"] for row in await house.records("token.read")}
    assert folder is not None
    heads, damaged = load_checkpoints(folder, verifier)
    assert damaged == []
    assert max(head.seq for head in heads if head.chain_id == chain) >= 5


async def test_a_vault_signs_into_a_bucket(cluster: ScratchDatabases, tmp_path: Path) -> None:
    """PG-08: what is signed goes to an object store, and a start is judged by what lies there.

    A start while the store is away is none: an older database would go unnoticed.
    """
    credentials = {"access_key_id": ACCESS_KEY, "secret_access_key": "unused"}
    async with serving_bucket() as bucket:
        place: dict[str, Any] = {
            "audit_checkpoint_dir": None,
            "audit_checkpoint_url": f"s3://{BUCKET}/vault-1",
            "audit_checkpoint_endpoint": bucket.url,
            "audit_checkpoint_region": "eu-west-1",
            "audit_checkpoint_credentials_file": Secret(json.dumps(credentials)),
        }
        async with open_house(cluster, tmp_path, **place) as house:
            await house.install("xoxb-northwind")
            settings = house.settings.model_copy(update={"ops_listen": "127.0.0.1:0"})
            second = replace(house, settings=settings)
            async with second.serving():
                assert (await second.read(second.slack_grant())).bot_token == "xoxb-northwind"
            (newest,) = (await second.records("token.read"))[-1:]
            signed = f"vault-1/{newest['chain_id']}/{newest['seq']:012}.checkpoint"
            assert signed in bucket.objects
            bucket.refuse_with = 503
            with pytest.raises(CheckpointsUnreadable):
                async with second.serving():
                    pass
            bucket.refuse_with = 0
            await house.admin.execute("DELETE FROM vault.audit_event WHERE action = 'token.read'")
            async with second.serving():
                reason = (await refusal(second.read(second.slack_grant())))[1]
            assert reason == "ON_HOLD"


async def test_a_full_disk_of_checkpoints_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    """A checkpoint that cannot be written is none; the next one is whole."""
    store, signer = (
        FileCheckpoints(tmp_path),
        Ed25519Signer.from_pem(Secret(create_checkpoint_key())),
    )
    checkpoint = signer.sign(ChainHead(UUID(int=1), 1, bytes(32), datetime.now(UTC)))
    await store.append(checkpoint)
    path = tmp_path / f"{UUID(int=1)}.checkpoints"
    whole = path.read_bytes()
    path.rename(tmp_path / "aside")
    path.mkdir()
    with pytest.raises(CheckpointNotWritten):
        await store.append(checkpoint)
    path.rmdir()
    (tmp_path / "aside").rename(path)
    await store.append(checkpoint)
    assert path.read_bytes() == whole * 2


async def test_months_are_made_ahead(house: House) -> None:
    """The serving role has a missing month made, and can make nothing else."""
    name = await house.admin.fetchval(
        "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '20 months', '\"audit_event_\"YYYY_MM')"
    )
    await house.admin.execute(f"DROP TABLE vault.{name}")
    made = "SELECT vault.make_audit_partitions(24)"
    await house.admin.execute(f"SET ROLE {VAULT_ROLE}")
    assert await house.admin.fetchval(made) == 1
    assert await house.admin.fetchval(made) == 0
    await house.admin.execute("RESET ROLE")
    assert await house.admin.fetchval("SELECT to_regclass($1)", f"vault.{name}") is not None


BREAKAGES = {
    "disk full": (
        """
        CREATE FUNCTION vault.full() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER fill BEFORE INSERT ON vault.audit_event
            FOR EACH ROW EXECUTE FUNCTION vault.full();
        """,
        "DROP TRIGGER fill ON vault.audit_event",
    ),
    "partition missing": (
        """
        DO $$ DECLARE part regclass; BEGIN
            FOR part IN SELECT inhrelid::regclass FROM pg_inherits
                WHERE inhparent = 'vault.audit_event'::regclass
            LOOP
                EXECUTE format('ALTER TABLE vault.audit_event DETACH PARTITION %s', part);
            END LOOP;
        END $$
        """,
        "ALTER TABLE vault.audit_event ATTACH PARTITION vault.audit_event_default DEFAULT",
    ),
    "read-only": (
        """
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',
            current_database()); END $$;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid();
        """,
        """
        SET default_transaction_read_only = off;
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only',
            current_database()); END $$;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid();
        """,
    ),
}


@pytest.mark.parametrize("how", BREAKAGES)
async def test_a_log_that_cannot_be_written_stops_releases(house: House, how: str) -> None:
    """PG-06: no record, no token, not ready; and all of it back without a restart."""
    breaking, mending = BREAKAGES[how]
    await house.install("xoxb-northwind")
    before = house.unwraps
    await house.admin.execute(breaking)
    for _ in range(2):
        kind, reason = await refusal(house.read(house.slack_grant()))
        assert (kind, reason) == (Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert house.unwraps == before
    assert await house.readiness() == 503
    await house.admin.execute(mending)
    # The pool may hold a session that Postgres has ended; readiness finds out.
    statuses = [await house.readiness() for _ in range(12)]
    assert statuses[-1] == 200
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"


@pytest.fixture
def mounted() -> Iterator[Path]:
    """Mount a disk of 16 MB that anybody may look into; yields where."""
    folder = Path(tempfile.mkdtemp(prefix="interlock-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("no disk can be mounted here")
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        folder.rmdir()


def _place_for(server_data: str, disk: Path) -> Path:
    """Make a folder that the server may use, on a disk."""
    owner, place = Path(server_data).stat(), disk / "log"
    place.mkdir(mode=0o700)
    os.chown(place, owner.st_uid, owner.st_gid)
    return place


def _fill(path: Path) -> None:
    """Take all the room that a disk has left."""
    with path.open("wb", buffering=0) as file:
        for size in (64 * 1024, 1024):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


@pytest.fixture
async def small_disk(house: House, mounted: Path) -> AsyncIterator[Path]:
    """Put the log on a disk of 16 MB; yields where that is mounted."""
    place = _place_for(await house.admin.fetchval("SHOW data_directory"), mounted)
    await house.admin.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
    parts = await house.admin.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits"
        " WHERE inhparent = 'vault.audit_event'::regclass"
    )
    for part in parts:
        await house.admin.execute(f"ALTER TABLE {part['name']} SET TABLESPACE small")
    yield mounted
    for part in parts:
        await house.admin.execute(f"ALTER TABLE {part['name']} SET TABLESPACE pg_default")
    await house.admin.execute("DROP TABLESPACE small")


async def test_a_disk_that_is_really_full(house: House, small_disk: Path) -> None:
    """PG-06: what room the log's last page has is used; then no token, and back with the room."""
    await house.install("xoxb-northwind")
    filler = small_disk / "filler"
    _fill(filler)
    released = 0

    async def read() -> bool:
        try:
            return (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
        except RemoteError as error:
            refusals.append((error.kind, error.reason))
            return False

    refusals: list[tuple[Kind, str]] = []
    while released < 1000 and await read():
        released += 1
    assert refusals == [(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")]
    unwraps = house.unwraps
    assert not await read()
    assert (house.unwraps, await house.readiness()) == (unwraps, 503)
    assert len(await house.records("token.read")) == released
    filler.unlink()
    statuses = [await house.readiness() for _ in range(12)]
    assert statuses[-1] == 200
    assert await read()


async def test_only_an_operator_exports(house: House) -> None:
    """The log of all tenants is nobody else's to read."""
    for peer in ("gateway-edge", "gateway-worker", "app/reports"):
        chunks = house.operator(peer).ExportAudit(pb.ExportAuditRequest(), timeout=5)
        assert await refusal(ask(chunks.read())) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
