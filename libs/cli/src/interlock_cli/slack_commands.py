"""`interlock slack`: what Slack has to be told about the app."""

import json
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from interlock_cli.operator_client import EXIT_USAGE, fail
from interlock_gateway.domain.slack_request import SUBSCRIPTIONS
from interlock_gateway.edge import paths
from interlock_token_vault.config import BOT_SCOPES

app = typer.Typer(help="Set the app up at Slack.", no_args_is_help=True)

_LOOPBACK = frozenset({"127.0.0.1", "localhost"})
# Slack's own limits of both names are 35 and 80 characters.
_MAX_NAME_CHARS = 35


@app.callback()
def _slack() -> None:
    """Keep the command named even while there is only one."""


@app.command()
def manifest(
    *,
    public_url: Annotated[
        str,
        typer.Option(envvar="INTERLOCK_PUBLIC_URL", help="Where Slack reaches edge; https."),
    ],
    browser_url: Annotated[
        str, typer.Option(help="Where browsers reach edge, if not there: as edge's PUBLIC_URL.")
    ] = "",
    name: Annotated[str, typer.Option(help="What people mention in Slack.")] = "Interlock",
    command: Annotated[str, typer.Option(help="The slash command.")] = "/interlock",
    scopes: Annotated[
        str, typer.Option(help="As the vault's INTERLOCK_SLACK_BOT_SCOPES; comma-separated.")
    ] = ",".join(BOT_SCOPES),
    user_scopes: Annotated[
        str, typer.Option(help="As the vault's INTERLOCK_SLACK_USER_SCOPES; comma-separated.")
    ] = "",
    rotation: Annotated[
        bool, typer.Option(help="Let tokens end after 12 hours. Slack does not let this be undone.")
    ] = True,
) -> None:
    """Print the manifest of the Slack app, to be pasted at api.slack.com/apps."""
    if not 0 < len(name) <= _MAX_NAME_CHARS:
        fail(f"--name must have 1 to {_MAX_NAME_CHARS} characters", EXIT_USAGE)
    document = make_manifest(
        slack_url=_origin(public_url, "--public-url", may_be_plain=False),
        browser_url=_origin(browser_url or public_url, "--browser-url", may_be_plain=True),
        name=name,
        command=command,
        scopes=[scope for scope in scopes.split(",") if scope],
        user_scopes=[scope for scope in user_scopes.split(",") if scope],
        is_rotating=rotation,
    )
    typer.echo(json.dumps(document, indent=2))


def make_manifest(
    *,
    slack_url: str,
    browser_url: str,
    name: str,
    command: str,
    scopes: list[str],
    user_scopes: list[str],
    is_rotating: bool,
) -> dict[str, Any]:
    """Describe the app as Slack's manifests do.

    Scopes are the vault's, events those that edge takes, addresses its routes.
    Org-wide installs are on. There are no shortcuts, because nothing answers one.

    Args:
        slack_url: Our origin, as Slack reaches it.
        browser_url: Our origin, as browsers reach it.
        name: Of the app and its bot.
        command: The slash command; `COMMAND-link` links an account at once.
        scopes: Of the bot.
        user_scopes: Of the token of the person who installs; none by default.
        is_rotating: Whether tokens end after 12 hours.

    Source:
        docs.slack.dev/reference/app-manifest
    """
    return {
        "_metadata": {"major_version": 2, "minor_version": 1},
        "display_information": {
            "name": name,
            "description": "Ask your organization's agents, as yourself.",
        },
        "features": {
            "app_home": {
                "home_tab_enabled": False,
                "messages_tab_enabled": True,
                "messages_tab_read_only_enabled": False,
            },
            "bot_user": {"display_name": name, "always_online": True},
            "shortcuts": [],
            "slash_commands": [
                {
                    "command": command,
                    "url": slack_url + paths.COMMANDS,
                    "description": "Link, unlink, and see which account is yours",
                    "usage_hint": "link | status | unlink",
                    "should_escape": True,
                },
                {
                    "command": f"{command}-link",
                    "url": slack_url + paths.LINK_CREATE,
                    "description": "Link your Slack user to your account",
                    "should_escape": True,
                },
            ],
        },
        "oauth_config": {
            "redirect_urls": [browser_url + paths.INSTALL_CALLBACK],
            "scopes": {"bot": scopes} | ({"user": user_scopes} if user_scopes else {}),
        },
        "settings": {
            "event_subscriptions": {
                "request_url": slack_url + paths.EVENTS,
                "bot_events": list(SUBSCRIPTIONS),
            },
            "interactivity": {"is_enabled": True, "request_url": slack_url + paths.INTERACTIONS},
            "org_deploy_enabled": True,
            "socket_mode_enabled": False,
            "token_rotation_enabled": is_rotating,
        },
    }


def _origin(url: str, option: str, *, may_be_plain: bool) -> str:
    """Take an origin out of an option; ends the command for anything else."""
    parts = urlsplit(url)
    is_local = may_be_plain and parts.hostname in _LOOPBACK
    is_right_scheme = parts.scheme == "https" or (is_local and parts.scheme == "http")
    if not is_right_scheme or not parts.netloc or parts.username or parts.password:
        fail(f"{option} must be an https origin, such as https://interlock.example.com", EXIT_USAGE)
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        fail(f"{option} must have no path", EXIT_USAGE)
    return f"{parts.scheme}://{parts.netloc}"
