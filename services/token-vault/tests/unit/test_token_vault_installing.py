"""Installing: whatever happens on the way, an install ends active, or leaves nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import pytest

from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import KmsKeys
from interlock_token_vault.adapters.memory import (
    FakeClaims,
    FakeKms,
    FakeSlack,
    Faults,
    ManualClock,
    MemoryStore,
    ProcessKilled,
    counting_ids,
)
from interlock_token_vault.domain.audit import Origin
from interlock_token_vault.domain.audit_log import find_first_break
from interlock_token_vault.domain.install import (
    AttemptState,
    BotIdentity,
    ExchangeAnswer,
    InstallInProgress,
    InstallNotOpen,
    OAuthCodeRefused,
    ScopesMissing,
    SlackAnswerUnusable,
    UserGrant,
    WorkspaceTaken,
)
from interlock_token_vault.domain.installation import (
    ClientId,
    InstallationKey,
    InstallationState,
    TenantId,
    TokenKind,
)
from interlock_token_vault.install_ports import (
    LEASE,
    IdentityUnavailable,
    InstallAsk,
    Installed,
    SlackApp,
    SlackUnavailable,
    StaleGeneration,
)
from interlock_token_vault.installing import Installing
from interlock_token_vault.vault import (
    DatabaseUnavailable,
    InstallationNotFound,
    KmsUnavailable,
    ReadAsk,
    TokenVault,
    UserTokenNotFound,
)

ENVIRONMENT = "development"
NORTHWIND, CONTOSO = TenantId("northwind"), TenantId("contoso")
TEAM = InstallationKey(ClientId("client"), "A0APP", "", "T0TEAM")
SCOPES = ("chat:write", "commands")
REDIRECT = "https://interlock.example/work-apps/slack/oauth_redirect"
# The grant's life and then some: what is still open after it never ends by itself.
LONG = timedelta(minutes=20)


def answer(token: str, **changes: object) -> ExchangeAnswer:
    """Make Slack's answer for the workspace T0TEAM."""
    usual = ExchangeAnswer(
        bot_token=Secret(token),
        token_type="bot",
        app_id="A0APP",
        team_id="T0TEAM",
        team_name="Northwind",
        enterprise_id="",
        enterprise_name="",
        is_enterprise_install=False,
        bot_user_id="U0BOT",
        scopes=SCOPES,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def person(token: str, user_id: str = "U0ADA", **changes: object) -> UserGrant:
    """Make what Slack answers of the person who installed."""
    return replace(UserGrant(user_id, Secret(token), "user"), **changes)  # type: ignore[arg-type]


@dataclass
class Stage:
    """Everything that outlives a vault process, and a way to start one."""

    faults: Faults = field(default_factory=Faults)
    clock: ManualClock = field(default_factory=ManualClock)
    slept: list[float] = field(default_factory=list)
    bot_scopes: tuple[str, ...] = SCOPES
    user_scopes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.kms = FakeKms(self.faults)
        self.store = MemoryStore(self.clock, chain_id=UUID(int=99), faults=self.faults)
        self.slack = FakeSlack(self.faults, user_scopes=self.user_scopes)
        self.claims = FakeClaims(self.faults)
        self.new_id = counting_ids()
        self.start_process()

    def start_process(self) -> None:
        """Start a vault process over what is there."""
        self.faults.restart()
        keys = KmsKeys(
            self.kms, fingerprint_key=Secret("k" * 32), clock=self.clock, new_id=self.new_id
        )
        self.keys = keys
        self.vault = TokenVault(self.store, keys, environment=ENVIRONMENT)
        self.installing = Installing(
            store=self.store,
            keys=keys,
            slack=self.slack,
            claims=self.claims,
            app=SlackApp(
                ClientId("client"),
                self.bot_scopes,
                "https://slack.com/oauth/v2/authorize",
                self.user_scopes,
            ),
            environment=ENVIRONMENT,
            new_id=self.new_id,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def begin(self, name: str, tenant: TenantId = NORTHWIND) -> InstallAsk:
        """Open an install and let identity know its grant."""
        ask = InstallAsk(
            grant=Secret(f"grant-{name}"),
            tenant_id=tenant,
            user_id="user-1",
            state_sha256="0" * 64,
            source="direct",
            expires_at=self.clock.now() + timedelta(minutes=15),
            origin=Origin("gateway-edge", "/x/CompleteOAuthInstall", grant_id=f"jti-{name}"),
        )
        self.claims.tenant_of[f"grant-{name}"] = tenant
        await self.installing.start(ask)
        return ask

    async def complete(self, ask: InstallAsk, code: str = "code") -> Installed:
        """Complete an install as edge would."""
        return await self.installing.complete(ask, Secret(code), REDIRECT)

    async def install(
        self, name: str, token: str, tenant: TenantId = NORTHWIND, **changes: object
    ) -> Installed:
        """Install from beginning to end."""
        ask = await self.begin(name, tenant)
        self.slack.codes[f"code-{name}"] = answer(token, **changes)
        return await self.complete(ask, f"code-{name}")

    async def read(self, key: InstallationKey = TEAM, user_id: str = "") -> str:
        """Read the bot's token, or a user's, as the worker would."""
        ask = ReadAsk(key, Origin("gateway-worker", "/x/ReadBotToken"), user_id=user_id)
        return (await self.vault.read(ask)).token.reveal()

    async def settle(self) -> None:
        """Let leases and grants run out, and sweep."""
        for wait in (LEASE, LONG):
            self.clock.advance(wait)
            await self.installing.sweep()
        self.clock.advance(LEASE)
        await self.installing.sweep()

    def snapshot(self) -> tuple[object, ...]:
        """Copy everything that is stored of installations."""
        return dict(self.store.installations), dict(self.store.tokens), dict(self.store.deks)

    def actions(self) -> list[str]:
        """List what the audit log says happened."""
        return [record.event.action for record in self.store.records]

    def last_outcome(self, action: str) -> str:
        """Tell how the newest record of an action ended."""
        return [
            record.event.outcome for record in self.store.records if record.event.action == action
        ][-1]


@pytest.fixture
def stage() -> Stage:
    """Give a vault with nothing installed."""
    return Stage()


async def test_an_install_ends_active_and_readable(stage: Stage) -> None:
    """From a code to a released token, with a record of every step."""
    installed = await stage.install("one", "xoxb-1")
    assert await stage.read() == "xoxb-1"
    assert installed.installation.key == TEAM
    assert installed.installation.state is InstallationState.ACTIVE
    assert not installed.is_reinstall
    assert stage.actions() == [
        "install.started",
        "install.code_taken",
        "install.sealed",
        "install.activated",
        "token.read",
    ]
    assert find_first_break(stage.store.records) is None


async def test_the_consent_page_asks_for_the_apps_scopes(stage: Stage) -> None:
    """The page names the app and every scope; state and redirect are the caller's to add."""
    ask = await stage.begin("one")
    assert await stage.installing.start(ask) == (
        "https://slack.com/oauth/v2/authorize?client_id=client&scope=chat%3Awrite,commands"
    )
    assert stage.actions() == ["install.started"]


async def test_the_data_key_is_ready_before_slack_is_asked(stage: Stage) -> None:
    """With the KMS away no code is spent: there would be nothing to seal the answer with."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("kms.wrap", KmsUnavailable())
    with pytest.raises(KmsUnavailable):
        await stage.complete(ask)
    assert stage.faults.calls["slack.exchange"] == 0
    assert (await stage.complete(ask)).installation.key == TEAM


async def test_a_repeat_answers_the_same_installation(stage: Stage) -> None:
    """The same grant and code again spends nothing and changes nothing."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1", scopes=(*SCOPES, "im:read"))
    first = await stage.complete(ask)
    before = stage.snapshot()
    assert await stage.complete(ask) == first
    assert first.extra_scopes == ("im:read",)
    assert stage.snapshot() == before
    assert stage.faults.calls["slack.exchange"] == 1


async def test_another_code_is_no_repeat(stage: Stage) -> None:
    """A grant completes one code; whoever brings another gets nothing of it."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    await stage.complete(ask)
    with pytest.raises(InstallNotOpen):
        await stage.complete(ask, "another")


async def test_a_grant_that_started_nothing_completes_nothing(stage: Stage) -> None:
    """Without the written-down start there is no install to complete."""
    ask = await stage.begin("one")
    unknown = replace(ask, origin=replace(ask.origin, grant_id="jti-unknown"))
    with pytest.raises(InstallNotOpen):
        await stage.complete(unknown)


async def test_a_grant_of_another_source_completes_nothing(stage: Stage) -> None:
    """A grant for a Nango install does not take a Slack code."""
    ask = await stage.begin("one")
    nango = replace(ask, source="nango", origin=replace(ask.origin, grant_id="jti-nango"))
    await stage.installing.start(nango)
    with pytest.raises(InstallNotOpen):
        await stage.complete(nango)


async def test_the_same_tenant_reinstalls_over_itself(stage: Stage) -> None:
    """A reinstall keeps the installation, raises its generation and takes the new token."""
    first = await stage.install("one", "xoxb-1")
    second = await stage.install("two", "xoxb-2")
    assert second.is_reinstall
    assert second.installation.id == first.installation.id
    assert second.installation.generation == first.installation.generation + 1
    assert await stage.read() == "xoxb-2"
    assert len(stage.store.installations) == len(stage.store.deks) == 1


async def test_a_reinstall_that_answers_the_same_token_still_counts(stage: Stage) -> None:
    """Slack usually answers the same token; the generation rises all the same."""
    await stage.install("one", "xoxb-1")
    second = await stage.install("two", "xoxb-1")
    assert second.installation.generation == 2
    assert await stage.read() == "xoxb-1"
    assert stage.slack.revoked == []


async def test_a_reinstall_cures_a_lost_data_key(stage: Stage) -> None:
    """Where the old data key cannot be used, the new installation takes the old one's place."""
    first = await stage.install("one", "xoxb-1")
    stage.kms.promote("fake-2")
    stage.kms.disable("fake-1")
    stage.clock.advance(timedelta(seconds=300))
    second = await stage.install("two", "xoxb-2")
    assert second.is_reinstall
    assert second.installation.id != first.installation.id
    assert await stage.read() == "xoxb-2"
    assert list(stage.store.installations) == [second.installation.id]


@pytest.mark.parametrize("token", ["xoxb-1", "xoxb-2"])
async def test_a_workspace_of_another_tenant_stays_untouched(stage: Stage, token: str) -> None:
    """OA-10: the rightful tenant's rows are byte-identical, and its token lives.

    The answered token is revoked only when nobody holds it already.
    """
    await stage.install("one", "xoxb-1")
    before = stage.snapshot()
    with pytest.raises(WorkspaceTaken):
        await stage.install("two", token, CONTOSO)
    assert stage.snapshot() == before
    assert stage.slack.revoked == ([] if token == "xoxb-1" else ["xoxb-2"])
    assert await stage.read() == "xoxb-1"
    assert stage.last_outcome("install.dropped") == "WORKSPACE_TAKEN"


async def test_a_revocation_is_followed_by_a_look_at_the_stored_token(stage: Stage) -> None:
    """Should Slack have ended the rightful tenant's token too, that is found at once."""
    await stage.install("one", "xoxb-1")
    del stage.slack.identities["xoxb-1"]
    with pytest.raises(WorkspaceTaken):
        await stage.install("two", "xoxb-2", CONTOSO)
    assert stage.actions()[-2:] == ["token.probed", "token.found_dead"]


async def test_a_workspace_that_identity_gave_away_changes_hands(stage: Stage) -> None:
    """Identity decides: the old tenant's installation and key go when the new one comes."""
    first = await stage.install("one", "xoxb-1")
    stage.claims.claims.clear()
    second = await stage.install("two", "xoxb-2", CONTOSO)
    assert not second.is_reinstall
    assert second.installation.tenant_id == CONTOSO
    assert first.installation.id not in stage.store.deks
    assert "installation.purged" in stage.actions()
    assert await stage.read() == "xoxb-2"


async def test_fewer_scopes_than_needed_are_named_and_dropped(stage: Stage) -> None:
    """OA-11: too few scopes make no installation, and the token does not live on."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1", scopes=("chat:write", "im:read"))
    with pytest.raises(ScopesMissing) as refusal:
        await stage.complete(ask)
    assert refusal.value.metadata == {"missing_scopes": "commands"}
    assert stage.slack.revoked == ["xoxb-1"]
    assert stage.snapshot() == ({}, {}, {})


async def test_too_few_scopes_at_a_reinstall_leave_the_stored_token_alone(stage: Stage) -> None:
    """The answered token is the stored one: revoking it would end a working installation."""
    await stage.install("one", "xoxb-1")
    ask = await stage.begin("two")
    stage.slack.codes["code"] = answer("xoxb-1", scopes=("chat:write",))
    with pytest.raises(ScopesMissing):
        await stage.complete(ask)
    assert stage.slack.revoked == []
    assert await stage.read() == "xoxb-1"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"bot_token": None}, id="no-token"),
        pytest.param({"team_id": "", "enterprise_id": ""}, id="no-team-no-enterprise"),
        pytest.param({"team_id": "", "enterprise_id": "E0GRID"}, id="no-team-not-org-wide"),
        pytest.param({"is_enterprise_install": True}, id="org-wide-without-enterprise"),
        pytest.param({"token_type": "user"}, id="user-token"),
        pytest.param({"token_type": ""}, id="no-type"),
        pytest.param({"team_id": "t0team"}, id="malformed-team"),
        pytest.param({"app_id": ""}, id="no-app"),
        pytest.param({"bot_user_id": ""}, id="no-bot"),
        pytest.param({"refresh_token": Secret("xoxe-1-r")}, id="refresh-without-expiry"),
        pytest.param({"expires_in_s": 43200}, id="expiry-without-refresh"),
        pytest.param({"refresh_token": Secret("xoxe-1-r"), "expires_in_s": 60}, id="expires-60"),
        pytest.param({"refresh_token": Secret("xoxe-1-r"), "expires_in_s": -1}, id="expires-1"),
    ],
)
async def test_an_answer_of_no_use_stores_nothing(stage: Stage, changes: dict[str, object]) -> None:
    """OA-09: what makes no installation is refused, ended at Slack, and on record."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1", **changes)
    with pytest.raises(SlackAnswerUnusable):
        await stage.complete(ask)
    assert stage.snapshot() == ({}, {}, {})
    assert stage.slack.identities == {}
    assert stage.last_outcome("install.dropped") == "SLACK_ANSWER_UNUSABLE"
    with pytest.raises(SlackAnswerUnusable):
        await stage.complete(ask)


@pytest.mark.parametrize(
    ("said", "known"), [("U0ADA", "U0ADA"), ("W0ADA", "W0ADA"), ("", ""), ("C0GENERAL", "")]
)
async def test_who_allowed_an_install_is_known(stage: Stage, said: str, known: str) -> None:
    """By Slack's word; what is no user is nobody, and fails no install."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1", installed_by=said)
    installed = await stage.complete(ask)
    assert installed.installation.installed_by == known


async def test_an_unwanted_token_that_somebody_holds_is_not_revoked(stage: Stage) -> None:
    """A garbled answer about a token that is stored already ends nothing."""
    await stage.install("one", "xoxb-1")
    ask = await stage.begin("two")
    stage.slack.codes["code"] = answer("xoxb-1", token_type="user")
    with pytest.raises(SlackAnswerUnusable):
        await stage.complete(ask)
    assert await stage.read() == "xoxb-1"
    assert stage.slack.revoked == []


@pytest.mark.parametrize(
    "identity",
    [
        BotIdentity("T0OTHER", "", "U0BOT", is_enterprise_install=False),
        BotIdentity("T0TEAM", "E0GRID", "U0BOT", is_enterprise_install=False),
        BotIdentity("T0TEAM", "", "U0OTHER", is_enterprise_install=False),
        BotIdentity("T0TEAM", "", "U0BOT", is_enterprise_install=True),
    ],
)
async def test_a_token_that_is_not_what_the_exchange_said_is_dropped(
    stage: Stage, identity: BotIdentity
) -> None:
    """auth.test has the last word on where a token belongs."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.slack.identities["xoxb-1"] = identity
    with pytest.raises(SlackAnswerUnusable):
        await stage.complete(ask)
    assert stage.snapshot() == ({}, {}, {})
    assert stage.claims.claims == {}


async def test_an_org_wide_install_is_keyed_by_its_enterprise(stage: Stage) -> None:
    """`team: null` is the whole Enterprise; a team beside it is not part of the key."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer(
        "xoxb-1",
        team_id="T0TEAM",
        enterprise_id="E0GRID",
        enterprise_name="Grid",
        is_enterprise_install=True,
    )
    installed = await stage.complete(ask)
    assert installed.installation.key == replace(TEAM, enterprise_id="E0GRID", team_id="")
    assert installed.installation.name == "Grid"
    with pytest.raises(InstallationNotFound):
        await stage.read()


@pytest.fixture
def asking() -> Stage:
    """Give a vault whose app asks for a token of the person who installs, and for a webhook."""
    return Stage(bot_scopes=(*SCOPES, "incoming-webhook"), user_scopes=("channels:history",))


ASKED = (*SCOPES, "incoming-webhook")


async def test_a_persons_token_is_asked_for_by_its_scopes(asking: Stage) -> None:
    """The consent page names them apart from the bot's; without any it names none."""
    ask = await asking.begin("one")
    assert (await asking.installing.start(ask)).endswith("&user_scope=channels%3Ahistory")


async def test_what_was_asked_for_is_sealed_with_the_bots_token(asking: Stage) -> None:
    """A user's pair and a webhook have slots of their own, and a record each."""
    installed = await asking.install(
        "one",
        "xoxe.xoxb-1",
        scopes=ASKED,
        refresh_token=Secret("xoxe-1-b"),
        expires_in_s=43200,
        user=person("xoxe.xoxp-1", refresh_token=Secret("xoxe-1-u"), expires_in_s=21600),
        webhook_url=Secret("https://hooks.slack.com/services/T0TEAM/B0/secret"),
    )
    held = asking.store.tokens[installed.installation.id]
    assert [(each.kind.value, each.slot.value, each.user_id) for each in held] == [
        ("bot", "access", ""),
        ("bot", "refresh", ""),
        ("user", "access", "U0ADA"),
        ("user", "refresh", "U0ADA"),
        ("webhook", "access", ""),
    ]
    assert held[2].expires_at == asking.clock.now() + timedelta(hours=6)
    sealed = b"".join(each.sealed for each in held)
    assert b"xoxe" not in sealed
    assert b"hooks.slack.com" not in sealed
    assert await asking.read() == "xoxe.xoxb-1"
    assert await asking.read(user_id="U0ADA") == "xoxe.xoxp-1"
    assert asking.actions()[3:6] == ["install.activated", "user_token.stored", "webhook.stored"]
    assert "xox" not in repr([record.event for record in asking.store.records])


async def test_nobodys_token_is_kept_that_was_not_asked_for(stage: Stage) -> None:
    """Whoever puts a scope into the consent page by hand gets an install without it."""
    await stage.install(
        "one", "xoxb-1", user=person("xoxp-1"), webhook_url=Secret("https://hooks.slack.com/x")
    )
    assert await stage.read() == "xoxb-1"
    assert stage.slack.revoked == ["xoxp-1"]
    [tokens] = stage.store.tokens.values()
    assert [each.kind for each in tokens] == [TokenKind.BOT]
    with pytest.raises(UserTokenNotFound):
        await stage.read(user_id="U0ADA")


@pytest.mark.parametrize("scopes", [(), ("users:read",)])
async def test_a_persons_token_without_its_scopes_ends_the_install(
    asking: Stage, scopes: tuple[str, ...]
) -> None:
    """OA-11: what is missing is named, and neither token lives on."""
    asking.slack.user_scopes = scopes
    with pytest.raises(ScopesMissing) as refusal:
        await asking.install("one", "xoxb-1", scopes=ASKED, user=person("xoxp-1"))
    assert refusal.value.metadata == {"missing_scopes": "channels:history"}
    assert asking.slack.revoked == ["xoxb-1", "xoxp-1"]
    assert asking.snapshot() == ({}, {}, {})


async def test_an_answer_without_the_persons_token_is_too_few_scopes(asking: Stage) -> None:
    """OA-11: the bot's token alone is not what the app needs."""
    with pytest.raises(ScopesMissing) as refusal:
        await asking.install("one", "xoxb-1", scopes=ASKED)
    assert refusal.value.metadata == {"missing_scopes": "channels:history"}
    assert asking.slack.identities == {}


async def test_a_persons_further_scopes_are_drift_too(asking: Stage) -> None:
    """They are stored, and told like a bot's."""
    asking.slack.user_scopes = ("channels:history", "users:read")
    installed = await asking.install(
        "one", "xoxb-1", scopes=(*ASKED, "im:read"), user=person("xoxp-1")
    )
    assert installed.extra_scopes == ("im:read", "users:read")


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(person("xoxp-1", token_type="bot"), id="bot-token"),
        pytest.param(person("xoxp-1", user_id="ada"), id="malformed-user"),
        pytest.param(person("xoxp-1", expires_in_s=43200), id="expiry-without-refresh"),
    ],
)
async def test_a_persons_token_of_no_use_stores_nothing(asking: Stage, given: UserGrant) -> None:
    """OA-09: both tokens of such an answer are ended."""
    with pytest.raises(SlackAnswerUnusable):
        await asking.install("one", "xoxb-1", scopes=ASKED, user=given)
    assert asking.slack.identities == {}
    assert asking.snapshot() == ({}, {}, {})


async def test_a_persons_token_that_is_somebody_elses_is_dropped(asking: Stage) -> None:
    """auth.test has the last word on whose a token is."""
    asking.slack.identities["xoxp-1"] = BotIdentity(
        "T0TEAM", "", "U0OTHER", is_enterprise_install=False, scopes=("channels:history",)
    )
    with pytest.raises(SlackAnswerUnusable):
        await asking.install("one", "xoxb-1", scopes=ASKED, user=person("xoxp-1"))
    assert asking.snapshot() == ({}, {}, {})


async def test_a_reinstall_renews_the_same_person_and_leaves_others(asking: Stage) -> None:
    """Each person's generation only rises, also where refreshes have overtaken the bot's."""
    first = await asking.install("one", "xoxb-1", scopes=ASKED, user=person("xoxp-ada"))
    await asking.install("two", "xoxb-2", scopes=ASKED, user=person("xoxp-ben", "U0BEN"))
    place = first.installation.id
    asking.store.tokens[place] = tuple(
        replace(each, generation=9) if each.user_id == "U0BEN" else each
        for each in asking.store.tokens[place]
    )
    await asking.install("three", "xoxb-3", scopes=ASKED, user=person("xoxp-ben-2", "U0BEN"))
    assert await asking.read(user_id="U0ADA") == "xoxp-ada"
    assert await asking.read(user_id="U0BEN") == "xoxp-ben-2"
    assert sorted((each.user_id, each.generation) for each in asking.store.tokens[place]) == [
        ("", 3),
        ("U0ADA", 1),
        ("U0BEN", 10),
    ]


async def test_a_webhook_stays_until_another_takes_its_place(asking: Stage) -> None:
    """A reinstall that brings none says nothing about the one that is there."""
    urls = [Secret(f"https://hooks.slack.com/services/{number}") for number in range(2)]
    stored = []
    for name, url in (("one", urls[0]), ("two", None), ("three", urls[1])):
        await asking.install(
            name, f"xoxb-{name}", scopes=ASKED, user=person("xoxp-1"), webhook_url=url
        )
        [tokens] = asking.store.tokens.values()
        stored.append([each.ref for each in tokens if each.kind is TokenKind.WEBHOOK])
    first, second = (asking.keys.ref(url) for url in urls)
    assert stored == [[first], [first], [second]]


@pytest.mark.parametrize("token", ["xoxp-1", "xoxp-2"])
async def test_the_rightful_tenants_users_keep_their_tokens(asking: Stage, token: str) -> None:
    """OA-10: the loser's are revoked, unless they are the very ones that are stored."""
    await asking.install("one", "xoxb-1", scopes=ASKED, user=person("xoxp-1"))
    before = asking.snapshot()
    with pytest.raises(WorkspaceTaken):
        await asking.install("two", "xoxb-2", CONTOSO, scopes=ASKED, user=person(token))
    assert asking.snapshot() == before
    assert await asking.read(user_id="U0ADA") == "xoxp-1"
    assert "xoxp-1" in asking.slack.identities
    assert ("xoxp-2" in asking.slack.revoked) == (token == "xoxp-2")


async def test_a_workspace_that_changes_hands_ends_the_tokens_of_its_users(asking: Stage) -> None:
    """They were given to the tenant before, and nothing names them afterwards."""
    await asking.install("one", "xoxb-1", scopes=ASKED, user=person("xoxp-ada"))
    asking.claims.claims.clear()
    await asking.install("two", "xoxb-1", CONTOSO, scopes=ASKED, user=person("xoxp-ben", "U0BEN"))
    assert asking.slack.revoked == ["xoxp-ada"]
    with pytest.raises(UserTokenNotFound):
        await asking.read(user_id="U0ADA")
    assert await asking.read(user_id="U0BEN") == "xoxp-ben"


@pytest.mark.parametrize("is_reinstall", [False, True])
async def test_a_kill_at_any_point_leaves_no_persons_token_unrecorded(
    *, is_reinstall: bool
) -> None:
    """A person's token is stored, ended, or on record as lost with the exchange."""

    async def run(kill_at: int) -> tuple[Stage, int, int]:
        stage = Stage(bot_scopes=ASKED, user_scopes=("channels:history",))
        if is_reinstall:
            await stage.install("old", "xoxb-old", scopes=ASKED, user=person("xoxp-old"))
        ask = await stage.begin("new")
        stage.slack.codes["code"] = answer("xoxb-new", scopes=ASKED, user=person("xoxp-new"))
        before = stage.faults.passed
        stage.faults.kill_at = kill_at
        with suppress(ProcessKilled):
            await stage.complete(ask)
        after = stage.faults.passed
        stage.start_process()
        await stage.settle()
        _require_settled(stage, ask)
        return stage, before, after

    _, before, after = await run(0)
    for point in range(before + 1, after + 1):
        stage, _, _ = await run(point)
        stored = {each.ref for tokens in stage.store.tokens.values() for each in tokens}
        alone = {
            token
            for token in stage.slack.identities
            if stage.keys.ref(Secret(token)) not in stored and token.endswith("-new")
        }
        assert not alone or "install.lost" in stage.actions()
        bots = {each.ref for t in stage.store.tokens.values() for each in t if not each.user_id}
        assert len(bots) == len(stage.store.installations)


async def test_a_rotated_token_keeps_its_refresh_token_and_its_end(stage: Stage) -> None:
    """With rotation on, both halves are sealed, and the token ends when Slack says."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer(
        "xoxe.xoxb-1", refresh_token=Secret("xoxe-1-r"), expires_in_s=43200
    )
    installed = await stage.complete(ask)
    access, refresh = stage.store.tokens[installed.installation.id]
    assert access.expires_at == stage.clock.now() + timedelta(hours=12)
    assert refresh.expires_at is None
    assert b"xoxe" not in access.sealed + refresh.sealed


@pytest.mark.parametrize(
    ("error", "repeated"),
    [(OAuthCodeRefused(), OAuthCodeRefused), (SlackAnswerUnusable(), SlackAnswerUnusable)],
)
async def test_a_refusal_of_slacks_is_final(
    stage: Stage, error: Exception, repeated: type[Exception]
) -> None:
    """A code that Slack refused stays refused, and Slack is not asked again."""
    ask = await stage.begin("one")
    stage.faults.fail_next("slack.exchange", error)
    for _ in range(2):
        with pytest.raises(repeated):
            await stage.complete(ask)
    assert stage.faults.calls["slack.exchange"] == 1
    assert stage.snapshot() == ({}, {}, {})


async def test_slack_away_leaves_the_install_open(stage: Stage) -> None:
    """No answer spends nothing on our side: the same code may be tried again."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("slack.exchange", SlackUnavailable())
    with pytest.raises(SlackUnavailable):
        await stage.complete(ask)
    assert (await stage.complete(ask)).installation.key == TEAM
    assert len(stage.store.deks) == 1


async def test_identity_away_leaves_the_token_sealed_and_silent(stage: Stage) -> None:
    """Until identity has decided the token answers nobody; a repeat finishes the install."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("claims.claim", IdentityUnavailable())
    with pytest.raises(IdentityUnavailable):
        await stage.complete(ask)
    with pytest.raises(InstallationNotFound):
        await stage.read()
    assert (await stage.complete(ask)).installation.key == TEAM
    assert await stage.read() == "xoxb-1"
    assert stage.faults.calls["slack.exchange"] == 1


async def test_the_sweep_finishes_what_an_outage_left(stage: Stage) -> None:
    """Nobody has to come back: the next sweep claims and activates."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("claims.claim", IdentityUnavailable())
    with pytest.raises(IdentityUnavailable):
        await stage.complete(ask)
    await stage.installing.sweep()
    assert await stage.read() == "xoxb-1"


async def test_the_sweep_purges_what_can_no_longer_be_claimed(stage: Stage) -> None:
    """A pending token whose grant has run out is revoked and shredded."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("claims.claim", IdentityUnavailable())
    with pytest.raises(IdentityUnavailable):
        await stage.complete(ask)
    stage.claims.tenant_of.clear()
    await stage.settle()
    assert stage.snapshot() == ({}, {}, {})
    assert stage.slack.revoked == ["xoxb-1"]


async def test_a_drop_that_slack_hinders_is_tried_again(stage: Stage) -> None:
    """An unwanted token that could not be revoked stays pending, not forgotten."""
    await stage.install("one", "xoxb-1")
    ask = await stage.begin("two", CONTOSO)
    stage.slack.codes["code"] = answer("xoxb-2")
    stage.faults.fail_next("slack.revoke", SlackUnavailable())
    with pytest.raises(WorkspaceTaken):
        await stage.complete(ask)
    assert stage.slack.revoked == []
    await stage.settle()
    assert stage.slack.revoked == ["xoxb-2"]
    assert await stage.read() == "xoxb-1"


async def test_a_stumbling_database_does_not_lose_the_token(stage: Stage) -> None:
    """OA-15: after Slack's answer the vault tries to write it down for seconds."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("store.save_pending", DatabaseUnavailable(), DatabaseUnavailable())
    stage.faults.fail_after("store.save_pending", DatabaseUnavailable())
    await stage.complete(ask)
    assert stage.slept == [0.1, 0.4, 1.0]
    assert await stage.read() == "xoxb-1"


async def test_a_database_that_stays_away_leaves_a_record_of_the_loss(stage: Stage) -> None:
    """OA-15: when the token cannot be written, the attempt says that one may live."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("store.save_pending", *[DatabaseUnavailable()] * 6)
    with pytest.raises(DatabaseUnavailable):
        await stage.complete(ask)
    await stage.settle()
    assert "install.lost" in stage.actions()
    assert stage.snapshot() == ({}, {}, {})


async def test_a_caller_that_goes_away_does_not_stop_an_install(stage: Stage) -> None:
    """Between Slack's answer and the sealed row, giving up would lose a living token."""
    ask = await stage.begin("one")
    asked, gate = asyncio.Event(), asyncio.Event()

    class SlowSlack(FakeSlack):
        async def exchange(self, code: Secret[str], redirect_uri: str) -> ExchangeAnswer:
            waiting = await super().exchange(code, redirect_uri)
            asked.set()
            await gate.wait()
            return waiting

    stage.slack = SlowSlack(stage.faults)
    stage.start_process()
    stage.slack.codes["code"] = answer("xoxb-1")
    call = asyncio.create_task(stage.complete(ask))
    await asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.set()
    await stage.installing.drain()
    assert await stage.read() == "xoxb-1"


async def test_two_calls_for_one_grant_exchange_once(stage: Stage) -> None:
    """Of two calls at the same time, one completes and the other is told so."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    results = await asyncio.gather(stage.complete(ask), stage.complete(ask), return_exceptions=True)
    installed = [each for each in results if isinstance(each, Installed)]
    refused = [each for each in results if not isinstance(each, Installed)]
    assert stage.faults.calls["slack.exchange"] == 1
    assert len(installed) >= 1
    assert all(isinstance(each, InstallInProgress) for each in refused)


async def test_two_tenants_at_the_same_time_make_one_installation(stage: Stage) -> None:
    """OA-13: identity decides, and the loser takes nothing from the winner."""
    asks = [await stage.begin("one"), await stage.begin("two", CONTOSO)]
    for number in range(2):
        stage.slack.codes[f"code-{number}"] = answer("xoxb-same")
    results = await asyncio.gather(
        *(stage.complete(ask, f"code-{number}") for number, ask in enumerate(asks)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in results) == ["Installed", "WorkspaceTaken"]
    assert await stage.read() == "xoxb-same"
    assert stage.slack.revoked == []


async def test_a_plan_overtaken_by_another_install_is_made_again(stage: Stage) -> None:
    """When the installation changed under a plan, the newer state is planned upon."""
    await stage.install("one", "xoxb-1")
    stage.faults.fail_next("store.activate", StaleGeneration())
    second = await stage.install("two", "xoxb-2")
    assert second.installation.generation == 2
    assert stage.faults.calls["claims.claim"] == 3


async def test_a_plan_that_is_overtaken_again_and_again_waits_for_the_sweep(stage: Stage) -> None:
    """Three times overtaken, the install stays pending and the caller may repeat."""
    ask = await stage.begin("one")
    stage.slack.codes["code"] = answer("xoxb-1")
    stage.faults.fail_next("store.activate", *[StaleGeneration()] * 3)
    with pytest.raises(InstallInProgress):
        await stage.complete(ask)
    assert (await stage.complete(ask)).installation.key == TEAM


Scenario = Callable[[Stage], Awaitable[tuple[InstallAsk, str]]]


async def _fresh(stage: Stage) -> tuple[InstallAsk, str]:
    stage.slack.codes["code"] = answer("xoxb-new")
    return await stage.begin("new"), "xoxb-new"


async def _reinstall(stage: Stage) -> tuple[InstallAsk, str]:
    await stage.install("old", "xoxb-old")
    return await _fresh(stage)


async def _taken(stage: Stage) -> tuple[InstallAsk, str]:
    await stage.install("old", "xoxb-old")
    stage.slack.codes["code"] = answer("xoxb-new")
    return await stage.begin("new", CONTOSO), "xoxb-old"


async def _taken_same_token(stage: Stage) -> tuple[InstallAsk, str]:
    await stage.install("old", "xoxb-old")
    stage.slack.codes["code"] = answer("xoxb-old")
    return await stage.begin("new", CONTOSO), "xoxb-old"


async def _scopes_missing(stage: Stage) -> tuple[InstallAsk, str]:
    await stage.install("old", "xoxb-old")
    stage.slack.codes["code"] = answer("xoxb-new", scopes=())
    return await stage.begin("new"), "xoxb-old"


SCENARIOS = [_fresh, _reinstall, _taken, _taken_same_token, _scopes_missing]


async def _count_points(scenario: Scenario) -> tuple[int, int]:
    stage = Stage()
    ask, _ = await scenario(stage)
    before = stage.faults.passed
    with suppress(WorkspaceTaken, ScopesMissing):
        await stage.complete(ask)
    return before, stage.faults.passed


async def _kill_at(stage: Stage, scenario: Scenario, point: int) -> tuple[InstallAsk, str]:
    ask, expected = await scenario(stage)
    stage.faults.kill_at = point
    with pytest.raises(ProcessKilled):
        await stage.complete(ask)
    stage.start_process()
    return ask, expected


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_kill_at_any_point_converges_by_the_sweep(scenario: Scenario) -> None:
    """Wherever the process dies, a new one brings the install to an end by itself.

    Afterwards nothing is pending, no data key is left over, the old
    installation answers or the new one does, and a token that lives unstored
    is on record as lost: only a kill between Slack's answer and the sealed row
    leaves one.
    """
    before, after = await _count_points(scenario)
    for point in range(before + 1, after + 1):
        stage = Stage()
        ask, expected = await _kill_at(stage, scenario, point)
        held = dict(stage.store.installations)
        await stage.settle()
        _require_settled(stage, ask)
        tokens = {await stage.read()} if stage.store.installations else set()
        is_lost = "install.lost" in stage.actions()
        unstored = set(stage.slack.identities) - tokens
        assert not unstored or (is_lost and unstored <= {"xoxb-new"}) or tokens == {"xoxb-new"}
        if scenario is not _fresh:
            assert tokens in ({expected}, {"xoxb-old"})
        if scenario in {_taken, _taken_same_token, _scopes_missing}:
            assert tokens == {"xoxb-old"}
            for installation_id, installation in stage.store.installations.items():
                assert held[installation_id] == installation


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_kill_at_any_point_may_be_repeated(scenario: Scenario) -> None:
    """Wherever the process dies, the same call again ends the install one way or the other."""
    before, after = await _count_points(scenario)
    for point in range(before + 1, after + 1):
        stage = Stage()
        ask, _ = await _kill_at(stage, scenario, point)
        stage.clock.advance(LEASE)
        try:
            installed = await stage.complete(ask)
        except (OAuthCodeRefused, WorkspaceTaken, ScopesMissing):
            installed = None
        except SlackAnswerUnusable:
            # Killed between revoking an unwanted token and dropping its row:
            # the new process finds the token dead before it finds it unwanted.
            assert stage.slack.revoked == ["xoxb-new"]
            installed = None
        if installed is not None:
            assert await stage.read() == "xoxb-new"
            assert await stage.complete(ask) == installed
        await stage.settle()
        _require_settled(stage, ask)


def _require_settled(stage: Stage, ask: InstallAsk) -> None:
    states = {each.state for each in stage.store.installations.values()}
    assert states <= {InstallationState.ACTIVE}
    assert set(stage.store.deks) == set(stage.store.tokens) == set(stage.store.installations)
    attempt = stage.store.attempt(ask.origin.grant_id)
    assert attempt.state in {AttemptState.DONE, AttemptState.DROPPED}
    assert attempt.grant is None
    assert find_first_break(stage.store.records) is None
