"""Whoever owns the worker has its certificate, its events and the public keys, and no more.

A thief there holds one event of Mia's, everything that it yielded, and the
means to call identity. Whatever is tried, each token that comes out is Mia's.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode, aio

from interlock.identity.v1 import identity_pb2 as pb
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.errors import RemoteError
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.identity_house import TEAM, TIMEOUT_S, House, open_house
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_identity.domain.agents import Agent
from interlock_identity.rpc import CALLERS
from interlock_tokens.errors import InvalidToken
from interlock_tokens.families import FAMILIES, Family
from interlock_tokens.grants import AdminPurpose, SlackUserToken, Workspace
from interlock_tokens.keysets import Keyset, generate_ed25519_key
from interlock_tokens.signing import sign_admin_grant
from interlock_tokens.verifying import verify_user_token

CONTOSO = Workspace("", "T0CONTOSO", is_enterprise_install=False, app_id="A0INTERLOCK")
ISSUE = "/interlock.identity.v1.SubjectService/IssueUserToken"
RENEW = "/interlock.identity.v1.SubjectService/RenewGrant"
_JWT = re.compile(rb"eyJ[A-Za-z0-9_.-]+")
UNSIGNED = b'{"alg":"none","typ":"slack-grant+jwt"}'
ROADMAP = Agent("board", "roadmap")


@dataclass
class Loot:
    """What a thief in the worker holds.

    Attributes:
        event: The grant of the one event.
        artifacts: Everything signed that came of it, by what it is.
        public_keys: What the worker verifies grants with.
    """

    event: str
    artifacts: dict[str, str]
    public_keys: str


@dataclass
class Thief:
    """The worker's end of the wire, in other hands.

    Attributes:
        tokens: Every user token that came out of any call.
        outcomes: How the calls ended.
    """

    house: House
    channel: aio.Channel
    loot: Loot
    tokens: list[SlackUserToken] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)

    async def call(self, method: str, request: bytes, **headers: str) -> str:
        """Call anything with anything; keep the token, if one comes out."""
        unary: aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(method)
        try:
            with remote_errors():
                answer = await unary(
                    request, timeout=TIMEOUT_S, metadata=aio.Metadata(*headers.items())
                )
        except RemoteError as error:
            self.outcomes.append(error.reason)
            return error.reason
        self.outcomes.append("OK")
        self._search(answer)
        return "OK"

    async def ask(self, grant: str, *, more: bytes = b"", **fields: str) -> str:
        """Ask for a user token, with fields of the contract and others."""
        request = pb.IssueUserTokenRequest(grant=grant, **fields)
        return await self.call(ISSUE, request.SerializeToString() + more)

    def whose(self) -> set[tuple[str, str, str, str]]:
        """Name whom all the tokens are for."""
        return {
            (each.tenant_id, each.user_id, each.slack_team_id, each.slack_user_id)
            for each in self.tokens
        }

    def _search(self, answer: bytes) -> None:
        """Look for a user token in any field of an answer."""
        for found in _JWT.findall(answer):
            with contextlib.suppress(InvalidToken):
                self.tokens.append(
                    verify_user_token(
                        found.decode(), self.house.keys.user_tokens, now=datetime.now(UTC)
                    )
                )


MIAS = ("northwind", "user_mia", "T0NORTHWIND", "U0MIA")


@pytest.fixture
async def thief(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[Thief]:
    """Link Mia and Ben at Northwind and Olga at Contoso; give away one event of Mia's."""
    async with open_house(cluster, tmp_path) as house:
        workspace_id = (await house.claim()).workspace.workspace_id
        house.manage.agents.add(("northwind", ROADMAP))
        await house.workspaces().SetAgentDefault(
            pb.SetAgentDefaultRequest(
                session=await house.session("user_ben"),
                workspace_id=workspace_id,
                channel_id="C0BOARD",
                agent_default=pb.AgentDefault(
                    project_id=ROADMAP.project_id,
                    agent_id=ROADMAP.agent_id,
                    grant_access_to_members=False,
                ),
            ),
            timeout=10,
        )
        redeemed = await house.redeem("user_mia", await house.code())
        await house.redeem("user_ben", await house.code(slack_user_id="U0BEN"), confirmed=True)
        at_contoso: dict[str, Any] = {"workspace": CONTOSO, "slack_user_team_id": "T0CONTOSO"}
        await house.claim(
            "user_olga",
            slack_team_id="T0CONTOSO",
            installation_id="0d5d9c52-9a7c-4f40-8d43-6a7d7d6c0001",
        )
        olgas = await house.code(slack_user_id="U0OLGA", **at_contoso)
        await house.redeem("user_olga", olgas, confirmed=True)
        event = house.event_grant()
        loot = Loot(
            event=event,
            artifacts={
                "event": event,
                "renewed": (await house.renew(event)).grant,
                "resume": redeemed.resume_grant,
                "user token": (await house.token(event)).user_token,
                "link code of a colleague": await house.code(slack_user_id="U0EVE"),
            },
            public_keys=Keyset.join(house.keys.edge, house.keys.identity).public(),
        )
        yield Thief(house, house.channels["gateway-worker"], loot)


async def test_each_rpc_with_all_that_the_worker_holds(thief: Thief) -> None:
    """RPCs of others are closed to it, and its own yield Mia's token and no other."""
    # What unlinks Mia comes last.
    methods = sorted(CALLERS.items(), key=lambda each: each[0].endswith("UnlinkSelf"))
    for method, callers in methods:
        for artifact in thief.loot.artifacts.values():
            for request in _requests(artifact):
                outcome = await thief.call(method, request.SerializeToString())
                if "gateway-worker" not in callers:
                    assert outcome == "CALLER_NOT_ALLOWED"
    assert thief.whose() == {MIAS}


def _requests(artifact: str) -> list[Message]:
    """Show an artifact in every place where somebody shows a proof."""
    session = pb.BrowserSession(cookie=f"better-auth.session_token={artifact}"[:2048])
    return [
        pb.IssueUserTokenRequest(grant=artifact),
        pb.RedeemLinkCodeRequest(session=session, link_code=artifact[:128]),
        pb.IssueAdminGrantRequest(
            session=session, workspace_id="wsw_1", purpose=pb.ADMIN_PURPOSE_AUDIT
        ),
    ]


async def test_saying_to_be_somebody_else_does_not_help(thief: Thief) -> None:
    """Headers that name another caller change nothing: the certificate speaks."""
    for header in ("x-caller", "x-forwarded-client-cert", "x-spiffe-id", "caller"):
        value = "spiffe://interlock/gateway-edge"
        method = "/interlock.identity.v1.SessionService/AuthenticateSession"
        outcome = await thief.call(method, b"", **{header: value})
        assert outcome == "CALLER_NOT_ALLOWED"


async def test_a_certificate_of_its_own_making_opens_nothing(thief: Thief, tmp_path: Path) -> None:
    """Edge's name under another authority does not get as far as a call."""
    forged = ThrowAwayCa.create(tmp_path / "forged").issue("gateway-edge", tmp_path / "forged-edge")
    genuine = thief.house.tls["gateway-worker"]
    mixed = type(genuine)(ca=genuine.ca, cert=forged.cert, key=forged.key)
    address = f"127.0.0.1:{thief.house.identity.port}"
    async with open_channel(address, mixed, server="identity") as channel:
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ISSUE)
        with pytest.raises(aio.AioRpcError) as refusal:
            await call(b"", timeout=TIMEOUT_S)
    assert refusal.value.code() is StatusCode.UNAVAILABLE


async def test_nobody_can_be_named_beside_the_grant(thief: Thief) -> None:
    """Fields for a user, a team or a tenant do not exist; made-up ones are refused."""
    for number in range(5, 16):
        for text in (b"T0CONTOSO", b"user_ben", b"U0BEN", b"contoso"):
            # A field of text: its number and kind, its length, itself.
            more = bytes([number << 3 | 2, len(text)]) + text
            assert await thief.ask(thief.loot.event, more=more) == "INVALID_ARGUMENT"
    assert thief.tokens == []


async def test_naming_projects_and_channels_opens_none(thief: Thief) -> None:
    """An agent that nobody opened, another tenant's, another channel: Mia's own access remains."""
    for project, agent in (("board", "roadmap"), ("atlas", "guide"), ("support", "triage")):
        for channel in ("C0BOARD", "C0OTHER", ""):
            outcome = await thief.ask(
                thief.loot.event, project_id=project, agent_id=agent, channel_id=channel
            )
            assert outcome == "OK"
    assert thief.whose() == {MIAS}
    assert {each.authorization for each in thief.tokens} == {None}


async def test_no_change_to_a_grant_survives(thief: Thief) -> None:
    """Every claim that could name somebody else, changed under the genuine signature."""
    head, payload, signature = thief.loot.event.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    contoso = {"teamId": "T0CONTOSO", "isEnterpriseInstall": False, "appId": "A0INTERLOCK"}
    changes: list[dict[str, Any]] = [
        {"slackUserId": "U0BEN"},
        {"slackUserId": "U0OLGA", "workspace": contoso, "slackUserTeamId": "T0CONTOSO"},
        {"workspace": contoso},
        {"eventAt": claims["eventAt"] + 1},
        {"exp": claims["exp"] + 900},
        {"isStranger": True},
        {"tokenUse": "adminGrant"},
    ]
    for change in changes:
        forged = _segment(json.dumps(claims | change).encode())
        for token in (
            f"{head}.{forged}.{signature}",
            f"{_segment(UNSIGNED)}.{forged}.",
            f"{head}.{forged}.",
        ):
            assert await thief.ask(token) == "INVALID_TOKEN"
            assert (
                await thief.call(RENEW, pb.RenewGrantRequest(grant=token).SerializeToString())
                == "INVALID_TOKEN"
            )
    assert thief.tokens == []


async def test_keys_of_its_own_sign_nothing(thief: Thief) -> None:
    """Neither a new key under an old name, nor a public key taken for a shared secret."""
    now = datetime.now(UTC)
    grants = [each for each in Family if each is not Family.SLACK_USER]
    rows = json.loads(thief.loot.public_keys)["keys"]
    bens: dict[str, Any] = {"slack_user_id": "U0BEN", "now": now}
    for row in rows:
        own = Keyset.from_json(
            Secret(json.dumps({"keys": [generate_ed25519_key(row["kid"], grants)]})),
            variable="KEYS",
        )
        assert await thief.ask(thief.house.event_grant(own, **bens)) == "INVALID_TOKEN"
        assert await thief.ask(_resume(own, now)) == "INVALID_TOKEN"
        confused = _hs256(row, thief.house.event_grant(**bens))
        assert await thief.ask(confused) == "INVALID_TOKEN"
    assert thief.tokens == []


def _resume(keyset: Keyset, now: datetime) -> str:
    return sign_admin_grant(
        keyset,
        now=now,
        jti="jti",
        workspace=TEAM,
        tenant_id="northwind",
        user_id="user_ben",
        purpose=AdminPurpose.RESUME,
        slack_user_id="U0BEN",
    ).reveal()


def _hs256(row: dict[str, Any], grant: str) -> str:
    """Sign a grant's claims with the public key as if it were a shared secret."""
    header = {"alg": "HS256", "typ": FAMILIES[Family.SLACK_GRANT].header_type, "kid": row["kid"]}
    signed = f"{_segment(json.dumps(header).encode())}.{grant.split('.')[1]}"
    secret = base64.urlsafe_b64decode(row["x"] + "=")
    return f"{signed}.{_segment(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


async def test_what_it_holds_does_not_last(thief: Thief) -> None:
    """Expired, a day old, unlinked, or of somebody who left: then not even Mia's."""
    house = thief.house
    now = datetime.now(UTC)
    old = house.event_grant(now=now - timedelta(hours=24))
    assert await thief.ask(old) == "INVALID_TOKEN"
    request = pb.RenewGrantRequest(grant=old).SerializeToString()
    assert await thief.call(RENEW, request) == "EVENT_TOO_OLD"
    uninstall = house.event_grant(event_type="app_uninstalled")
    assert await thief.ask(uninstall) == "PURPOSE_NOT_GRANTED"
    await house.links("gateway-worker").UnlinkSelf(
        pb.UnlinkSelfRequest(grant=thief.loot.event), timeout=TIMEOUT_S
    )
    for artifact in thief.loot.artifacts.values():
        assert await thief.ask(artifact) != "OK"
    assert thief.tokens == []


async def test_the_attempts_are_on_record(thief: Thief) -> None:
    """What was refused to the worker can be found, and names it."""
    for artifact in ("x", thief.loot.artifacts["user token"]):
        await thief.ask(artifact)
    await thief.call("/interlock.identity.v1.OffboardingService/ForgetUser", b"")
    recorded = await thief.house.refusals()
    assert ("gateway-worker", "INVALID_TOKEN") in recorded
    assert ("gateway-worker", "CALLER_NOT_ALLOWED") in recorded


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_grant_says_all_that_the_worker_may_say() -> None:
    """The contract has no field by which a caller could choose a user, a team or a tenant."""
    for request in (
        pb.IssueUserTokenRequest,
        pb.CreateLinkCodeRequest,
        pb.ResolveUserRequest,
        pb.ResolveAgentRequest,
        pb.UnlinkSelfRequest,
        pb.RenewGrantRequest,
    ):
        names = {each.name for each in request.DESCRIPTOR.fields}
        assert "grant" in names
        assert not {each for each in names if "tenant" in each or "team" in each or "user" in each}
