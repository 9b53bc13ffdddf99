"""Bolt's installation store on the vault: the SDK's own semantics, and none of its defects."""

import asyncio
from collections.abc import AsyncIterator, Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from slack_sdk.oauth.installation_store import Bot, Installation

from interlock.token_vault.v1 import token_vault_pb2 as pb
from interlock_chassis.errors import ConfigError, Kind, RemoteError
from interlock_chassis.secret import Secret
from interlock_cli.scratch_databases import ScratchDatabases
from interlock_cli.vault_house import CLIENT_ID, House, ask, open_house, refusal
from interlock_client import VaultInstallationStore, open_installation_store
from interlock_token_vault.adapters.registered_apps import AppNotRegistered, RegisteredApps
from interlock_token_vault.domain.installation import ClientId

T0 = 1_767_323_045.25


@dataclass
class Stage:
    """A vault and an app's store on it."""

    house: House
    store: VaultInstallationStore

    async def bot_token(self, **place: Any) -> str | None:
        """Find a bot's token."""
        bot = await self.store.async_find_bot(**{"enterprise_id": None, "team_id": "T11", **place})
        return bot.bot_token if bot else None

    async def found(self, **place: Any) -> Installation | None:
        """Find an installation."""
        return await self.store.async_find_installation(
            **{"enterprise_id": None, "team_id": "T11", **place}
        )


@pytest.fixture
async def stage(cluster: ScratchDatabases, tmp_path: Path) -> AsyncIterator[Stage]:
    """Give an empty store of one of two registered apps."""
    async with open_house(cluster, tmp_path) as house:
        yield Stage(house, VaultInstallationStore(house.channels["app/reports"]))


def _installation(**changes: Any) -> Installation:
    fields: dict[str, Any] = {
        "app_id": "A11",
        "enterprise_id": None,
        "team_id": "T11",
        "team_name": "Northwind",
        "user_id": "U11",
        "bot_token": "xoxb-1",
        "bot_id": "B11",
        "bot_user_id": "U99",
        "bot_scopes": ["chat:write", "commands"],
        "user_token": "xoxp-1",
        "user_scopes": "search:read",
        "token_type": "bot",
        "installed_at": T0,
    }
    return Installation(**(fields | changes))


def _bot(**changes: Any) -> Bot:
    fields: dict[str, Any] = {
        "app_id": "A11",
        "enterprise_id": None,
        "team_id": "T11",
        "bot_token": "xoxb-1",
        "bot_id": "B11",
        "bot_user_id": "U99",
        "bot_scopes": ["chat:write"],
        "installed_at": T0,
    }
    return Bot(**(fields | changes))


async def test_everything_that_goes_in_comes_out_but_refresh_tokens(stage: Stage) -> None:
    """Every field of Bolt's record survives; the refresh tokens stay in the vault."""
    saved = _installation(
        enterprise_id="E11",
        enterprise_name="Grid",
        enterprise_url="https://grid.enterprise.slack.com/",
        bot_refresh_token="xoxe-1-bot",
        bot_token_expires_at=1_767_366_245,
        user_refresh_token="xoxe-1-user",
        user_token_expires_at=1_767_366_246,
        incoming_webhook_url="https://hooks.slack.com/services/T11/B11/canary",
        incoming_webhook_channel="#general",
        incoming_webhook_channel_id="C11",
        incoming_webhook_configuration_url="https://northwind.slack.com/services/B11",
        custom_values={"plan": "team", "limits": {"seats": 5}, "note": None},
    )
    await stage.store.async_save(saved)
    found = await stage.found(enterprise_id="E11")
    assert found is not None
    expected = saved.to_dict_for_copying() | {"bot_refresh_token": None, "user_refresh_token": None}
    assert found.to_dict_for_copying() == expected
    bot = await stage.store.async_find_bot(enterprise_id="E11", team_id="T11")
    assert bot is not None
    assert bot.to_dict_for_copying() == (
        saved.to_bot().to_dict_for_copying() | {"bot_refresh_token": None}
    )


async def test_nothing_that_is_secret_lies_open(stage: Stage) -> None:
    """I7: tokens, webhook URLs and custom values are nowhere in the tables."""
    await stage.store.async_save(
        _installation(
            bot_token="canary-bot",
            user_token="canary-user",
            bot_refresh_token="canary-refresh",
            incoming_webhook_url="https://hooks.slack.com/canary-hook",
            custom_values={"key": "canary-custom"},
        )
    )
    rows = [
        row[0]
        for table in ("app_place", "app_record", "app_secret", "audit_event")
        for row in await stage.house.admin.fetch(f"SELECT t::text FROM vault.{table} t")  # noqa: S608 - Our own names.
    ]
    text = "".join(rows)
    assert len(rows) > 8
    assert "canary" not in text
    assert b"canary".hex() not in text


async def test_places_are_exact(stage: Stage) -> None:
    """(none, T) never finds (E, T), nor the reverse; an org-wide record is neither."""
    await stage.store.async_save_bot(_bot(bot_token="xoxb-team"))
    await stage.store.async_save_bot(_bot(enterprise_id="E11", bot_token="xoxb-grid-team"))
    await stage.store.async_save_bot(
        _bot(enterprise_id="E11", team_id=None, is_enterprise_install=True, bot_token="xoxb-org")
    )
    assert await stage.bot_token() == "xoxb-team"
    assert await stage.bot_token(enterprise_id="E11") == "xoxb-grid-team"
    assert (
        await stage.bot_token(enterprise_id="E11", is_enterprise_install=None) == "xoxb-grid-team"
    )
    assert await stage.bot_token(enterprise_id="E11", is_enterprise_install=True) == "xoxb-org"
    assert await stage.bot_token(enterprise_id="E11", team_id=None) == "xoxb-org"
    assert await stage.bot_token(team_id="T22") is None
    assert await stage.bot_token(enterprise_id="E22", is_enterprise_install=True) is None
    assert await stage.bot_token(team_id=None) is None


async def test_an_org_wide_record_saved_with_a_team_is_found(stage: Stage) -> None:
    """The SDK's defect: it is filed under the team and never found again; an empty id is none."""
    org = _installation(enterprise_id="E11", is_enterprise_install=True, bot_token="xoxb-org")
    await stage.store.async_save(org)
    for place in ({"is_enterprise_install": True}, {"team_id": None}, {"team_id": ""}):
        found = await stage.found(enterprise_id="E11", **place)
        assert found is not None
        assert (found.bot_token, found.team_id) == ("xoxb-org", None)
    assert await stage.found(enterprise_id="E11") is None


async def test_the_newest_by_time_wins_not_the_last_written(stage: Stage) -> None:
    """A record that arrives late with an older time stays history; deleting takes all of it."""
    await stage.store.async_save_bot(_bot(bot_token="xoxb-new", installed_at=T0 + 100))
    await stage.store.async_save_bot(_bot(bot_token="xoxb-old", installed_at=T0))
    assert await stage.bot_token() == "xoxb-new"
    await stage.store.async_save_bot(_bot(bot_token="xoxb-again", installed_at=T0 + 100))
    assert await stage.bot_token() == "xoxb-again"
    for _ in range(2):
        await stage.store.async_delete_bot(enterprise_id=None, team_id="T11")
        assert await stage.bot_token() is None


async def test_a_bot_without_a_token_is_passed_over(stage: Stage) -> None:
    """An install of users only does not hide the bot from before."""
    await stage.store.async_save(_installation())
    users_only = _installation(bot_token=None, bot_id=None, bot_user_id=None, installed_at=T0 + 9)
    await stage.store.async_save(users_only)
    assert await stage.bot_token() == "xoxb-1"
    found = await stage.found()
    assert found is not None
    assert (found.installed_at, found.bot_token, found.bot_id) == (T0 + 9, "xoxb-1", "B11")


async def test_several_users_of_one_workspace(stage: Stage) -> None:
    """Each finds the own token with the newest bot; a user who did not install finds none."""
    await stage.store.async_save(_installation())
    await stage.store.async_save(
        _installation(user_id="U22", user_token="xoxp-2", bot_token="xoxb-2", installed_at=T0 + 9)
    )
    first, second = await stage.found(user_id="U11"), await stage.found(user_id="U22")
    assert first is not None
    assert second is not None
    assert (first.user_token, first.bot_token) == ("xoxp-1", "xoxb-2")
    assert (second.user_token, second.bot_token) == ("xoxp-2", "xoxb-2")
    assert await stage.found(user_id="U33") is None
    await stage.store.async_delete_installation(enterprise_id=None, team_id="T11", user_id="U22")
    assert await stage.found(user_id="U22") is None
    remaining = await stage.found()
    assert remaining is not None
    assert remaining.user_id == "U11"


async def test_two_users_at_the_same_instant_are_two(stage: Stage) -> None:
    """The SDK's defect: the second overwrites the first."""
    await stage.store.async_save(_installation())
    await stage.store.async_save(_installation(user_id="U22", user_token="xoxp-2"))
    first, second = await stage.found(user_id="U11"), await stage.found(user_id="U22")
    assert first is not None
    assert second is not None
    assert (first.user_token, second.user_token) == ("xoxp-1", "xoxp-2")


async def test_a_saved_bot_shows_in_the_installation(stage: Stage) -> None:
    """The SDK's defect: after save_bot, find_installation goes on with the stale token."""
    await stage.store.async_save(_installation())
    await stage.store.async_save_bot(_bot(bot_token="xoxb-rotated", installed_at=T0 + 9))
    found = await stage.found()
    assert found is not None
    assert (found.bot_token, found.bot_scopes) == ("xoxb-rotated", ["chat:write"])


async def test_deleting_leaves_the_other_kind(stage: Stage) -> None:
    """delete_bot leaves installations, delete_installation leaves bots, delete_all neither."""
    await stage.store.async_save(_installation())
    await stage.store.async_delete_bot(enterprise_id=None, team_id="T11")
    assert await stage.bot_token() is None
    found = await stage.found()
    assert found is not None
    assert found.bot_token == "xoxb-1"
    await stage.store.async_save_bot(_bot())
    await stage.store.async_delete_installation(enterprise_id=None, team_id="T11")
    assert await stage.found() is None
    assert await stage.bot_token() == "xoxb-1"
    await stage.store.async_delete_all(enterprise_id=None, team_id="T11")
    assert await stage.bot_token() is None
    for table in ("app_place", "app_record", "app_secret", "wrapped_dek"):
        counting = f"SELECT count(*) FROM vault.{table}"  # noqa: S608 - Our own names.
        assert await stage.house.admin.fetchval(counting) == 0
    await stage.store.async_save(_installation())
    assert await stage.bot_token() == "xoxb-1"


async def test_long_tokens_and_many_scopes_are_kept(stage: Stage) -> None:
    """The SDK's defect: columns of 200 and 1,000 characters."""
    scopes = [f"scope{number}:read" for number in range(200)]
    await stage.store.async_save(_installation(bot_token="xoxb-" + "a" * 3000, bot_scopes=scopes))
    found = await stage.found()
    assert found is not None
    assert (len(found.bot_token or ""), list(found.bot_scopes or ())) == (3005, scopes)


async def test_a_copy_that_is_saved_keeps_its_refresh_token(stage: Stage) -> None:
    """What was read has no refresh token; saving it does not lose the stored one."""
    await stage.store.async_save(
        _installation(bot_refresh_token="xoxe-1", user_refresh_token="xoxe-2")
    )
    found = await stage.found()
    assert found is not None
    copy = deepcopy(found)
    copy.installed_at = T0 + 9
    for each in (found, copy):
        await stage.store.async_save(each)
    rows = await stage.house.admin.fetch(
        "SELECT r.installed_at, s.name, s.ref FROM vault.app_secret s"
        " JOIN vault.app_record r USING (record_id) WHERE s.name LIKE '%refresh%'"
    )
    # Of two installations, bot and user; of two bots, the bot's.
    assert len(rows) == 6
    assert len({row["ref"] for row in rows}) == 2
    await stage.store.async_save_bot(_bot(bot_token="xoxb-other", installed_at=T0 + 9))
    names = await stage.house.admin.fetch(
        "SELECT s.name FROM vault.app_secret s JOIN vault.app_record r USING (record_id)"
        " WHERE r.kind = 'bot' AND r.installed_at > to_timestamp($1)",
        T0 + 5,
    )
    assert [row["name"] for row in names] == ["bot_token"]


async def test_every_release_is_on_record_before_it_happens(stage: Stage) -> None:
    """I3: one record for each token of a find; refusals too."""
    await stage.store.async_save(_installation(incoming_webhook_url="https://hooks.slack.com/x"))
    await stage.found()
    await stage.bot_token()
    await stage.bot_token(team_id="T22")
    read = await stage.house.records("token.read")
    assert [row["token_kind"] for row in read] == ["bot", "user", "webhook", "bot"]
    assert {row["actor"] for row in read} == {"app/reports"}
    assert len({row["token_ref"] for row in read}) == 3
    (refused,) = await stage.house.records("token.refused")
    assert refused["outcome"] == "INSTALLATION_NOT_FOUND"
    saved = await stage.house.records("app.saved")
    assert [row["token_kind"] for row in saved] == ["user", "webhook", "bot", "bot"]


async def test_no_record_no_token(stage: Stage) -> None:
    """With the log closed to it the vault opens nothing for an app either."""
    await stage.store.async_save(_installation())
    unwraps = stage.house.unwraps
    await stage.house.admin.execute("REVOKE INSERT ON vault.audit_event FROM interlock_vault")
    with pytest.raises(RemoteError) as refused:
        await stage.found()
    assert (refused.value.kind, stage.house.unwraps) == (Kind.UNAVAILABLE, unwraps)


async def test_apps_see_their_own_client_only(stage: Stage) -> None:
    """The certificate decides; the same team of another app is another place."""
    digest = VaultInstallationStore(stage.house.channels["app/digest"])
    await stage.store.async_save(_installation())
    assert await digest.async_find_bot(enterprise_id=None, team_id="T11") is None
    await digest.async_save_bot(_bot(bot_token="xoxb-digest"))
    await digest.async_delete_all(enterprise_id=None, team_id="T11")
    assert await stage.bot_token() == "xoxb-1"
    clients = await stage.house.admin.fetch("SELECT client_id FROM vault.app_place")
    assert [row["client_id"] for row in clients] == ["2222.3333"]


async def test_a_certificate_without_a_registration_gets_nothing(stage: Stage) -> None:
    """An app that no operator registered is refused, on record."""
    call = stage.house.store("app/stranger").FindBot(pb.FindBotRequest(team_id="T11"), timeout=5)
    assert await refusal(ask(call)) == (Kind.FORBIDDEN, "APP_NOT_REGISTERED")
    (record,) = await stage.house.records("call.refused")
    assert (record["actor"], record["outcome"]) == ("app/stranger", "APP_NOT_REGISTERED")


@pytest.mark.parametrize(
    "tampering",
    [
        """
        UPDATE vault.app_secret a SET sealed = b.sealed FROM vault.app_secret b
        WHERE a.name = 'bot_token' AND b.name = 'user_token'
        """,
        "UPDATE vault.app_record SET installed_at = installed_at + interval '1 day'",
        "UPDATE vault.app_place SET team_id = 'T22'",
        "UPDATE vault.app_place SET client_id = '4444.5555'",
        "UPDATE vault.app_record SET user_id = 'U22' WHERE kind = 'installation'",
        "DELETE FROM vault.wrapped_dek",
    ],
    ids=["name", "time", "team", "client", "user", "key"],
)
async def test_a_moved_secret_does_not_open(stage: Stage, tampering: str) -> None:
    """KM-01, KM-02: what a record's secret is bound to cannot be changed under it."""
    await stage.store.async_save(_installation())
    await stage.house.admin.execute(tampering)
    digest = VaultInstallationStore(stage.house.channels["app/digest"])
    outcomes: list[str] = []
    for store in (stage.store, digest):
        for team in ("T11", "T22"):
            try:
                found = await store.async_find_installation(enterprise_id=None, team_id=team)
            except RemoteError as error:
                outcomes.append(error.reason)
            else:
                assert found is None
    assert outcomes == ["CANNOT_OPEN"]


async def test_a_freeze_stops_apps_too(stage: Stage) -> None:
    """The switch for all stops other apps' releases; saving goes on."""
    await stage.store.async_save(_installation())
    request = pb.SetFreezeRequest(frozen=True, note="leak")
    await ask(stage.house.operator().SetFreeze(request, timeout=5))
    with pytest.raises(RemoteError) as refused:
        await stage.found()
    assert refused.value.reason == "RELEASES_FROZEN"
    await stage.store.async_save(_installation(user_token="xoxp-2"))


async def test_apps_keys_are_rewrapped_too(stage: Stage) -> None:
    """A rotation of the KEK covers what other apps keep."""
    await stage.store.async_save(_installation())
    stage.house.kms.promote("fake-2")
    assert (await stage.house.cli("keys", "rewrap"))[0] == 0
    stage.house.kms.disable("fake-1")
    assert await stage.bot_token() == "xoxb-1"


async def _place_id(stage: Stage) -> str:
    found = await stage.house.admin.fetchval("SELECT installation_id FROM vault.app_place")
    return str(found)


async def test_apps_data_keys_are_rotated_too(stage: Stage) -> None:
    """A new data key seals the whole history of a place; what was sealed before opens no more."""
    await stage.store.async_save(_installation())
    await stage.store.async_save(_installation(user_id="U22", user_token="xoxp-2"))
    admin = stage.house.admin
    before = await admin.fetchval("SELECT dek_id FROM vault.wrapped_dek")
    code, stdout, _ = await stage.house.cli(
        "keys", "rotate-dek", "--installation", await _place_id(stage)
    )
    sealed = await admin.fetchval("SELECT count(*) FROM vault.app_secret")
    assert (code, stdout) == (0, f"{sealed} tokens were sealed under a new data key.\n")
    assert await admin.fetchval("SELECT dek_id FROM vault.wrapped_dek") != before
    assert await stage.bot_token() == "xoxb-1"
    for user, token in (("U11", "xoxp-1"), ("U22", "xoxp-2")):
        found = await stage.found(user_id=user)
        assert found is not None
        assert found.user_token == token
    (record,) = await stage.house.records("dek.rotated")
    assert str(record["installation_id"]) == await _place_id(stage)


async def test_a_rotation_meets_a_save(stage: Stage) -> None:
    """Whichever is first, nothing that was saved is lost, and everything opens."""
    await stage.store.async_save(_installation())
    where = await _place_id(stage)
    request = pb.RotateDataKeyRequest(installation_id=where)
    outcomes: list[str] = []

    async def rotate() -> None:
        try:
            await ask(stage.house.operator().RotateDataKey(request, timeout=10))
        except RemoteError as error:
            outcomes.append(error.reason)

    users = [f"U3{number}" for number in range(6)]
    saves = [stage.store.async_save(_installation(user_id=user, user_token=user)) for user in users]
    await asyncio.gather(*saves, rotate(), rotate())
    assert set(outcomes) <= {"STALE_GENERATION"}
    for user in users:
        found = await stage.found(user_id=user)
        assert found is not None
        assert found.user_token == user


@pytest.mark.parametrize("by", ["id", "name"])
async def test_an_apps_place_is_shredded(stage: Stage, by: str) -> None:
    """Its records and its key go, on record; Interlock's own and other apps' stay."""
    digest = VaultInstallationStore(stage.house.channels["app/digest"])
    await digest.async_save_bot(_bot(bot_token="xoxb-digest"))
    await stage.store.async_save(_installation())
    query = "SELECT installation_id FROM vault.app_place WHERE client_id = '2222.3333'"
    where = str(await stage.house.admin.fetchval(query))
    named = {"id": ("--installation", where), "name": ("--team", "T11", "--client", "2222.3333")}
    shred = ("keys", "shred", *named[by])
    code, stdout, _ = await stage.house.cli(*shred, "--dry-run")
    assert (code, stdout) == (0, f"T11 would be shredded ({where}).\n")
    assert await stage.bot_token() == "xoxb-1"
    assert (await stage.house.cli(*shred, "--yes"))[0] == 0
    assert await stage.store.async_find_bot(enterprise_id=None, team_id="T11") is None
    found = await digest.async_find_bot(enterprise_id=None, team_id="T11")
    assert found is not None
    assert found.bot_token == "xoxb-digest"
    deks = "SELECT count(*) FROM vault.wrapped_dek WHERE installation_id = $1"
    assert await stage.house.admin.fetchval(deks, UUID(where)) == 0
    (record,) = await stage.house.records("installation.purged")
    assert str(record["installation_id"]) == where
    code, _, stderr = await stage.house.cli(*shred, "--yes")
    assert (code, "INSTALLATION_NOT_FOUND" in stderr) == (2, True)


async def test_what_an_app_deleted_stays_gone_after_a_restore(stage: Stage) -> None:
    """A place that was emptied is a tombstone in the log; a backup of before is buried by it."""
    await stage.store.async_save(_installation())
    where = await _place_id(stage)
    files = [stage.house.folder / name for name in ("sealed", "keys")]
    options = [text for path in files for text in (f"--{path.name}", str(path))]
    assert (await stage.house.cli("backup", *options))[0] == 0
    await stage.store.async_delete_all(enterprise_id=None, team_id="T11")
    (record,) = await stage.house.records("installation.purged")
    assert str(record["installation_id"]) == where
    assert (await stage.house.cli("restore", *options, "--yes"))[0] == 0
    assert await _place_id(stage) == where
    request = pb.BuryInstallationsRequest(installation_ids=[where])
    answer = await ask(stage.house.operator().BuryInstallations(request, timeout=10))
    assert answer.buried == 1
    assert await stage.store.async_find_bot(enterprise_id=None, team_id="T11") is None
    assert await stage.house.admin.fetchval("SELECT count(*) FROM vault.wrapped_dek") == 0


async def test_saves_of_many_places_share_a_transaction(stage: Stage) -> None:
    """Each place gets its own token, and the records of the log form one sound chain."""
    teams = [f"T{number:03d}" for number in range(40)]
    saves = [_bot(team_id=team, bot_token=f"xoxb-{team}") for team in teams]
    # The first time makes the places; the second one finds them.
    for _ in range(2):
        await asyncio.gather(*(stage.store.async_save_bot(bot) for bot in saves))
    assert [await stage.bot_token(team_id=team) for team in teams] == [
        f"xoxb-{team}" for team in teams
    ]
    rows = await stage.house.admin.fetch(
        "SELECT xmin::text AS transaction, count(*) FROM vault.audit_event"
        " WHERE action = 'app.saved' GROUP BY xmin"
    )
    assert sum(row["count"] for row in rows) == 80
    assert max(row["count"] for row in rows) > 1


_MANY = """
    INSERT INTO vault.installation (installation_id, client_id, app_id, enterprise_id, team_id,
        tenant_id, state, generation, name, bot_user_id, bot_scopes, installed_at)
    SELECT gen_random_uuid(), '1111.2222', 'A0INTERLOCK', '', 'T0F' || n, 'other', 'active', 1,
        'x', 'U0BOT', '{}', now() FROM generate_series(1, 3000) AS n;
    INSERT INTO vault.app_place (installation_id, client_id, enterprise_id, team_id)
    SELECT gen_random_uuid(), '2222.3333', '', 'T0F' || n FROM generate_series(1, 3000) AS n;
    INSERT INTO vault.wrapped_dek (dek_id, installation_id, kek_version, wrapped)
    SELECT gen_random_uuid(), installation_id, 'fake-1', decode(repeat('ab', 60), 'hex')
    FROM (SELECT installation_id FROM vault.installation WHERE tenant_id = 'other'
          UNION ALL SELECT installation_id FROM vault.app_place WHERE team_id LIKE 'T0F%') AS x;
    INSERT INTO vault.sealed_token
    SELECT d.installation_id, 'bot', 'access', '', 1, d.dek_id,
        decode('01' || repeat('cd', 120), 'hex'), repeat('a', 32)
    FROM vault.wrapped_dek d JOIN vault.installation i USING (installation_id)
    WHERE i.tenant_id = 'other';
    INSERT INTO vault.app_record (record_id, installation_id, kind, user_id, installed_at, details)
    SELECT gen_random_uuid(), installation_id, 'bot', '', now(), '{}' FROM vault.app_place
    WHERE team_id LIKE 'T0F%';
    INSERT INTO vault.app_secret (record_id, installation_id, name, dek_id, sealed, ref)
    SELECT r.record_id, r.installation_id, 'bot_token', gen_random_uuid(),
        decode('01' || repeat('cd', 120), 'hex'), repeat('b', 32)
    FROM vault.app_record r JOIN vault.app_place p USING (installation_id)
    WHERE p.team_id LIKE 'T0F%';
    ANALYZE;
"""
_SCANS = """
    SELECT relname, seq_scan, coalesce(idx_scan, 0) AS idx_scan FROM pg_stat_user_tables
    WHERE relname IN ('installation', 'sealed_token', 'wrapped_dek', 'app_place', 'app_record',
        'app_secret')
"""


async def test_what_is_read_is_found_by_its_key(stage: Stage) -> None:
    """Among thousands of installations, reads, finds and saves walk through no table.

    A chore may, now and then: far less often than what is counted here.
    """
    house, rounds = stage.house, 20
    await house.admin.execute(_MANY)
    await house.admin.execute("SELECT pg_stat_force_next_flush()")
    before = {row["relname"]: row for row in await house.admin.fetch(_SCANS)}
    await house.install("xoxb-northwind")
    for _ in range(rounds):
        await stage.store.async_save(_installation())
        assert (await house.read(house.slack_grant())).bot_token == "xoxb-northwind"
        assert await stage.bot_token() == "xoxb-1"
        assert await stage.found(user_id="U11") is not None
    # Sessions tell what they did once they are idle for a second, or at their end.
    await house.admin.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await house.admin.execute("SELECT pg_stat_clear_snapshot()")
    after = {row["relname"]: row for row in await house.admin.fetch(_SCANS)}
    assert set(after) == {
        "installation",
        "sealed_token",
        "wrapped_dek",
        "app_place",
        "app_record",
        "app_secret",
    }
    for name, row in after.items():
        assert row["idx_scan"] - before[name]["idx_scan"] >= rounds, name
        assert row["seq_scan"] - before[name]["seq_scan"] < rounds, name


async def test_concurrent_saves_of_a_new_place_agree(stage: Stage) -> None:
    """Users who install at once share one place and one key, and none is lost."""
    users = [f"U1{number}" for number in range(8)]
    await asyncio.gather(
        *(stage.store.async_save(_installation(user_id=user, user_token=user)) for user in users)
    )
    for user in users:
        found = await stage.found(user_id=user)
        assert found is not None
        assert found.user_token == user
    assert await stage.house.admin.fetchval("SELECT count(*) FROM vault.wrapped_dek") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.ClearField("installed_at"),
        lambda record: setattr(record, "user_id", "mia"),
        lambda record: record.ClearField("team_id"),
    ],
    ids=["time", "user", "place"],
)
async def test_a_record_of_no_use_is_refused(
    stage: Stage, change: Callable[[pb.InstallationRecord], None]
) -> None:
    """A record that could never be found again is not taken."""
    record = pb.InstallationRecord(team_id="T11", user_id="U11")
    record.installed_at.GetCurrentTime()
    change(record)
    request = pb.SaveInstallationRequest(installation=record)
    assert (await refusal(ask(stage.house.store().SaveInstallation(request, timeout=5))))[0] is (
        Kind.INVALID
    )


async def test_the_package_opens_its_own_channel(stage: Stage) -> None:
    """As the package's README shows it."""
    tls = stage.house.ca.issue("app/reports", stage.house.tls_dir)
    async with open_installation_store(f"127.0.0.1:{stage.house.port}", tls) as store:
        await store.async_save(_installation())
        assert store.logger.name == "interlock_client.installation_store"
    assert await stage.bot_token() == "xoxb-1"


@pytest.mark.parametrize(
    "document",
    [
        "{}",
        "[]",
        '{"apps": {"reports": 5}}',
        '{"apps": {"reports": ""}}',
        '{"apps": {"app/reports": "2222.3333"}}',
        '{"apps": {"reports": "2222.3333", "digest": "2222.3333"}}',
        f'{{"apps": {{"reports": "{CLIENT_ID}"}}}}',
    ],
)
def test_a_registration_that_would_mix_apps_is_refused(document: str) -> None:
    """No app is given Interlock's own client, or another app's."""
    with pytest.raises(ConfigError):
        RegisteredApps.from_json(Secret(document), own=ClientId(CLIENT_ID))


def test_only_an_apps_name_has_a_client() -> None:
    """A service's name that reads like an app's has none."""
    apps = RegisteredApps({"reports": ClientId("2222.3333")})
    assert apps.client_of("app/reports") == "2222.3333"
    for caller in ("reports", "app/digest", "operator", ""):
        with pytest.raises(AppNotRegistered):
            apps.client_of(caller)
