"""What happens in Slack, as the Events API tells an app of it.

An event has one envelope, which names one installation that may know of it;
`apps.event.authorizations.list` tells of the others.

Source: docs.slack.dev/apis/events-api; for Slack Connect and Enterprise Grid
docs.slack.dev/enterprise/developing-for-enterprise-orgs. The documented samples
of `app_uninstalled` and `tokens_revoked` carry no authorizations, so neither do these.
"""

import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence

from interlock_sandbox.config import SlackApp
from interlock_sandbox.slack.model import JSON, Channel, Message, Receiver
from interlock_sandbox.slack.outbound import Answer, Delivery, Outbound
from interlock_sandbox.slack.tokens import BOT, Token
from interlock_sandbox.slack.world import World, new_id

KEPT_CONTEXTS = 2_000
UNINSTALL_EVENTS = ("app_uninstalled", "tokens_revoked")
SUBSCRIPTIONS = frozenset(
    {
        "agent_session_stopped",
        "app_home_opened",
        "app_mention",
        "app_uninstalled",
        "assistant_thread_started",
        "member_joined_channel",
        "message.channels",
        "message.groups",
        "message.im",
        "message.mpim",
        "tokens_revoked",
    }
)
_CHANNEL_TYPES = {"channels": "channel", "groups": "group", "im": "im", "mpim": "mpim"}
_MENTION = re.compile(r"<@([A-Z0-9]+)(?:\|[^>]*)?>")


class Events:
    """Tell the app what happens.

    Args:
        stamp: The clock by which events are dated.
    """

    def __init__(
        self, app: SlackApp, world: World, outbound: Outbound, stamp: Callable[[], float]
    ) -> None:
        self._app = app
        self._world = world
        self._outbound = outbound
        self._stamp = stamp
        self._contexts: OrderedDict[str, list[JSON]] = OrderedDict()

    # Messages.

    def message_posted(self, message: Message) -> None:
        """Tell of a message, once as a mention and once as a message, where subscribed."""
        self._tell_of_mention(message)
        self._tell_of_message(message, _content_of(message))

    def message_edited(self, message: Message, before: JSON) -> None:
        """Tell of a message that its author changed."""
        if not message.bot_id:
            self._tell_of_mention(message)
        changed = {
            "subtype": "message_changed",
            "message": message.show(),
            "previous_message": before,
            "hidden": True,
        }
        self._tell_of_message(message, changed)

    def message_deleted(self, message: Message) -> None:
        """Tell of a message that is gone."""
        gone = {
            "subtype": "message_deleted",
            "previous_message": message.show(),
            "deleted_ts": message.ts,
            "hidden": True,
        }
        self._tell_of_message(message, gone)

    def _tell_of_mention(self, message: Message) -> None:
        channel = self._world.channels[message.channel]
        if message.bot_id or channel.is_im:
            return
        named = _MENTION.findall(message.text)
        asked = [
            each
            for each in self._receivers(message, "app_mentions:read")
            if each.installation.bot_user in named
        ]
        content = _content_of(message) | {"type": "app_mention"}
        self._send(asked, "app_mention", self._placed(message, asked, content), message)

    def _tell_of_message(self, message: Message, content: JSON) -> None:
        channel = self._world.channels[message.channel]
        receivers = self._receivers(message, f"{channel.scope_family}:history")
        content = content | {
            "type": "message",
            "channel_type": _CHANNEL_TYPES[channel.scope_family],
        }
        subscription = f"message.{channel.scope_family}"
        self._send(receivers, subscription, self._placed(message, receivers, content), message)

    def _receivers(self, message: Message, scope: str) -> list[Receiver]:
        """List the installations that may know of a message, its author's first."""
        seen = self._world.receivers_of(self._world.channels[message.channel], message.team)
        return [each for each in seen if scope in self._world.tokens.scopes(each.holder)]

    def _placed(self, message: Message, receivers: Sequence[Receiver], content: JSON) -> JSON:
        """Add to an event where it happened, and to whom its author belongs."""
        placed = content | {
            "channel": message.channel,
            "event_ts": message.edited_ts or message.ts,
        }
        organization = self._world.organization(message.team)
        if receivers and self._world.organization(receivers[0].team) != organization:
            author = self._world.find_user(receivers[0].team, message.user)
            name = author.real_name if author else message.user
            placed |= {
                "user_team": organization,
                "source_team": message.team,
                "user_profile": {"real_name": name, "team": message.team},
            }
        return placed

    # Installations.

    def token_revoked(self, token: Token) -> None:
        """Revoke one token; without rotation the app is told, and may be gone."""
        left = self._world.revoke(token)
        if token.expires_at is not None:
            # Rotated tokens end one by one; the installation stays, and no event follows.
            return
        self._send_uninstall_event("tokens_revoked", token.holder, [token], authorized=False)
        if left:
            self._send_uninstall_event("app_uninstalled", token.holder, [], authorized=False)

    def user_revoked(self, tokens: Sequence[Token]) -> list[Delivery]:
        """Revoke a person's tokens, as that person does in Slack's settings, and tell the app."""
        for token in tokens:
            self._world.revoke(token)
        holder = tokens[0].holder
        sent = self._send_uninstall_event("tokens_revoked", holder, tokens, authorized=False)
        return [sent] if sent else []

    def app_uninstalled(
        self,
        holder: str,
        order: Sequence[str] = UNINSTALL_EVENTS,
        *,
        authorized: bool = False,
    ) -> list[Delivery]:
        """Remove the app from a Workspace or Enterprise and tell it.

        Args:
            holder: The Workspace or Enterprise.
            order: The events to send; Slack promises no order.
            authorized: Whether the events name their installation, which
                Slack's samples do not.
        """
        ended = self._world.uninstall(holder)
        sent = [
            self._send_uninstall_event(each, holder, ended, authorized=authorized) for each in order
        ]
        return [each for each in sent if each]

    def _send_uninstall_event(
        self, kind: str, holder: str, ended: Sequence[Token], *, authorized: bool
    ) -> Delivery | None:
        if kind not in self._app.event_subscriptions:
            return None
        event: JSON = {"type": kind, "event_ts": self._world.next_ts()}
        if kind == "tokens_revoked":
            event["tokens"] = {
                "oauth": [each.user for each in ended if each.kind != BOT],
                "bot": [each.user for each in ended if each.kind == BOT],
            }
        enterprise = self._world.enterprise_of(holder)
        envelope = self._outer(event) | {"team_id": holder}
        if enterprise:
            envelope["enterprise_id"] = enterprise.id
        if authorized:
            is_org_wide = holder in self._world.enterprises
            installation = self._world.home(holder).installation
            authorization = {
                "enterprise_id": enterprise.id if enterprise else None,
                "team_id": holder,
                "user_id": installation.bot_user if installation else None,
                "is_bot": True,
                "is_enterprise_install": is_org_wide,
            }
            envelope["authorizations"] = [authorization]
        return self.send(envelope)

    def member_joined(self, channel: Channel, user: str, team: str) -> None:
        """Tell that somebody, perhaps the app's bot itself, joined a channel."""
        event = {
            "type": "member_joined_channel",
            "user": user,
            "channel": channel.id,
            "channel_type": "G" if channel.is_private else "C",
            "team": team,
            "event_ts": self._world.next_ts(),
        }
        self._tell(team, "member_joined_channel", event)

    # The app's own places.

    def stream_stopped(self, user: str, message: Message) -> None:
        """Tell that a reader stopped an answer."""
        event = {
            "type": "agent_session_stopped",
            "channel": message.channel,
            "thread_ts": message.thread,
            "streaming_message_ts": [message.ts],
            "user": user,
            "event_ts": self._world.next_ts(),
        }
        self._tell(message.team, "agent_session_stopped", event)

    def home_opened(self, team: str, user: str, channel: str, view: JSON | None) -> None:
        """Tell that somebody opened the app's Home tab."""
        event = {
            "type": "app_home_opened",
            "user": user,
            "channel": channel,
            "tab": "home",
            "event_ts": self._world.next_ts(),
        }
        self._tell(team, "app_home_opened", event | ({"view": view} if view else {}))

    def assistant_started(self, team: str, user: str, message: Message, context: str) -> None:
        """Tell that somebody began to talk to the assistant, with `context` in view."""
        enterprise = self._world.enterprise_of(team)
        looked_at = {
            "channel_id": context,
            "team_id": team,
            "enterprise_id": enterprise.id if enterprise else None,
        }
        event = {
            "type": "assistant_thread_started",
            "assistant_thread": {
                "user_id": user,
                "context": looked_at if context else {},
                "channel_id": message.channel,
                "thread_ts": message.ts,
            },
            "event_ts": self._world.next_ts(),
        }
        self._tell(team, "assistant_thread_started", event)

    def _tell(self, team: str, subscription: str, event: JSON) -> None:
        receiver = self._world.receiver_in(team)
        if receiver and subscription in self._app.event_subscriptions:
            self.send(self.envelope([receiver], event, team))

    # Envelopes.

    def _send(
        self, receivers: list[Receiver], subscription: str, event: JSON, message: Message
    ) -> None:
        if receivers and subscription in self._app.event_subscriptions:
            channel = self._world.channels[message.channel]
            envelope = self.envelope(receivers, event, message.team)
            self.send(envelope | {"is_ext_shared_channel": self.is_external(channel)})

    def is_external(self, channel: Channel) -> bool:
        """Say whether a channel is shared with another organization, by Slack Connect."""
        return len({self._world.organization(each) for each in channel.teams}) > 1

    def envelope(self, receivers: Sequence[Receiver], event: JSON, team: str) -> JSON:
        """Wrap an event for the first of its receivers; the others are kept for who asks.

        Args:
            receivers: The installations that may know of it.
            event: What happened.
            team: Where it happened, which may be another company's workspace.
        """
        authorizations = [each.authorization() for each in receivers]
        context = f"4-{secrets.token_urlsafe(24)}"
        self._contexts[context] = authorizations
        if len(self._contexts) > KEPT_CONTEXTS:
            self._contexts.popitem(last=False)
        enterprise = self._world.enterprise_of(team)
        first = authorizations[0] if authorizations else {}
        return {
            **self._outer(event),
            "team_id": team,
            **({"enterprise_id": enterprise.id} if enterprise else {}),
            "context_team_id": first.get("team_id", team),
            "context_enterprise_id": first.get("enterprise_id"),
            "authorizations": authorizations[:1],
            "is_ext_shared_channel": False,
            "event_context": context,
        }

    def envelope_for(self, team: str, event: JSON) -> JSON:
        """Wrap any event for the app in a workspace, be it installed or not."""
        receiver = self._world.receiver_in(team)
        if receiver:
            return self.envelope([receiver], event, team)
        installation = self._world.workspaces[team].installation
        authorization = {
            "enterprise_id": self._world.workspaces[team].enterprise,
            "team_id": team,
            "user_id": installation.bot_user if installation else None,
            "is_bot": True,
            "is_enterprise_install": False,
        }
        return self.envelope([], event, team) | {"authorizations": [authorization]}

    def _outer(self, event: JSON) -> JSON:
        return {
            "token": self._world.verification_token,
            "api_app_id": self._app.id,
            "event": event,
            "type": "event_callback",
            "event_id": new_id("Ev"),
            "event_time": int(self._stamp()),
        }

    def authorizations_of(self, context: str) -> list[JSON] | None:
        """Return all installations that may know of an event; None for an unknown one."""
        return self._contexts.get(context)

    def send(self, envelope: JSON) -> Delivery:
        """Deliver an event in the background, with Slack's retries."""
        event = envelope.get("event") or {}
        return self._outbound.send_event(
            event.get("type", ""), envelope.get("event_id"), json.dumps(envelope).encode()
        )

    async def verify_url(self) -> Answer:
        """Ask the app to prove that the events URL is its own."""
        challenge = secrets.token_urlsafe(32)
        body = {
            "token": self._world.verification_token,
            "challenge": challenge,
            "type": "url_verification",
        }
        answer = await self._outbound.send_raw(
            "events", "url_verification", json.dumps(body).encode(), "application/json", {}
        )
        proved = answer.accepted and challenge.encode() in answer.body
        return answer if proved or not answer.accepted else Answer(answer.status, "wrong_challenge")


def _content_of(message: Message) -> JSON:
    shown = message.show()
    if not message.bot_id:
        shown |= {"client_msg_id": secrets.token_hex(16)}
    return shown | {"blocks": message.blocks or [_rich_text(message.text)]}


def _rich_text(text: str) -> JSON:
    """Return the block that Slack's own composer makes of a typed message."""
    elements: list[JSON] = []
    position = 0
    for mention in _MENTION.finditer(text):
        if before := text[position : mention.start()]:
            elements.append({"type": "text", "text": before})
        elements.append({"type": "user", "user_id": mention[1]})
        position = mention.end()
    if rest := text[position:]:
        elements.append({"type": "text", "text": rest})
    section = {"type": "rich_text_section", "elements": elements}
    return {"type": "rich_text", "block_id": secrets.token_hex(3), "elements": [section]}
