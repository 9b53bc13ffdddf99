"""The vault over real mTLS gRPC, with a real Postgres and a stand-in Slack and identity."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock.token_vault.v1 import token_vault_pb2_grpc as services
from interlock_chassis.errors import Kind, RemoteError
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import (
    CONTOSO,
    GRID,
    NORTHWIND,
    SCOPES,
    TIMEOUT_S,
    VAULT,
    Away,
    House,
    ask,
    make_keyset,
    open_house,
    refusal,
)
from interlock_token_vault.__main__ import running
from interlock_token_vault.migrations import VAULT_ROLE
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import Family
from interlock_tokens.grants import AdminPurpose


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Give a running vault with nothing installed."""
    async with open_house(cluster, tmp_path) as house:
        yield house


async def test_an_install_ends_in_a_readable_token(house: House) -> None:
    """From a grant and a code to the token in the worker's hands, recorded on the way."""
    installed = await house.install("xoxb-northwind")
    assert installed.installation.team_id == "T0NORTHWIND"
    assert installed.installation.name == "Northwind"
    assert list(installed.installation.bot_scopes) == list(SCOPES)
    assert installed.installation.HasField("installed_at")
    assert not installed.is_reinstall
    grant = house.slack_grant()
    released = await house.read(grant)
    assert released.bot_token == "xoxb-northwind"
    assert released.generation == 1
    assert released.bot_user_id == "U0BOT"
    assert not released.HasField("expires_at")
    (record,) = await house.records("token.read")
    assert record["actor"] == "gateway-worker"
    assert record["rpc"] == f"/{VAULT}.TokenService/ReadBotToken"
    assert record["purpose"] == "app_mention"
    assert record["grant_id"].startswith("event-")
    assert record["subject"] == "U0MIA"
    assert record["outcome"] == "allowed"
    assert str(record["installation_id"]) == installed.installation.installation_id
    assert record["request_id"]


async def test_a_repeated_completion_answers_the_same_installation(house: House) -> None:
    """A lost answer costs nothing: the same grant and code again, one exchange in all."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    grant = house.install_grant()
    first = await house.complete(grant, "code")
    assert await house.complete(grant, "code") == first
    assert house.slack.exchanges == 1


async def test_an_org_wide_install_answers_only_for_its_enterprise(house: House) -> None:
    """EV-52: the key is the Enterprise alone; a team of it is another installation."""
    await house.install("xoxb-grid", GRID)
    assert (await house.read(house.slack_grant(GRID))).bot_token == "xoxb-grid"
    team = replace(GRID, team_id="T0GRID1", is_enterprise_install=False)
    assert await refusal(house.read(house.slack_grant(team))) == (
        Kind.NOT_FOUND,
        "INSTALLATION_NOT_FOUND",
    )


async def test_a_reinstall_raises_the_generation(house: House) -> None:
    """The same tenant again: same installation, new token, next generation."""
    first = await house.install("xoxb-1")
    second = await house.install("xoxb-2")
    assert second.is_reinstall
    assert second.installation.installation_id == first.installation.installation_id
    released = await house.read(house.slack_grant())
    assert (released.bot_token, released.generation) == ("xoxb-2", 2)


async def test_a_workspace_of_another_tenant_stays_as_it_is(house: House) -> None:
    """OA-10: 409 for the newcomer; the rightful rows are byte-identical, its token lives."""
    await house.install("xoxb-1")
    before = await _everything(house)
    for token, revoked in (("xoxb-1", []), ("xoxb-2", ["xoxb-2"])):
        assert await refusal(house.install(token, NORTHWIND, "contoso")) == (
            Kind.CONFLICT,
            "WORKSPACE_TAKEN",
        )
        assert house.slack.revoked == revoked
    assert await _everything(house) == before
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-1"


async def _everything(house: House) -> list[list[str]]:
    return [
        [row[0] for row in await house.admin.fetch(f"SELECT t::text FROM vault.{table} t")]  # noqa: S608 - Our own names.
        for table in ("installation", "sealed_token", "wrapped_dek")
    ]


async def test_missing_scopes_are_named(house: House) -> None:
    """OA-11: the page that says what is missing can be written from the error."""
    house.slack.give("code", "xoxb-1", NORTHWIND, scope="chat:write")
    with pytest.raises(RemoteError) as refused:
        await house.complete(house.install_grant(), "code")
    assert (refused.value.kind, refused.value.reason) == (Kind.PRECONDITION, "SCOPES_MISSING")
    assert refused.value.metadata["missing_scopes"] == "commands"
    assert house.slack.revoked == ["xoxb-1"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"access_token": None}, "SLACK_ANSWER_UNUSABLE"),
        ({"team": None}, "SLACK_ANSWER_UNUSABLE"),
        ({"token_type": "user"}, "SLACK_ANSWER_UNUSABLE"),
        ({"ok": "true"}, "SLACK_ANSWER_UNUSABLE"),
        ({"team": "T0NORTHWIND"}, "SLACK_ANSWER_UNUSABLE"),
        ({"ok": False, "error": "invalid_code"}, "OAUTH_CODE_REFUSED"),
        ({"ok": False, "error": "code_already_used"}, "OAUTH_CODE_REFUSED"),
        ({"ok": False, "error": "bad_redirect_uri"}, "SLACK_ANSWER_UNUSABLE"),
        ({"ok": False, "error": "fatal_error"}, "SLACK_UNAVAILABLE"),
    ],
)
async def test_answers_of_no_use_store_nothing(
    house: House, changes: dict[str, Any], expected: str
) -> None:
    """OA-09, OA-12: what Slack says wrongly, or refuses, makes no installation."""
    house.slack.give("code", "xoxb-1", NORTHWIND, **changes)
    assert (await refusal(house.complete(house.install_grant(), "code")))[1] == expected
    assert (await _everything(house))[:2] == [[], []]


async def test_the_edge_may_not_read_a_token(house: House) -> None:
    """I14: the process that faces the internet is refused, and the attempt is on record."""
    await house.install("xoxb-northwind")
    assert await refusal(house.read(house.slack_grant(), "gateway-edge")) == (
        Kind.FORBIDDEN,
        "CALLER_NOT_ALLOWED",
    )
    (record,) = await house.records("call.refused")
    assert record["actor"] == "gateway-edge"
    assert record["rpc"] == f"/{VAULT}.TokenService/ReadBotToken"
    assert record["outcome"] == "CALLER_NOT_ALLOWED"
    assert house.unwraps == 0


async def test_a_service_that_is_no_app_may_not_save_installations(house: House) -> None:
    """GV-02: a certificate of ours is not enough; it must be a listed one."""
    store = services.InstallationStoreServiceStub(house.channels["runner"])
    call = store.SaveBot(pb.SaveBotRequest(bot=pb.BotRecord()), timeout=5)
    assert await refusal(ask(call)) == (Kind.FORBIDDEN, "CALLER_NOT_ALLOWED")
    assert [record["actor"] for record in await house.records("call.refused")] == ["runner"]


async def test_a_worker_without_a_grant_gets_nothing(house: House) -> None:
    """GV-04: being the worker is not enough, and the attempt is on record."""
    await house.install("xoxb-northwind")
    assert (await refusal(house.read("")))[0] is Kind.INVALID
    assert [each["outcome"] for each in await house.records("call.refused")] == ["INVALID_ARGUMENT"]
    assert house.unwraps == 0


async def test_grants_that_do_not_verify_are_refused_and_recorded(house: House) -> None:
    """GV-04, GV-06, I12: expired, forged, changed, or of another family: one same refusal."""
    await house.install("xoxb-northwind")
    forger = replace(house, edge_keys=make_keyset("edge-1", Family.SLACK_GRANT))
    unknown = replace(house, edge_keys=make_keyset("edge-9", Family.SLACK_GRANT))
    good = house.slack_grant()
    head, body, signature = good.split(".")
    flipped = ("B" if signature[9] == "A" else "A").join((signature[:9], signature[10:]))
    refused = [
        house.slack_grant(age=timedelta(minutes=16)),
        forger.slack_grant(),
        unknown.slack_grant(),
        f"{head}.{body}.{flipped}",
        f"eyJhbGciOiJub25lIn0.{body}.",
        house.install_grant(),
        "not a token",
    ]
    for grant in refused:
        assert await refusal(house.read(grant)) == (Kind.UNAUTHENTICATED, "INVALID_TOKEN")
    assert house.unwraps == 0
    # The first of them, and, once the second is over, one record for all others.
    recorded = await house.records("call.refused")
    assert {record["outcome"] for record in recorded} == {"INVALID_TOKEN"}
    assert {record["actor"] for record in recorded} == {"gateway-worker"}


@pytest.mark.parametrize(
    "purpose", [AdminPurpose.AUDIT, AdminPurpose.UNINSTALL, AdminPurpose.REPLAY]
)
async def test_an_admin_grant_opens_no_token_beyond_its_purpose(
    house: House, purpose: AdminPurpose
) -> None:
    """A grant to look at the log, say, is none to read a token."""
    await house.install("xoxb-northwind")
    assert await refusal(house.read(house.admin_grant(purpose))) == (
        Kind.FORBIDDEN,
        "PURPOSE_NOT_GRANTED",
    )
    assert [each["outcome"] for each in await house.records("call.refused")] == [
        "PURPOSE_NOT_GRANTED"
    ]
    assert house.unwraps == 0


@pytest.mark.parametrize(
    "purpose",
    [
        AdminPurpose.HEALTH,
        AdminPurpose.CHANNELS,
        AdminPurpose.TEST_MESSAGE,
        AdminPurpose.RESUME,
    ],
)
async def test_an_admin_grant_whose_purpose_needs_the_bot_reads_it(
    house: House, purpose: AdminPurpose
) -> None:
    """What ends in a call of Slack with the bot's token is let in, and says what it was for."""
    await house.install("xoxb-northwind")
    assert (await house.read(house.admin_grant(purpose))).bot_token == "xoxb-northwind"
    assert [each["purpose"] for each in await house.records("token.read")] == [purpose.value]


async def test_a_field_that_names_another_team_is_refused(house: House) -> None:
    """GV-05: a request that names a workspace is refused unread, and that is on record."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    asked = pb.ReadBotTokenRequest(grant=house.slack_grant(CONTOSO)).SerializeToString()
    # Field 15, a string: what a request with a team would look like.
    named = asked + bytes([15 << 3 | 2, len("T0NORTHWIND")]) + b"T0NORTHWIND"
    call = house.channels["gateway-worker"].unary_unary(
        f"/{VAULT}.TokenService/ReadBotToken",
        request_serializer=bytes,
        response_deserializer=pb.ReadBotTokenResponse.FromString,
    )
    assert await refusal(ask(call(named, timeout=5))) == (Kind.INVALID, "INVALID_ARGUMENT")
    assert house.unwraps == 0
    assert await house.records("token.read") == []
    (record,) = await house.records("call.refused")
    assert (record["actor"], record["outcome"]) == ("gateway-worker", "INVALID_ARGUMENT")


async def test_the_record_is_committed_before_the_token_is_opened(house: House) -> None:
    """I3: while the KMS still thinks, another session already sees the record."""
    await house.install("xoxb-northwind")
    house.kms.gate.clear()
    reading = asyncio.create_task(house.read(house.slack_grant()))
    async with asyncio.timeout(TIMEOUT_S):
        await house.kms.asked.wait()
    assert len(await house.records("token.read")) == 1
    assert not reading.done()
    house.kms.gate.set()
    assert (await reading).bot_token == "xoxb-northwind"


async def test_no_record_no_token(house: House) -> None:
    """With the audit log closed to it the vault releases nothing and asks no KMS."""
    await house.install("xoxb-northwind")
    await house.admin.execute(f"REVOKE INSERT ON vault.audit_event FROM {VAULT_ROLE}")
    assert await refusal(house.read(house.slack_grant())) == (
        Kind.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
    )
    assert house.unwraps == 0
    await house.admin.execute(f"GRANT INSERT ON vault.audit_event TO {VAULT_ROLE}")
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"


async def test_a_moved_ciphertext_is_data_loss_and_recorded(house: House) -> None:
    """KM-01: a token put into another workspace's row pages, and no plaintext comes out."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    await house.admin.execute("""
        WITH theirs AS (
            SELECT t.sealed, t.dek_id FROM vault.sealed_token t
            JOIN vault.installation i USING (installation_id) WHERE i.team_id = 'T0CONTOSO'
        ), moved AS (
            UPDATE vault.wrapped_dek d SET installation_id = i.installation_id
            FROM theirs, vault.installation i
            WHERE d.dek_id = theirs.dek_id AND i.team_id = 'T0NORTHWIND'
        )
        UPDATE vault.sealed_token t SET sealed = theirs.sealed, dek_id = theirs.dek_id
        FROM theirs, vault.installation i
        WHERE i.installation_id = t.installation_id AND i.team_id = 'T0NORTHWIND'
    """)
    assert await refusal(house.read(house.slack_grant())) == (Kind.CORRUPT, "CANNOT_OPEN")
    assert [each["outcome"] for each in await house.records("token.unopened")] == ["CANNOT_OPEN"]


async def test_many_reads_have_each_its_own_verdict(house: House) -> None:
    """One call, many grants: tokens for the good, reasons for the bad, in order."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    grants = [
        house.slack_grant(CONTOSO),
        house.slack_grant(age=timedelta(hours=1)),
        house.slack_grant(GRID),
        house.slack_grant(),
    ]
    request = pb.ReadBotTokensRequest(reads=[pb.ReadBotTokenRequest(grant=each) for each in grants])
    answer = await ask(house.tokens().ReadBotTokens(request, timeout=5))
    verdicts = [
        each.token.bot_token or (each.refusal.code, each.refusal.reason) for each in answer.verdicts
    ]
    assert verdicts == [
        "xoxb-contoso",
        (grpc.StatusCode.UNAUTHENTICATED.value[0], "INVALID_TOKEN"),
        (grpc.StatusCode.NOT_FOUND.value[0], "INSTALLATION_NOT_FOUND"),
        "xoxb-northwind",
    ]
    assert len(await house.records("token.read")) == 2


async def test_concurrent_readers_get_each_their_own_token(house: House) -> None:
    """I4: readers that share a transaction share nothing else."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    wanted = [NORTHWIND, CONTOSO] * 50
    released = await asyncio.gather(*(house.read(house.slack_grant(each)) for each in wanted))
    expected = {"T0NORTHWIND": "xoxb-northwind", "T0CONTOSO": "xoxb-contoso"}
    assert [each.bot_token for each in released] == [expected[each.team_id] for each in wanted]
    assert len(await house.records("token.read")) == 100


async def test_the_audit_log_shows_a_tenant_its_own_records(house: House) -> None:
    """A grant of purpose `audit` lists its workspace's records, page by page, and no others."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    for workspace in (NORTHWIND, CONTOSO, NORTHWIND):
        await house.read(house.slack_grant(workspace))
    seen: list[pb.AuditEvent] = []
    token = ""
    while True:
        request = pb.ListAuditEventsRequest(
            grant=house.admin_grant(AdminPurpose.AUDIT), page_size=2, page_token=token
        )
        page = await ask(house.audit().ListAuditEvents(request, timeout=5))
        seen += page.events
        token = page.next_page_token
        if not token:
            break
    assert {event.team_id for event in seen} <= {"T0NORTHWIND", ""}
    assert len({event.installation_id for event in seen}) == 1
    actions = [event.action for event in seen]
    assert actions[:3] == ["token.read", "token.read", "install.activated"]
    assert len({(event.chain_id, event.seq) for event in seen}) == len(seen)


async def test_the_operator_sees_all_records_without_a_grant(house: House) -> None:
    """Without a grant only the operator lists the log, and all of it."""
    await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    request = pb.ListAuditEventsRequest(page_size=200)
    page = await ask(house.audit("operator").ListAuditEvents(request, timeout=5))
    assert {"T0NORTHWIND", "T0CONTOSO"} <= {event.team_id for event in page.events}
    assert [event.action for event in page.events][-1] == "chain.started"
    assert (await refusal(ask(house.audit().ListAuditEvents(request, timeout=5))))[1] == (
        "INVALID_TOKEN"
    )


@pytest.mark.parametrize("token", ["x", "eA==", "MjAyNnwxfDE=", "fHx8"])
async def test_a_page_token_that_is_not_ours_is_refused(house: House, token: str) -> None:
    """Whatever is in a page token, the answer is a typed refusal."""
    request = pb.ListAuditEventsRequest(page_token=token)
    call = house.audit("operator").ListAuditEvents(request, timeout=5)
    assert await refusal(ask(call)) == (Kind.INVALID, "INVALID_PAGE_TOKEN")


async def test_a_user_without_a_token_is_told_so(house: House) -> None:
    """A user's own token is looked for under the grant's user, and the bot's is not it."""
    await house.install("xoxb-northwind")
    request = pb.ReadUserTokenRequest(grant=house.slack_grant())
    assert await refusal(ask(house.tokens().ReadUserToken(request, timeout=5))) == (
        Kind.NOT_FOUND,
        "USER_TOKEN_NOT_FOUND",
    )
    (record,) = await house.records("token.refused")
    assert (record["token_kind"], record["subject"]) == ("user", "U0MIA")
    request = pb.ReadUserTokenRequest(grant=house.admin_grant(AdminPurpose.HEALTH))
    assert await refusal(ask(house.tokens().ReadUserToken(request, timeout=5))) == (
        Kind.UNAUTHENTICATED,
        "INVALID_TOKEN",
    )


async def test_a_freeze_stops_releases_at_once(house: House) -> None:
    """What is asked after the switch is refused, though the data key is warm; all is recorded."""
    installed = await house.install("xoxb-northwind")
    await house.install("xoxb-contoso", CONTOSO, "contoso")
    await house.read(house.slack_grant())
    for installation_id in (installed.installation.installation_id, ""):
        request = pb.SetFreezeRequest(installation_id=installation_id, frozen=True, note="leak")
        await ask(house.operator().SetFreeze(request, timeout=5))
        assert await refusal(house.read(house.slack_grant())) == (
            Kind.PRECONDITION,
            "RELEASES_FROZEN",
        )
    assert (await refusal(house.read(house.slack_grant(CONTOSO))))[1] == "RELEASES_FROZEN"
    for installation_id in (installed.installation.installation_id, ""):
        request = pb.SetFreezeRequest(installation_id=installation_id, frozen=False, note="over")
        await ask(house.operator().SetFreeze(request, timeout=5))
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    frozen = await house.records("releases.frozen")
    assert [(each["actor"], each["purpose"]) for each in frozen] == [("operator", "leak")] * 2
    assert len(await house.records("releases.resumed")) == 2


@pytest.mark.parametrize("installation_id", ["x", "00000000-0000-0000-0000-000000000009"])
async def test_a_freeze_of_nothing_is_refused(house: House, installation_id: str) -> None:
    """An operator who mistypes an id learns so, rather than trusting a switch that does nothing."""
    request = pb.SetFreezeRequest(installation_id=installation_id, frozen=True, note="leak")
    kind, _ = await refusal(ask(house.operator().SetFreeze(request, timeout=5)))
    assert kind in {Kind.INVALID, Kind.NOT_FOUND}
    assert await house.records("releases.frozen") == []


async def test_identity_away_is_told_and_a_repeat_finishes(house: House) -> None:
    """The token stays sealed and silent until identity has decided."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    grant = house.install_grant()
    house.identity.error = Away()
    assert await refusal(house.complete(grant, "code")) == (
        Kind.UNAVAILABLE,
        "IDENTITY_UNAVAILABLE",
    )
    assert (await refusal(house.read(house.slack_grant())))[1] == "INSTALLATION_NOT_FOUND"
    house.identity.error = None
    assert (await house.complete(grant, "code")).installation.team_id == "T0NORTHWIND"
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"


async def test_a_grant_that_identity_no_longer_takes_ends_the_install(house: House) -> None:
    """Without a claim there is no installation, and the token does not live on."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    house.identity.error = InvalidToken()
    assert await refusal(house.complete(house.install_grant(), "code")) == (
        Kind.PRECONDITION,
        "INSTALL_NOT_OPEN",
    )
    assert house.slack.revoked == ["xoxb-northwind"]
    assert await _everything(house) == [[], [], []]


async def test_a_new_process_finishes_what_another_left(house: House) -> None:
    """The sweep at the start claims and activates what an outage left pending."""
    house.slack.give("code", "xoxb-northwind", NORTHWIND)
    house.identity.error = Away()
    assert (await refusal(house.complete(house.install_grant(), "code")))[1] == (
        "IDENTITY_UNAVAILABLE"
    )
    house.identity.error = None
    settings = house.settings.model_copy(update={"ops_listen": "127.0.0.1:0"})
    async with running(settings, house.kms):
        pass  # A process that stops lets the sweep it has begun come to its end.
    assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
    (resumed,) = await house.records("install.resumed")
    assert (resumed["actor"], resumed["rpc"]) == ("token-vault", "sweep")


async def test_no_token_is_anywhere_in_the_database(house: House) -> None:
    """I7: neither the token, nor the code, nor a grant that has been used is to be found."""
    house.slack.give("canary-code", "xoxb-canary-token", NORTHWIND)
    grant = house.install_grant()
    await house.complete(grant, "canary-code")
    await house.read(house.slack_grant())
    names = await house.admin.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'vault'::regnamespace AND relkind = 'r'"
    )
    found = ""
    for (name,) in names:
        rows = await house.admin.fetch(f'SELECT t::text FROM vault."{name}" t')  # noqa: S608 - Our own names.
        found += "\n".join(row[0] for row in rows)
    assert "T0NORTHWIND" in found
    for secret in ("xoxb-canary-token", "canary-code", grant):
        assert secret not in found
        assert secret.encode().hex() not in found
