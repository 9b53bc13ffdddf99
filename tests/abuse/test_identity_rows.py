"""Bad input at identity: one test id per row of tests/fixtures/bad_inputs.tsv.

Links and grants over real mTLS gRPC and a real Postgres; tokens at the one
verifier that everybody uses. Of a row about pages and status codes this shows
what identity decides; what a browser sees of it is edge's to show.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from grpc import aio

from interlock.identity.v1 import identity_pb2 as pb
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.errors import ConfigError, Kind, RemoteError, ServiceError
from interlock_chassis.secret import Secret
from interlock_cli.identity_house import INSTALLATION, STATE, TEAM, TIMEOUT_S, House, open_house
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.__main__ import running
from interlock_identity.adapters.memory import FakeMembership, ManualClock, MemoryStore
from interlock_identity.domain.audit import AuditEvent, Origin
from interlock_identity.domain.linking import (
    LinkCodeId,
    MappingId,
    NewLinkCode,
    SlackUser,
    hash_link_code,
)
from interlock_identity.domain.people import (
    Account,
    Person,
    Role,
    Session,
    Tenant,
    TenantId,
    UserId,
)
from interlock_identity.domain.requester import Requester
from interlock_identity.domain.workspaces import Claim, WorkspaceId, WorkspaceKey
from interlock_identity.issuing import Errand, Issuing, UserToken
from interlock_identity.membership import MembershipUnavailable, RememberedMembership
from interlock_identity.rpc import CALLERS
from interlock_tokens.bearer import AmbiguousAuthorization, verify_request
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import FAMILIES, Family
from interlock_tokens.grants import AdminPurpose
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key
from interlock_tokens.signing import (
    renew_slack_grant,
    sign_admin_grant,
    sign_install_grant,
    sign_slack_grant,
    sign_user_token,
)
from interlock_tokens.verifying import (
    verify_admin_grant,
    verify_install_grant,
    verify_slack_grant,
    verify_user_token,
)
from interlock_tokens.wire import MAX_TOKEN_CHARS

MINUTE = timedelta(minutes=1)
CLAIM_CODES = "identity.work_app_slack_account_link_codes"


def row(row_id: str) -> pytest.MarkDecorator:
    """Give a test the id of one row."""
    return pytest.mark.parametrize("row_id", [pytest.param(row_id, id=row_id)])


@pytest.fixture
async def house(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[House]:
    """Start identity with everything around it, and one claimed workspace."""
    async with open_house(cluster, tmp_path) as house:
        await house.claim()
        yield house


async def _outcome(work: Awaitable[object]) -> str:
    try:
        with remote_errors():
            await work
    except RemoteError as error:
        return error.reason
    return "OK"


@asynccontextmanager
async def _refused(kind: Kind, reason: str) -> AsyncIterator[None]:
    with pytest.raises(RemoteError) as refusal, remote_errors():
        yield
    assert (refusal.value.kind, refusal.value.reason) == (kind, reason)


# LK: link codes.


@row("LK-01")
async def test_looking_spends_nothing(house: House, row_id: str) -> None:
    """However often a code is looked at, nothing is written and the code works."""
    code = await house.code()
    table = f"SELECT c::text FROM {CLAIM_CODES} AS c"  # noqa: S608 - A constant.
    before = await house.owner.fetchval(table)
    for _ in range(5):
        await house.describe("user_mia", code)
    assert await house.owner.fetchval(table) == before
    await house.redeem("user_mia", code)


@row("LK-04")
async def test_differing_addresses_take_a_second_yes(house: House, row_id: str) -> None:
    """An account with another address is not linked by one click, and the code stays usable."""
    code = await house.code()
    assert (await house.describe("user_ben", code)).emails_differ
    async with _refused(Kind.PRECONDITION, "EMAIL_MISMATCH"):
        await house.redeem("user_ben", code)
    assert await house.count("work_app_slack_user_mappings") == 0
    await house.redeem("user_ben", code, confirmed=True)


@pytest.mark.parametrize(
    "late_us", [pytest.param(0, id="LK-05"), pytest.param(10**6, id="LK-05-1s")]
)
async def test_the_instant_of_expiry_is_too_late(house: House, late_us: int) -> None:
    """The first instant of expiry, by the database's clock, is past it."""
    code = await house.code()
    await house.owner.execute(
        f"UPDATE {CLAIM_CODES}"  # noqa: S608 - A constant.
        " SET expires_at = clock_timestamp() - $1::bigint * interval '1 microsecond'",
        late_us,
    )
    async with _refused(Kind.PRECONDITION, "LINK_CODE_SPENT"):
        await house.redeem("user_mia", code)
    assert await house.count("work_app_slack_user_mappings") == 0


@row("LK-06")
async def test_a_used_code_reads_like_an_unknown_one(house: House, row_id: str) -> None:
    """Neither to its user nor to anybody else is a used code told apart from a made-up one."""
    code = await house.code()
    await house.redeem("user_mia", code)
    told = set()
    for person in ("user_mia", "user_ben", "user_olga"):
        for tried in (code, secrets.token_urlsafe(32)):
            with pytest.raises(RemoteError) as refusal, remote_errors():
                await house.redeem(person, tried, confirmed=True)
            told.add((refusal.value.kind, refusal.value.reason, refusal.value.message))
    assert len(told) == 1


@row("LK-07")
async def test_what_is_no_code_is_not_told_apart(house: House, row_id: str) -> None:
    """Unknown and malformed read alike up to 128 characters; longer and empty ones are refused."""
    unknown = ["x", "/etc/passwd", "%00", "a\x00b", "\u00e9" * 64, "=" * 43, "A" * 128]
    told = set()
    for text in [secrets.token_urlsafe(32), *unknown]:
        with pytest.raises(RemoteError) as refusal, remote_errors():
            await house.describe("user_mia", text)
        told.add((refusal.value.kind, refusal.value.reason, refusal.value.message))
    assert {each[1] for each in told} == {"LINK_CODE_SPENT"}
    assert len(told) == 1
    for text in ("", "A" * 129, "A" * 10_240):
        assert await _outcome(house.describe("user_mia", text)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "people",
    [
        pytest.param(["user_mia"] * 50, id="LK-08"),
        pytest.param(["user_mia", "user_ben"] * 25, id="LK-08-many"),
    ],
)
async def test_fifty_redeems_at_once_make_one_link(house: House, people: list[str]) -> None:
    """One browser fifty times, or two people's fifty browsers: one link, 49 spent codes."""
    code = await house.code()
    for person in set(people):
        await house.session(person)
    outcomes = await asyncio.gather(
        *(_outcome(house.redeem(person, code, confirmed=True)) for person in people)
    )
    assert sorted(outcomes) == ["LINK_CODE_SPENT"] * 49 + ["OK"]
    assert await house.count("work_app_slack_user_mappings") == 1


@row("LK-09")
async def test_an_outsider_redeems_nothing_and_is_on_record(house: House, row_id: str) -> None:
    """A member of another tenant is refused, the code stays usable, and the try is recorded."""
    code = await house.code()
    async with _refused(Kind.FORBIDDEN, "NOT_YOUR_TENANT"):
        await house.redeem("user_olga", code, confirmed=True)
    assert await house.refusals() == [("gateway-edge", "NOT_YOUR_TENANT")]
    await house.redeem("user_mia", code)


@row("LK-10")
async def test_a_link_is_never_overwritten(house: House, row_id: str) -> None:
    """Another account is refused until the link is ended, and the link stays what it was."""
    await house.redeem("user_mia", await house.code())
    # A code that was open when the link was made otherwise, as an import does.
    await house.owner.execute(f"UPDATE {CLAIM_CODES} SET used_at = NULL")  # noqa: S608 - A constant.
    async with _refused(Kind.CONFLICT, "USER_ALREADY_LINKED"):
        await house.code()
    code = "still-open-code"
    await house.owner.execute(
        f"UPDATE {CLAIM_CODES} SET link_code_hash = $1",  # noqa: S608 - A constant.
        hash_link_code(code),
    )
    async with _refused(Kind.CONFLICT, "USER_LINKED_ELSEWHERE"):
        await house.redeem("user_ben", code, confirmed=True)
    owner = "SELECT inkeep_user_id FROM identity.work_app_slack_user_mappings"
    assert await house.owner.fetchval(owner) == "user_mia"
    await house.links("gateway-worker").UnlinkSelf(
        pb.UnlinkSelfRequest(grant=house.event_grant()), timeout=TIMEOUT_S
    )
    await house.redeem("user_ben", code, confirmed=True)


@row("LK-11")
async def test_a_code_ends_with_its_workspace(house: House, row_id: str) -> None:
    """Uninstalled, reinstalled or moved to another tenant: the code of before is spent."""
    code = await house.code()
    assert await house.release()
    assert await _outcome(house.redeem("user_mia", code)) == "LINK_CODE_SPENT"
    await house.claim()
    assert await _outcome(house.redeem("user_mia", code)) == "LINK_CODE_SPENT"
    code = await house.code()
    await house.release()
    await house.claim("user_olga", installation_id=str(uuid4()))
    for person in ("user_mia", "user_olga"):
        assert await _outcome(house.redeem(person, code, confirmed=True)) == "LINK_CODE_SPENT"


@row("LK-14")
async def test_a_slack_name_is_text_and_of_bounded_length(house: House, row_id: str) -> None:
    """Markup comes out as it went in, for edge to escape; more than 320 characters do not go in."""
    name = "<img src=x onerror=alert(1)>"
    links = house.links("gateway-worker")
    made = await links.CreateLinkCode(
        pb.CreateLinkCodeRequest(grant=house.event_grant(), slack_display_name=name),
        timeout=TIMEOUT_S,
    )
    assert (await house.describe("user_mia", made.link_code)).slack_display_name == name
    request = pb.CreateLinkCodeRequest(grant=house.event_grant(), slack_display_name="x" * 10_240)
    async with _refused(Kind.INVALID, "INVALID_ARGUMENT"):
        await links.CreateLinkCode(request, timeout=TIMEOUT_S)


@row("LK-15")
async def test_whoever_asks_a_thousand_times_has_one_code(house: House, row_id: str) -> None:
    """Five codes in ten minutes, the newest of them works, and the rest are told to wait."""
    codes = [await house.code() for _ in range(5)]
    outcomes = [await _outcome(house.code()) for _ in range(20)]
    assert outcomes == ["TOO_MANY_LINK_CODES"] * 20
    with pytest.raises(RemoteError) as refusal, remote_errors():
        await house.code()
    assert refusal.value.retry_after is not None
    assert 9 * MINUTE < refusal.value.retry_after <= 10 * MINUTE
    for older in codes[:-1]:
        assert await _outcome(house.describe("user_mia", older)) == "LINK_CODE_SPENT"
    await house.redeem("user_mia", codes[-1])


# GI: identity's RPCs.


def _raw_token(keyset: Keyset, family: Family, claims: Mapping[str, object]) -> str:
    """Sign any claims with the family's own key."""
    now = datetime.now(UTC)
    key = keyset.get_signing(family, now)
    rules = FAMILIES[family]
    header = {"alg": rules.algorithm, "typ": rules.header_type, "kid": key.kid}
    signed = ".".join(_segment(json.dumps(part).encode()) for part in (header, claims))
    return f"{signed}.{_segment(key.material.sign(signed.encode()))}"


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    )
    return claims


@row("GI-01")
async def test_another_proof_issues_no_token(house: House, row_id: str) -> None:
    """An admin's click, an install and a grant for others are refused, and on record."""
    await house.redeem("user_mia", await house.code())
    now = datetime.now(UTC)
    admin = sign_admin_grant(
        house.keys.identity,
        now=now,
        jti="j1",
        workspace=TEAM,
        tenant_id="northwind",
        user_id="user_mia",
        purpose=AdminPurpose.HEALTH,
    ).reveal()
    elsewhere = _claims(house.event_grant()) | {"aud": "elsewhere"}
    tokens = {
        await house.install_grant(): "INVALID_TOKEN",
        _raw_token(house.keys.edge, Family.SLACK_GRANT, elsewhere): "INVALID_TOKEN",
        # Genuine, and for something else: the contract says so apart.
        admin: "PURPOSE_NOT_GRANTED",
    }
    for token, reason in tokens.items():
        assert await _outcome(house.token(token)) == reason
    recorded = await house.refusals()
    # The second of two alike within a second is counted in the first one's place.
    assert ("gateway-worker", "INVALID_TOKEN") in recorded
    assert ("gateway-worker", "PURPOSE_NOT_GRANTED") in recorded
    assert (
        await house.owner.fetchval(
            "SELECT count(*) FROM identity.audit_events WHERE event = 'token.issued'"
        )
        == 0
    )


@row("GI-02")
async def test_an_old_or_homeless_event_is_not_renewed(house: House, row_id: str) -> None:
    """At 24 h and in a released workspace the answer is no; a renewal does not start anew.

    Whether an event is completed only the worker knows: it erases the grant then, as
    test_worker_rows.py shows.
    """
    now = datetime.now(UTC)
    young = house.event_grant(now=now - timedelta(hours=23, minutes=59))
    renewed = (await house.renew(young)).grant
    async with _refused(Kind.PRECONDITION, "EVENT_TOO_OLD"):
        await house.renew(house.event_grant(now=now - timedelta(hours=24)))
    at = verify_slack_grant(renewed, house.keys.identity, now=now).event_at
    assert at == (now - timedelta(hours=23, minutes=59)).replace(microsecond=0)
    await house.release()
    async with _refused(Kind.PRECONDITION, "WORKSPACE_RELEASED"):
        await house.renew(renewed)


@row("GI-04")
async def test_nobody_but_the_vault_claims(house: House, row_id: str) -> None:
    """Every other identity is refused, with a genuine grant in hand, and on record."""
    await house.release()
    grant = await house.install_grant()
    request = pb.ClaimWorkspaceRequest(
        grant=grant,
        installation_id=INSTALLATION,
        slack_team_id="T0NORTHWIND",
        slack_app_id="A0INTERLOCK",
    )
    others = [name for name in house.channels if name != "token-vault"]
    for name in others:
        async with _refused(Kind.FORBIDDEN, "CALLER_NOT_ALLOWED"):
            await house.workspaces(name).ClaimWorkspace(request, timeout=TIMEOUT_S)
    assert await house.refusals() == [(name, "CALLER_NOT_ALLOWED") for name in others]
    await house.workspaces("token-vault").ClaimWorkspace(request, timeout=TIMEOUT_S)


@row("GI-05")
async def test_two_replicas_redeem_one_code_once(house: House, row_id: str) -> None:
    """Two processes on one database at the same instant make one link."""
    replica_settings = house.settings.model_copy(update={"upkeep_minutes": 60})
    async with (
        running(replica_settings) as replica,
        open_channel(
            f"127.0.0.1:{replica.port}", house.tls["gateway-edge"], server="identity"
        ) as channel,
    ):
        for number in range(5):
            code = await house.code(slack_user_id=f"U0USER{number}")
            request = pb.RedeemLinkCodeRequest(
                session=await house.session("user_mia"),
                link_code=code,
                email_difference_confirmed=True,
            )
            method = "/interlock.identity.v1.LinkService/RedeemLinkCode"
            calls: list[aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
                each.unary_unary(method) for each in (channel, house.channels["gateway-edge"])
            ]
            outcomes = await asyncio.gather(
                *(
                    _outcome(call(request.SerializeToString(), timeout=TIMEOUT_S))
                    for call in calls * 5
                )
            )
            assert sorted(outcomes) == ["LINK_CODE_SPENT"] * 9 + ["OK"]
    assert await house.count("work_app_slack_user_mappings") == 5


# Time, as a test moves it.

MIA = Account(TenantId("northwind"), UserId("user_mia"))
IN_SLACK = Requester(
    WorkspaceKey("", "T0TEAM", "A0APP"), SlackUser("T0TEAM", "", "U0MIA"), is_stranger=False
)
ORIGIN = Origin("gateway-worker", "/test", "request")


@dataclass
class Office:
    """Issuing around fakes whose time the test moves, with Mia linked."""

    clock: ManualClock
    store: MemoryStore
    membership: FakeMembership
    issuing: Issuing
    keys: Keyset

    async def token(self) -> UserToken:
        """Ask for Mia's token."""
        return await self.issuing.issue_user_token(IN_SLACK, Errand(None, ""), ORIGIN)

    async def tokens_until(self, end: timedelta) -> tuple[list[UserToken], list[str]]:
        """Ask every second, and keep the tokens and the reasons of the refusals."""
        tokens, refusals = [], []
        for _ in range(int(end.total_seconds())):
            self.clock.advance(timedelta(seconds=1))
            try:
                tokens.append(await self.token())
            except ServiceError as error:
                refusals.append(error.reason)
        return tokens, refusals

    def works(self, token: UserToken) -> bool:
        """Tell whether the platform takes a token now."""
        try:
            verify_user_token(token.token.reveal(), self.keys, now=self.clock.now())
        except InvalidToken:
            return False
        return True


async def _open_office(cache: timedelta) -> Office:
    clock = ManualClock()
    store, membership = MemoryStore(clock), FakeMembership()
    membership.roles[MIA] = Role.MEMBER
    keys = _keyset(generate_hs256_key("user-1", [Family.SLACK_USER]))
    ids = count(1)
    issuing = Issuing(
        workspaces=store,
        links=store,
        membership=RememberedMembership(membership, clock, life=cache),
        audit=store,
        grant_keys=_keyset(generate_ed25519_key("grants", [Family.RENEWED_GRANT])),
        user_token_keys=keys,
        default_agent=None,
        clock=clock,
        new_id=lambda: str(next(ids)),
    )
    tenant = Tenant(MIA.tenant_id, "Northwind")
    session = Session(Person(MIA.user_id, "Mia", ""), tenant, Role.MEMBER, "ref")
    await store.remember(session.person, tenant)
    workspace_id = WorkspaceId("wsw_1")
    claim = Claim(
        workspace_id=workspace_id,
        tenant_id=MIA.tenant_id,
        key=IN_SLACK.key,
        name="Acme",
        installation_id=UUID(INSTALLATION),
        installed_by=MIA.user_id,
        nango=None,
    )
    await store.claim(claim, ORIGIN)
    code = NewLinkCode(
        code_id=LinkCodeId("wslc_1"),
        code_hash=hash_link_code("code"),
        tenant_id=MIA.tenant_id,
        workspace_id=workspace_id,
        slack_user=IN_SLACK.slack_user,
        display_name="",
        email="",
    )
    await store.create_link_code(code, life=60 * MINUTE, limit=1, window=MINUTE)
    linked = AuditEvent("user.linked", ORIGIN)
    await store.redeem_link_code(code.code_hash, session, MappingId("wsum_1"), linked)
    return Office(clock, store, membership, issuing, keys)


def _keyset(*keys: dict[str, object]) -> Keyset:
    return Keyset.from_json(Secret(json.dumps({"keys": keys})), variable="KEYS")


@pytest.mark.parametrize(
    "cache_s",
    [
        pytest.param(60, id="GI-03"),
        pytest.param(0, id="GI-03-none"),
        pytest.param(120, id="GI-03-most"),
    ],
)
async def test_no_token_while_membership_is_unknown(cache_s: int) -> None:
    """Ten minutes without the source: tokens while the yes is remembered, then UNAVAILABLE."""
    office = await _open_office(timedelta(seconds=cache_s))
    await office.token()
    office.membership.fail_next(MembershipUnavailable(), times=600)
    tokens, refusals = await office.tokens_until(10 * MINUTE)
    assert len(tokens) == max(cache_s - 1, 0)
    assert len(tokens) <= 300
    assert set(refusals) == {"MEMBERSHIP_UNAVAILABLE"}
    assert MembershipUnavailable.kind is Kind.UNAVAILABLE


# JW: the one verifier.


class Mint:
    """The platform's secret and everybody's grant keys, and a forger's tools."""

    def __init__(self) -> None:
        grants = [family for family in Family if family is not Family.SLACK_USER]
        self.now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        self.secret = secrets.token_bytes(32)
        document = {"kty": "oct", "kid": "user-1", "k": _segment(self.secret)}
        self.keys = Keyset.join(
            _keyset(document | {"families": [Family.SLACK_USER.value]}),
            _keyset(generate_ed25519_key("grants", grants)),
        )

    def user_token(self) -> str:
        """Sign a token as identity does."""
        return sign_user_token(
            self.keys,
            now=self.now,
            jti="jti",
            user_id="user_mia",
            tenant_id="northwind",
            slack_team_id="T0TEAM",
            slack_user_id="U0MIA",
        ).reveal()

    def forge(
        self,
        *,
        header: Mapping[str, object] | None = None,
        claims: Mapping[str, object] | None = None,
        without: str = "",
        payload: bytes = b"",
        head: bytes = b"",
    ) -> str:
        """Sign a user token with changes, with the platform's own secret."""
        genuine = {"alg": "HS256", "typ": "JWT", "kid": "user-1"} | dict(header or {})
        said = _claims(self.user_token()) | dict(claims or {})
        genuine.pop(without, None)
        said.pop(without, None)
        parts = (head or json.dumps(genuine).encode(), payload or json.dumps(said).encode())
        signed = ".".join(map(_segment, parts))
        signature = hmac.digest(self.secret, signed.encode(), hashlib.sha256)
        return f"{signed}.{_segment(signature)}"

    def is_refused(self, token: str) -> bool:
        """Tell whether the platform refuses a token, as an UNAUTHENTICATED error."""
        try:
            verify_user_token(token, self.keys, now=self.now)
        except InvalidToken as refusal:
            return refusal.kind is Kind.UNAUTHENTICATED
        return False

    def one_of_each(self) -> dict[Family, str]:
        """Sign an ordinary token of every family."""
        event: dict[str, Any] = {
            "workspace": TEAM,
            "slack_user_id": "U0MIA",
            "slack_user_team_id": "T0NORTHWIND",
            "event_key": "Ev1",
            "event_type": "app_mention",
            "body_sha256": "cd" * 32,
            "event_at": self.now,
            "is_stranger": False,
        }
        admin: dict[str, Any] = {"tenant_id": "northwind", "user_id": "user_mia"}
        every: dict[str, Any] = {"now": self.now, "jti": "jti"}
        slack_grant = sign_slack_grant(self.keys, **every, **event).reveal()
        grant = verify_slack_grant(slack_grant, self.keys, now=self.now)
        return {
            Family.SLACK_USER: self.user_token(),
            Family.SLACK_GRANT: slack_grant,
            Family.RENEWED_GRANT: renew_slack_grant(self.keys, **every, grant=grant).reveal(),
            Family.ADMIN_GRANT: sign_admin_grant(
                self.keys, **every, **admin, workspace=TEAM, purpose=AdminPurpose.HEALTH
            ).reveal(),
            Family.INSTALL_GRANT: sign_install_grant(
                self.keys, **every, **admin, state_sha256=STATE, source="direct"
            ).reveal(),
        }


@pytest.fixture
def mint() -> Mint:
    """Give fresh keys; what a genuine token says is accepted first."""
    mint = Mint()
    assert not mint.is_refused(mint.user_token())
    assert not mint.is_refused(mint.forge())
    return mint


@row("JW-01")
def test_one_algorithm_is_taken(mint: Mint, row_id: str) -> None:
    """No other, none, no other spelling and no missing one, rightly signed or not at all."""
    for alg in ("none", "None", "HS512", "RS256", "hs256", "EdDSA", ""):
        token = mint.forge(header={"alg": alg})
        assert mint.is_refused(token)
        assert mint.is_refused(token.rpartition(".")[0] + ".")
    assert mint.is_refused(mint.forge(without="alg"))


@row("JW-02")
def test_a_family_passes_at_its_own_verifier_only(mint: Mint, row_id: str) -> None:
    """Every family at every verifier, with a keyset that holds every key: the diagonal."""
    verifiers: list[tuple[set[Family], Callable[..., object]]] = [
        ({Family.SLACK_USER}, verify_user_token),
        ({Family.SLACK_GRANT, Family.RENEWED_GRANT}, verify_slack_grant),
        ({Family.ADMIN_GRANT}, verify_admin_grant),
        ({Family.INSTALL_GRANT}, verify_install_grant),
    ]
    for family, token in mint.one_of_each().items():
        for taken, verify in verifiers:
            if family in taken:
                verify(token, mint.keys, now=mint.now)
                continue
            with pytest.raises(InvalidToken):
                verify(token, mint.keys, now=mint.now)


@row("JW-03")
def test_fixed_claims_are_exact(mint: Mint, row_id: str) -> None:
    """Audience, issuer, use and actor are one text each, and all there."""
    for claims in (
        {"aud": ["inkeep-api", "x"]},
        {"aud": ["inkeep-api"]},
        {"iss": "inkeep"},
        {"tokenUse": "slackuser"},
        {"act": {"sub": "somebody"}},
        {"act": {"sub": "inkeep-work-app-slack", "act": {"sub": "x"}}},
    ):
        assert mint.is_refused(mint.forge(claims=claims))
    for name in ("aud", "iss", "tokenUse", "act", "sub", "tenantId", "slack", "iat", "exp"):
        assert mint.is_refused(mint.forge(without=name))


@row("JW-04")
def test_times_are_sane_seconds(mint: Mint, row_id: str) -> None:
    """Texts, fractions, the end of time and a life of more than 300 s are refused."""
    now = int(mint.now.timestamp())
    for claims in (
        {"exp": str(now + 300)},
        {"exp": 10**30},
        {"exp": now + 301},
        {"exp": now + 299.5},
        {"exp": True},
        {"iat": now - 1},
        {"iat": now + 3600, "exp": now + 3900},
        {"iat": now - 300, "exp": now},
    ):
        assert mint.is_refused(mint.forge(claims=claims))


@row("JW-05")
def test_no_name_is_said_twice(mint: Mint, row_id: str) -> None:
    """A second `tenantId`, `tokenUse` or `alg` is refused, whichever comes first."""
    payload = json.dumps(_claims(mint.user_token()))
    for again in ('"tenantId": "contoso"', '"tokenUse": "slackUser"', '"sub": "user_ada"'):
        assert mint.is_refused(mint.forge(payload=f"{payload[:-1]}, {again}}}".encode()))
        assert mint.is_refused(mint.forge(payload=f"{{{again}, {payload[1:]}".encode()))
    head = b'{"alg": "HS256", "typ": "JWT", "kid": "user-1", "alg": "HS256"}'
    assert mint.is_refused(mint.forge(head=head))


@row("JW-06")
def test_a_key_is_only_looked_up_by_name(mint: Mint, row_id: str) -> None:
    """Names that are paths, queries or essays find nothing, and keys are not brought along."""
    for kid in ("unknown", "../../etc/passwd", "' OR 1=1", "x" * 10_240, "", None, 1, ["user-1"]):
        assert mint.is_refused(mint.forge(header={"kid": kid}))
    assert mint.is_refused(mint.forge(without="kid"))
    for name in ("jku", "jwk", "x5u", "x5c", "crit"):
        assert mint.is_refused(mint.forge(header={name: "https://evil.example/keys"}))


@row("JW-07")
def test_a_token_has_one_spelling(mint: Mint, row_id: str) -> None:
    """Padding, another alphabet, a line end and stray bits are another token, and none."""
    token = mint.user_token()
    head, payload, signature = token.split(".")
    last = signature[-1]
    stray = next(
        each
        for each in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        if each != last
        and base64.urlsafe_b64decode(signature[:-1] + each + "=")
        == base64.urlsafe_b64decode(signature + "=")
    )
    for other in (
        f"{token}=",
        f"{head}=.{payload}.{signature}",
        f"{token}\n",
        f" {token}",
        f"{head}.{payload}.{signature[:-1]}{stray}",
        f"{token}.",
    ):
        assert mint.is_refused(other)
    # A signature that needs the two letters in which the alphabets differ.
    texts = (mint.forge(claims={"jti": f"j{number}"}) for number in range(1000))
    special = next(each for each in texts if {*"-_"} & {*each.rsplit(".", 1)[1]})
    assert not mint.is_refused(special)
    body, _, signature = special.rpartition(".")
    assert mint.is_refused(f"{body}.{signature.replace('-', '+').replace('_', '/')}")


@row("JW-08")
def test_a_token_of_two_megabytes_is_not_read(mint: Mint, row_id: str) -> None:
    """More than 4 KiB is refused before anything of it is parsed."""
    huge = mint.forge(claims={"pad": "x" * 2_000_000})
    assert mint.is_refused(huge)
    with pytest.raises(InvalidToken) as refusal:
        verify_user_token(huge, mint.keys, now=mint.now)
    assert refusal.value.problem == "size"
    assert MAX_TOKEN_CHARS == 4096


@row("JW-09")
def test_nobody_is_blank(mint: Mint, row_id: str) -> None:
    """An empty or blank account, tenant or Slack id names nobody."""
    slack = {"teamId": "T0TEAM", "userId": "U0MIA"}
    for blank in ("", " ", "\t", None, 0):
        assert mint.is_refused(mint.forge(claims={"sub": blank}))
        assert mint.is_refused(mint.forge(claims={"tenantId": blank}))
        for name in slack:
            assert mint.is_refused(mint.forge(claims={"slack": slack | {name: blank}}))
    assert mint.is_refused(mint.forge(claims={"slack": slack | {"enterpriseId": None}}))


@row("JW-10")
def test_a_request_carries_one_bearer(
    mint: Mint, row_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two headers are 400, another case is fine, two spaces are 401, a tenant header is ignored."""
    token = mint.user_token()
    once = ("Authorization", f"Bearer {token}")
    with pytest.raises(AmbiguousAuthorization) as refusal:
        verify_request([once, once], mint.keys, now=mint.now)
    assert refusal.value.kind is Kind.INVALID
    lower = ("authorization", f"bearer {token}")
    assert verify_request([lower], mint.keys, now=mint.now).user_id == "user_mia"
    with pytest.raises(InvalidToken):
        verify_request([("Authorization", f"Bearer  {token}")], mint.keys, now=mint.now)
    named = [once, ("x-inkeep-tenant-id", "contoso")]
    assert verify_request(named, mint.keys, now=mint.now).tenant_id == "northwind"
    assert "tenant_header_ignored" in caplog.text


@row("JW-11")
def test_a_short_secret_stops_the_start(row_id: str) -> None:
    """31 bytes are refused with the variable's name, and without the secret."""
    short = _segment(b"s" * 31)
    key = {"kty": "oct", "kid": "user-1", "k": short, "families": ["slackUser"]}
    with pytest.raises(ConfigError) as refusal:
        Keyset.from_json(
            Secret(json.dumps({"keys": [key]})), variable="INTERLOCK_USER_TOKEN_KEYS_FILE"
        )
    assert refusal.value.variable == "INTERLOCK_USER_TOKEN_KEYS_FILE"
    assert short not in str(refusal.value)


@row("JW-12")
async def test_a_removed_link_is_worth_five_more_minutes(row_id: str) -> None:
    """Measured second by second: what is out works for less than 300 s, and nothing follows it."""
    office = await _open_office(timedelta(seconds=60))
    token = await office.token()
    await office.store.remove_mapping(
        MIA.tenant_id, MappingId("wsum_1"), of_user=None, origin=ORIGIN
    )
    worked_s = 0
    for second in range(1, 400):
        office.clock.advance(timedelta(seconds=1))
        if office.works(token):
            worked_s = second
        with pytest.raises(ServiceError, match="not linked"):
            await office.token()
    assert worked_s == 299


@pytest.mark.parametrize(
    "cache_s",
    [pytest.param(each, id=f"JW-12-leaving-{each}s") for each in (0, 60, 120)],
)
async def test_whoever_leaves_is_out_five_minutes_later(cache_s: int) -> None:
    """Measured second by second: no token is issued after the cache, none works after 300 s."""
    office = await _open_office(timedelta(seconds=cache_s))
    await office.token()
    office.clock.advance(timedelta(seconds=cache_s // 2))
    await office.token()
    del office.membership.roles[MIA]
    left_at = office.clock.now()
    tokens, refusals = await office.tokens_until(6 * MINUTE)
    assert set(refusals) == {"NO_LONGER_A_MEMBER"}
    assert len(tokens) == max(cache_s - cache_s // 2 - 1, 0)
    assert all(token.expires_at <= left_at + timedelta(seconds=300) for token in tokens)


def test_every_rpc_of_identity_has_callers() -> None:
    """The table that the rows rely on lists each RPC, and nobody beside its one caller.

    The record is read by operators, and by edge with an administrator's grant.
    """
    shared = {rpc for rpc, callers in CALLERS.items() if len(callers) > 1}
    assert shared == {"/interlock.identity.v1.AuditService/ListAuditEvents"}
    assert all(CALLERS.values())
