"""Bad input at the vault: one test id per row of tests/fixtures/bad_inputs.tsv.

The real vault over mTLS gRPC, a real Postgres, and the command as an operator runs it.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
import typer.core
import typer.main
from grpc import aio
from structlog.testing import capture_logs

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.callers import CallerTable, may_call
from interlock_chassis.client import open_channel
from interlock_chassis.database import create_database, migrate
from interlock_chassis.errors import ConfigError, Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_chassis.server import RpcServer
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.__main__ import app as command
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import (
    CONTOSO,
    PEERS,
    TIMEOUT_S,
    VAULT,
    House,
    ask,
    make_keyset,
    open_house,
    refusal,
)
from interlock_gateway.migrations import DATABASE as GATEWAY_DATABASE
from interlock_gateway.migrations import WORKER_ROLE
from interlock_token_vault.adapters.checkpoints import Ed25519Signer, FileCheckpoints
from interlock_token_vault.adapters.rows import columns_of, query, record_of
from interlock_token_vault.domain.audit import AuditChain, AuditEvent, ChainedEvent, Origin
from interlock_token_vault.domain.audit_log import Break, ChainHead, Span, verify_log
from interlock_token_vault.migrations import DATABASE, VAULT_ROLE
from interlock_token_vault.rpc import CALLERS
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose

READ = f"/{VAULT}.TokenService/ReadBotToken"
TABLES = (
    "installation",
    "sealed_token",
    "wrapped_dek",
    "audit_event",
    "app_place",
    "app_record",
    "app_secret",
)
DENIED = asyncpg.InsufficientPrivilegeError

Row = Callable[[House], Awaitable[None]]


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with one workspace installed."""
    async with open_house(cluster, tmp_path) as house:
        await house.install("xoxb-northwind")
        yield house


async def raw(house: House, method: str, request: bytes, peer: str = "gateway-worker") -> bytes:
    """Call a method with bytes of one's own making."""
    call = house.channels[peer].unary_unary(
        method, request_serializer=bytes, response_deserializer=bytes
    )
    answer: bytes = await ask(call(request, timeout=TIMEOUT_S))
    return answer


async def alive(house: House) -> None:
    """Check that the vault still serves, as it always did."""
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"


# gRPC token-vault


async def gv_01(house: House) -> None:
    """Without a certificate, with a stranger's, or with an ended one there is no handshake."""
    stranger = ThrowAwayCa.create(house.folder / "stranger")
    ended = timedelta(minutes=-1)
    ours = house.ca.certificate
    bundles = {
        "none": grpc.ssl_channel_credentials(_pem(house, "ca.crt")),
        "stranger": _credentials(house, stranger.issue("gateway-worker", house.folder / "s")),
        "expired": _credentials(
            house, house.ca.issue("gateway-worker", house.folder / "e", life=ended)
        ),
    }
    assert ours is not None
    for credentials in bundles.values():
        channel = aio.secure_channel(
            f"127.0.0.1:{house.port}",
            credentials,
            options=[("grpc.ssl_target_name_override", "token-vault")],
        )
        async with channel:
            request = pb.ReadBotTokenRequest(grant=house.slack_grant())
            call = services.TokenServiceStub(channel).ReadBotToken(request, timeout=5)
            assert (await refusal(ask(call)))[1] == "PEER_UNAVAILABLE"
    assert await house.records("call.refused") == []


def _pem(house: House, name: str) -> bytes:
    return (house.tls_dir / name).read_bytes()


def _credentials(house: House, files: Any) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        _pem(house, "ca.crt"), files.key.read_bytes(), files.cert.read_bytes()
    )


async def gv_02(house: House) -> None:
    """A service that is no app saves no installation, and that is on record."""
    call = house.store("runner").SaveInstallation(pb.SaveInstallationRequest(), timeout=5)
    assert await refusal(ask(call)) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
    assert [each["actor"] for each in await house.records("call.refused")] == ["runner"]


async def gv_03(house: House) -> None:
    """An RPC missing from the caller table stops the start; an empty list lets nobody in."""
    name = f"{VAULT}.AuditService"
    tables: list[tuple[CallerTable, bool]] = [
        ({}, False),
        ({f"/{name}/ListAuditEvents": frozenset()}, True),
    ]
    for callers, is_complete in tables:
        server = RpcServer(
            listen="127.0.0.1:0",
            tls=house.ca.issue("token-vault", house.tls_dir),
            callers=callers,
            caps={},
        )
        server.add(services.add_AuditServiceServicer_to_server, _Silent(), name)
        if not is_complete:
            with pytest.raises(ConfigError, match="ListAuditEvents"):
                await server.start()
            continue
        port = await server.start()
        tls = house.ca.issue("operator", house.tls_dir)
        async with open_channel(f"127.0.0.1:{port}", tls, server="token-vault") as channel:
            call = services.AuditServiceStub(channel).ListAuditEvents(
                pb.ListAuditEventsRequest(), timeout=5
            )
            assert await refusal(ask(call)) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
        await server.stop(timedelta(0))


class _Silent(services.AuditServiceServicer):
    async def ListAuditEvents(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name.
        raise AssertionError("nobody may come here")


async def gv_04(house: House) -> None:
    """No grant, or one of another family, purpose, time or key: refused, recorded, unopened."""
    grants = {
        "": Kind.INVALID,
        house.install_grant(): Kind.UNAUTHENTICATED,
        house.admin_grant(AdminPurpose.AUDIT): Kind.FORBIDDEN,
        house.slack_grant(age=timedelta(minutes=16)): Kind.UNAUTHENTICATED,
        replace(house, edge_keys=make_keyset("edge-9", Family.SLACK_GRANT)).slack_grant(): (
            Kind.UNAUTHENTICATED
        ),
    }
    unwraps = house.unwraps
    for grant, kind in grants.items():
        assert (await refusal(house.read(grant)))[0] is kind
    assert (await refusal(house.read(house.slack_grant(), "gateway-edge")))[0] is Kind.FORBIDDEN
    assert house.unwraps == unwraps
    outcomes = {each["outcome"] for each in await house.records("call.refused")}
    assert outcomes == {
        "INVALID_ARGUMENT",
        "INVALID_TOKEN",
        "PURPOSE_NOT_GRANTED",
        "CALLER_NOT_ALLOWED",
    }


async def gv_05(house: House) -> None:
    """A field that names another team is refused unread, and that is on record."""
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    unwraps = house.unwraps
    asked = pb.ReadBotTokenRequest(grant=house.slack_grant(CONTOSO)).SerializeToString()
    named = asked + bytes([15 << 3 | 2, len("T0NORTHWIND")]) + b"T0NORTHWIND"
    assert (await refusal(raw(house, READ, named)))[0] is Kind.INVALID
    assert house.unwraps == unwraps
    (record,) = await house.records("call.refused")
    assert (record["actor"], record["outcome"]) == ("gateway-worker", "INVALID_ARGUMENT")


async def gv_06(house: House) -> None:
    """A key that is not ours, no algorithm, a flipped bit: the same refusal."""
    head, body, signature = house.slack_grant().split(".")
    flipped = ("B" if signature[9] == "A" else "A").join((signature[:9], signature[10:]))
    forger = replace(house, edge_keys=make_keyset("edge-1", Family.SLACK_GRANT))
    for grant in (
        forger.slack_grant(),
        f"eyJhbGciOiJub25lIn0.{body}.",
        f"{head}.{body}.{flipped}",
    ):
        assert await refusal(house.read(grant)) == (Kind.UNAUTHENTICATED, "INVALID_TOKEN")


async def gv_07(house: House) -> None:
    """A message of one byte more than 64 KiB is not taken."""
    with pytest.raises(RemoteError) as refused:
        await raw(house, READ, b"\n" + b"\x00" * (64 * 1024))
    assert refused.value.kind is Kind.EXHAUSTED
    await alive(house)


async def gv_08(house: House) -> None:
    """An enum value nobody knows, a required message left out, 10 kB of an unknown field."""
    backup, save = f"/{VAULT}.OperatorService/Backup", f"/{VAULT}.InstallationStoreService/SaveBot"
    unknown = pb.BackupRequest(part=99).SerializeToString()  # type: ignore[arg-type] # On purpose.
    stream = house.channels["operator"].unary_stream(
        backup, request_serializer=bytes, response_deserializer=bytes
    )
    assert (await refusal(ask(stream(unknown, timeout=5).read())))[0] is Kind.INVALID
    assert (await refusal(raw(house, save, b"", "app/reports")))[0] is Kind.INVALID
    bot = pb.SaveBotRequest(bot=pb.BotRecord(team_id="T11")).SerializeToString()
    padded = bot + bytes([15 << 3 | 2, 0x90, 0x4E]) + b"x" * 10_000
    assert (await refusal(raw(house, save, padded, "app/reports")))[0] is Kind.INVALID


async def gv_09(house: House) -> None:
    """A call without a deadline is refused; one of ten minutes is answered within five seconds."""
    request = pb.ReadBotTokenRequest(grant=house.slack_grant())
    assert await refusal(ask(house.tokens().ReadBotToken(request))) == (
        Kind.INVALID,
        "DEADLINE_MISSING",
    )
    house.kms.gate.clear()
    started = time.monotonic()
    kind, _ = await refusal(ask(house.tokens().ReadBotToken(request, timeout=600)))
    assert (kind, time.monotonic() - started < 5) == (Kind.UNAVAILABLE, True)
    house.kms.gate.set()


async def gv_10(house: House) -> None:
    """A caller that goes away after the decision leaves a record, and nothing is tried again."""
    unwraps = house.unwraps
    house.kms.asked.clear()
    house.kms.gate.clear()
    request = pb.ReadBotTokenRequest(grant=house.slack_grant())
    call = house.tokens().ReadBotToken(request, timeout=TIMEOUT_S)
    reading = asyncio.ensure_future(ask(call))
    async with asyncio.timeout(TIMEOUT_S):
        await house.kms.asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    house.kms.gate.set()
    await alive(house)
    assert house.unwraps == unwraps + 1
    assert len(await house.records("token.read")) == 2


async def gv_11(house: House) -> None:
    """An error with a token in its text: neither the reply nor the log knows the text."""
    house.kms.faults.fail_next("kms.unwrap", ValueError("xoxb-canary"))
    with capture_logs() as logs, pytest.raises(RemoteError) as refused:
        await house.read(house.slack_grant())
    assert refused.value.kind is Kind.INTERNAL
    assert re.fullmatch(r"internal error \S+", refused.value.message)
    assert "rpc_finished" in {entry["event"] for entry in logs}
    assert "canary" not in repr(logs)
    await alive(house)


async def gv_12(house: House) -> None:
    """Neither reflection nor channelz is served, to anybody."""
    for method in (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
    ):
        assert (await refusal(raw(house, method, b"", "operator")))[0] is Kind.UNIMPLEMENTED


async def gv_13(house: House) -> None:
    """Of 5,000 calls at once the excess is refused, and other peers are served meanwhile."""
    # On connections that stand: what a new one may open is not known to its client yet.
    listing = pb.ListAuditEventsRequest(page_size=1)
    others = house.audit("operator")
    await ask(others.ListAuditEvents(listing, timeout=20))
    worker = house.audit("gateway-worker").ListAuditEvents(listing, timeout=20)
    assert (await refusal(ask(worker)))[1] == "CALLER_NOT_ALLOWED"
    house.kms.gate.clear()
    request = pb.ReadBotTokenRequest(grant=house.slack_grant())
    stub = house.tokens()

    async def flood() -> str:
        try:
            await ask(stub.ReadBotToken(request, timeout=30))
        except RemoteError as error:
            return error.reason
        return ""

    flooding = [asyncio.create_task(flood()) for _ in range(5000)]
    answers = await asyncio.gather(
        *(ask(others.ListAuditEvents(listing, timeout=20)) for _ in range(20))
    )
    assert [len(answer.events) for answer in answers] == [1] * 20
    reasons = await asyncio.gather(*flooding)
    house.kms.gate.set()
    assert reasons.count("TOO_MANY_CALLS") > 0
    assert set(reasons) <= {"TOO_MANY_CALLS", "KMS_UNAVAILABLE", ""}
    await alive(house)


async def gv_14(house: House) -> None:
    """Metadata outside ASCII is refused by the transport, and crashes nothing."""
    request = pb.ReadBotTokenRequest(grant=house.slack_grant())
    for value in ("\u00e9", "a\nb"):
        call = house.tokens().ReadBotToken(request, timeout=5, metadata=(("x-request-id", value),))
        with pytest.raises(Exception, match=r"(?i)metadata|illegal|invalid|internal"):
            await call
    await alive(house)


# Postgres


async def pg_01(house: House) -> None:
    """The serving role sees no row of any table before it has named an installation."""
    await house.admin.execute(f"SET ROLE {VAULT_ROLE}")
    for table in TABLES:
        counting = f"SELECT count(*) FROM vault.{table}"  # noqa: S608 - Our own names.
        assert await house.admin.fetchval(counting) == 0


async def pg_02(house: House) -> None:
    """What one transaction named is forgotten by the next; and no row has an empty key."""
    where = await house.admin.fetchval("SELECT installation_id FROM vault.installation")
    await house.admin.execute(f"SET ROLE {VAULT_ROLE}")
    async with house.admin.transaction():
        await house.admin.execute(query("name_installations"), [where])
        assert await house.admin.fetchval("SELECT count(*) FROM vault.sealed_token") == 1
    assert await house.admin.fetchval("SELECT current_setting('app.installations', true)") == ""
    assert await house.admin.fetchval("SELECT count(*) FROM vault.sealed_token") == 0
    await house.admin.execute("RESET ROLE")
    for table in ("installation", "app_place"):
        with pytest.raises(asyncpg.CheckViolationError):
            await house.admin.execute(_inserting(table, "", ""))


def _inserting(table: str, enterprise: str, team: str) -> str:
    more = {
        "installation": ", 'A0APP', '{e}', '{t}', 'tenant', 'active', 1, 'N', 'U0B', '{{}}', now()",
        "app_place": ", '{e}', '{t}'",
    }
    values = more[table].format(e=enterprise, t=team)
    return f"INSERT INTO vault.{table} VALUES (gen_random_uuid(), 'client'{values})"  # noqa: S608 - Ours.


async def pg_03(house: House) -> None:
    """The serving role changes and removes no record, in the log or in a month of it."""
    month = "audit_event_" + datetime.now(UTC).strftime("%Y_%m")
    await house.admin.execute(f"SET ROLE {VAULT_ROLE}")
    for table in ("audit_event", "audit_event_default", month):
        for statement in (
            f"UPDATE vault.{table} SET outcome = 'x'",  # noqa: S608 - Our own names.
            f"DELETE FROM vault.{table}",  # noqa: S608 - As above.
            f"TRUNCATE vault.{table}",
        ):
            with pytest.raises(DENIED):
                await house.admin.execute(statement)


async def pg_05(house: House) -> None:
    """Edit, delete, swap, cut or drop: the first bad record is named, whoever did it."""
    chain = AuditChain(uuid4())
    event = AuditEvent("token.read", Origin("gateway-worker", "/x/Read"))
    written: list[ChainedEvent] = []
    for minute in range(9):
        at = datetime.now(UTC) - timedelta(minutes=60 - minute)
        written += chain.extend([event], at)
        chain.advance(written[-1:])
    head = ChainHead(chain.chain_id, 9, written[-1].hash, written[-1].at)
    span = Span(None, datetime.now(UTC))
    tamperings = {
        "UPDATE vault.audit_event SET actor = 'x' WHERE chain_id = $1 AND seq = 4": 4,
        "DELETE FROM vault.audit_event WHERE chain_id = $1 AND seq = 4": 4,
        "UPDATE vault.audit_event SET seq = 9 - seq WHERE chain_id = $1 AND seq IN (4, 5)": 4,
        "DELETE FROM vault.audit_event WHERE chain_id = $1 AND seq > 6": 7,
        "DELETE FROM vault.audit_event WHERE chain_id = $1": 1,
    }
    for tampering, seq in tamperings.items():
        async with house.admin.transaction():
            await house.admin.execute("DELETE FROM vault.audit_event")
            await house.admin.execute(query("append_audit"), *columns_of(written))
            assert verify_log(span, await _log(house), [head]).breaks == ()
            await house.admin.execute(tampering, chain.chain_id)
            (found,) = verify_log(span, await _log(house), [head]).breaks
            assert found == Break(chain.chain_id, seq, found.problem)


async def _log(house: House) -> list[ChainedEvent]:
    rows = await house.admin.fetch("SELECT * FROM vault.audit_event ORDER BY at, chain_id, seq")
    return [record_of(row) for row in rows]


async def pg_06(house: House) -> None:
    """A full disk under the log: nothing is released, not ready, and back without a restart."""
    await house.admin.execute("""
        CREATE FUNCTION vault.full() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER fill BEFORE INSERT ON vault.audit_event
            FOR EACH ROW EXECUTE FUNCTION vault.full();
    """)
    unwraps = house.unwraps
    assert await refusal(house.read(house.slack_grant())) == (
        Kind.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
    )
    assert (house.unwraps, await house.readiness()) == (unwraps, 503)
    await house.admin.execute("DROP TRIGGER fill ON vault.audit_event")
    assert await house.readiness() == 200
    await alive(house)


async def pg_07(house: House) -> None:
    """The database dies between the record and the reply: what is released is on record."""
    house.kms.asked.clear()
    house.kms.gate.clear()
    reading = asyncio.create_task(house.read(house.slack_grant()))
    async with asyncio.timeout(TIMEOUT_S):
        await house.kms.asked.wait()
    await house.admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    house.kms.gate.set()
    assert (await reading).bot_token == "xoxb-northwind"
    assert len(await house.records("token.read")) == 1


async def pg_08(house: House) -> None:
    """A database without a record that was signed is not served from until an operator says so."""
    pem, folder = house.settings.audit_checkpoint_key_file, house.settings.audit_checkpoint_dir
    assert pem is not None
    assert folder is not None
    head = ChainHead(UUID(int=5), 7, bytes(32), datetime.now(UTC))
    await FileCheckpoints(folder).append(Ed25519Signer.from_pem(pem).sign(head))
    settings = house.settings.model_copy(update={"ops_listen": "127.0.0.1:0"})
    restored = replace(house, settings=settings)
    async with restored.serving():
        assert (await refusal(restored.read(restored.slack_grant())))[1] == "ON_HOLD"
        assert (await restored.cli("release-hold"))[0] == 0
        await alive(restored)


async def pg_10(house: House) -> None:
    """Ids that only look like Slack's are refused by the database itself."""
    for team in ("t123", "T123 ", "\u0422123", "T12\u0663", "C123"):
        for table in ("installation", "app_place"):
            with pytest.raises(asyncpg.CheckViolationError):
                await house.admin.execute(_inserting(table, "", team))


# CLI


async def cl_01(house: House) -> None:
    """No command takes a secret as an argument: there is no such option."""
    taken = dict(_parameters(typer.main.get_command(command)))
    assert "interlock keys rewrap --dry-run" in taken
    for name, kind in taken.items():
        if re.search(r"token|secret|password|credential|key", name.rpartition(" ")[2]):
            assert "Path" in kind, name
    code, _, stderr = await house.cli("keys", "list", "--token", "xoxb-1")
    assert code == 2
    assert "No such option" in stderr


def _parameters(found: Any, path: str = "interlock") -> list[tuple[str, str]]:
    if isinstance(found, typer.core.TyperGroup):
        return [
            each
            for name, inner in found.commands.items()
            for each in _parameters(inner, f"{path} {name}")
        ]
    return [
        (f"{path} {option}", str(each.type_descriptor.annotation))
        for each in found.params
        for option in each.opts
    ]


async def cl_02(house: House) -> None:
    """A tenant that is not there and an end before the beginning exit 2; ten years stream."""
    for arguments in (("--tenant", "nobody"), ("--from", "2026-02-01", "--to", "2026-01-01")):
        code, stdout, stderr = await house.cli("audit", "export", *arguments)
        assert (code, stdout, stderr[:11]) == (2, "", "interlock: ")
    sizes = [
        len(chunk.ndjson)
        async for chunk in house.operator().ExportAudit(_ten_years(), timeout=TIMEOUT_S)
    ]
    assert max(sizes) < 1024 * 1024


def _ten_years() -> pb.ExportAuditRequest:
    request = pb.ExportAuditRequest()
    getattr(request, "from").FromDatetime(datetime.now(UTC) - timedelta(days=3650))
    return request


async def cl_03(house: House) -> None:
    """A dry run writes nothing; a second run at the same time exits 75; the next one finishes."""
    house.kms.promote("fake-2")
    version = "SELECT kek_version FROM vault.wrapped_dek"
    assert (await house.cli("keys", "rewrap", "--dry-run"))[0] == 0
    assert await house.admin.fetchval(version) == "fake-1"
    await house.admin.execute("SELECT pg_advisory_lock(hashtext('vault re-wrap'))")
    code, _, stderr = await house.cli("keys", "rewrap")
    assert (code, "locked" in stderr) == (75, True)
    await house.admin.execute("SELECT pg_advisory_unlock_all()")
    assert (await house.cli("keys", "rewrap"))[0] == 0
    assert await house.admin.fetchval(version) == "fake-2"


async def cl_04(house: House) -> None:
    """A backup that is cut, flipped, or another environment's is refused before any write."""
    files = {name: house.folder / name for name in ("sealed", "keys")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    assert (await house.cli("backup", *options))[0] == 0
    whole = {path: path.read_bytes() for path in files.values()}
    for path, content in whole.items():
        flipped = bytearray(content)
        flipped[-200] ^= 1
        moved = content.replace(b'"development"', b'"production"')
        for damaged in (content[:-30], bytes(flipped), moved):
            path.write_bytes(damaged)
            code, _, stderr = await house.cli("restore", *options, "--yes")
            assert (code, "BACKUP_REFUSED" in stderr) == (1, True)
        path.write_bytes(content)
    assert await house.records("vault.restore_started") == []


async def cl_05(house: House) -> None:
    """Shredding asks on a terminal, and takes a no; without one it takes --yes only."""
    arguments = ("keys", "shred", "--team", "T0NORTHWIND")
    code, _, stderr = await house.cli(*arguments)
    assert (code, "add --yes" in stderr) == (2, True)
    ours, theirs = os.openpty()
    try:
        os.write(ours, b"n\n")
        process = await house.start_cli(*arguments, stdin=theirs)
        _, refused = await process.communicate()
        assert (process.returncode, refused.endswith(b"nothing was done\n")) == (1, True)
    finally:
        os.close(ours)
        os.close(theirs)
    await alive(house)


ROWS: dict[str, Row] = {
    "GV-01": gv_01,
    "GV-02": gv_02,
    "GV-03": gv_03,
    "GV-04": gv_04,
    "GV-05": gv_05,
    "GV-06": gv_06,
    "GV-07": gv_07,
    "GV-08": gv_08,
    "GV-09": gv_09,
    "GV-10": gv_10,
    "GV-11": gv_11,
    "GV-12": gv_12,
    "GV-13": gv_13,
    "GV-14": gv_14,
    "PG-01": pg_01,
    "PG-02": pg_02,
    "PG-03": pg_03,
    "PG-05": pg_05,
    "PG-06": pg_06,
    "PG-07": pg_07,
    "PG-08": pg_08,
    "PG-10": pg_10,
    "CL-01": cl_01,
    "CL-02": cl_02,
    "CL-03": cl_03,
    "CL-04": cl_04,
    "CL-05": cl_05,
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_bad_input_at_a_running_vault(house: House, row: Row) -> None:
    """Each row ends as the catalogue says, and the row's own docstring says how."""
    await row(house)


@pytest.mark.parametrize("row", ["PG-04"])
async def test_another_services_role_does_not_get_in(cluster: ScratchDatabases, row: str) -> None:
    """The worker's role cannot even connect to the vault's database."""
    vault, gateway = await cluster.database(DATABASE), await cluster.database(GATEWAY_DATABASE)
    database = urlsplit(vault.owner.reveal()).path.strip("/")
    with pytest.raises(DENIED, match="permission denied for database"):
        await asyncpg.connect(gateway.roles[WORKER_ROLE].reveal(), database=database)


@pytest.mark.parametrize("row", ["PG-09"])
async def test_two_pods_migrate_at_once(cluster: ScratchDatabases, row: str) -> None:
    """One waits for the other; a migration that dies half-way leaves nothing of its version."""
    passwords = {role: Secret(uuid4().hex) for role in (DATABASE.owner, *DATABASE.roles)}
    name = f"interlock_vault_{uuid4().hex}"
    urls = await create_database(cluster.admin_url, DATABASE, passwords, database=name)
    await asyncio.to_thread(migrate, urls.owner, DATABASE, "0001")
    owner = await asyncpg.connect(urls.owner.reveal())
    try:
        # A version that fails at its end, as one that is killed there does.
        await owner.execute("CREATE TABLE vault.freeze (x int)")
        with pytest.raises(Exception, match="freeze"):
            await asyncio.to_thread(migrate, urls.owner, DATABASE)
        await owner.execute("DROP TABLE vault.freeze")
        both = (asyncio.to_thread(migrate, urls.owner, DATABASE) for _ in range(2))
        await asyncio.gather(*both)
        await asyncio.to_thread(migrate, urls.owner, DATABASE)
        assert await owner.fetchval("SELECT count(*) FROM vault.alembic_version") == 1
        assert await owner.fetchval("SELECT to_regclass('vault.freeze')") is not None
    finally:
        await owner.close()


async def test_every_rpc_is_for_its_callers_only(house: House) -> None:
    """The whole matrix: each RPC of the table, tried by each identity, in front of the gate."""
    tried = 0
    for method in CALLERS:
        for peer in PEERS:
            outcome = await _try(house, method, peer)
            assert (outcome != "CALLER_NOT_ALLOWED") == may_call(CALLERS, method, peer), (
                method,
                peer,
            )
            tried += 1
    assert tried == len(CALLERS) * len(PEERS)
    assert tried > 240


async def _try(house: House, method: str, peer: str) -> str:
    """Call with a request that the gate refuses if the caller check has let it pass."""
    try:
        # A field that no message has: whoever may call is refused for that instead.
        await raw(house, method, b"\xfa\x01\x01x", peer)
    except RemoteError as error:
        return error.reason
    raise AssertionError("a request with an unknown field was served")
