"""Render what agents say, and what we say about it, for Slack. Pure functions.

What a model writes is not to be trusted: it may quote a document that wants to
mention everyone, or to hide where a link leads. What we say ourselves is ours.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from interlock_chassis.secret import Secret
from interlock_gateway.worker.slack import Block, Note

# Slack takes 12,000 characters of Markdown in a message; a fence may have to be closed.
PAGE_CHARS = 11_500
MAX_SOURCES = 10
MAX_CHOICES_PER_GROUP = 100
MAX_CHOICE_GROUPS = 100
_OPTION_CHARS = 75
_CONTEXT_CHARS = 300
_MAX_URL_CHARS = 2000

# Invisible, and not a space: it parts what would be a mention without showing a gap.
_JOINER: Final = "\u2060"
_UNSAFE = re.compile(
    r"""
      <(?=[@\#!])                                    # <@U…>, <#C…>, <!here>, <!subteam^S…>
    | <(?=(?:https?|mailto|slack|tel):)              # <https://a.example|label>
    | &(?=(?:lt|\#0*60|\#x0*3c);[@\#!])             # the same, spelt as an entity
    | @(?=(?:channel|everyone|here)\b)               # announcements spelt out
    | \](?=[(:])                                     # the joint of a link, image or definition
    """,
    re.VERBOSE | re.IGNORECASE,
)
# What may turn out to be unsafe once the next piece is there.
_UNDECIDED = re.compile(
    r"""
      (?: \]
        | <(?:h|ht|htt|http|https|m|ma|mai|mail|mailt|mailto|s|sl|sla|slac|slack|t|te|tel)?
        | &(?:\#?[a-z0-9]{0,8};?)?
        | @(?:c|ch|cha|chan|chann|channe|channel|e|ev|eve|ever|every|everyo|everyon|everyone
             |h|he|her|here)?
      )\Z
    """,
    re.VERBOSE | re.IGNORECASE,
)
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})([^\n`]*)$", re.MULTILINE)


class Neutraliser:
    """Make a stream of Markdown harmless, however it is cut into pieces.

    Afterwards nothing in it mentions anybody, and no link hides its target: a
    label is followed by its address, images are addresses, too. Control
    characters and those that turn the direction of writing are removed.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Take the next piece and return what is safe by now."""
        whole = self._held + _without_controls(text)
        undecided = _UNDECIDED.search(whole)
        cut = undecided.start() if undecided else len(whole)
        self._held = whole[cut:]
        return _defuse(whole, cut)

    def finish(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return _defuse(held, len(held))


def _defuse(whole: str, end: int) -> str:
    """Defuse what starts before `end`, judging it by what follows, too."""
    safe: list[str] = []
    done = 0
    for match in _UNSAFE.finditer(whole, 0):
        if match.start() >= end:
            break
        safe += whole[done : match.end()], " " if match[0] == "]" else _JOINER
        done = match.end()
    return "".join(safe) + whole[done:end]


def _without_controls(text: str) -> str:
    return "".join(character for character in text if _is_shown(character))


def _is_shown(character: str) -> bool:
    # Joiners belong to many scripts and to emoji; other format characters turn the
    # direction of writing or hide text.
    if character in "\n\t\u200c\u200d":
        return True
    return unicodedata.category(character) not in {"Cc", "Cf", "Cs"}


def neutralise(text: str) -> str:
    """Make a whole Markdown text harmless; see Neutraliser."""
    neutraliser = Neutraliser()
    return neutraliser.feed(text) + neutraliser.finish()


def escape(text: str, limit: int) -> str:
    """Make foreign text harmless in Slack's own mark-up, cut to a length."""
    cut = shorten(" ".join(_without_controls(text).split()), limit)
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def shorten(text: str, limit: int) -> str:
    """Cut a text to a number of characters, with an ellipsis where it was longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def split_page(text: str, room: int) -> tuple[str, str]:
    """Cut a text where a page ends: after a paragraph, else a line, else a word.

    Args:
        text: The text.
        room: How many characters the page still takes; at least 1.
    """
    if len(text) <= room:
        return text, ""
    for separator in ("\n\n", "\n", " "):
        at = text.rfind(separator, room // 2, room - len(separator) + 1)
        if at >= 0:
            return text[: at + len(separator)], text[at + len(separator) :]
    return text[:room], text[room:]


def open_fence(text: str) -> tuple[str, str]:
    """Return the line that opens the code block left open at the end, and the one that ends it.

    Both empty when no code block is open.
    """
    opening, marker = "", ""
    for fence in _FENCE.finditer(text):
        if not marker:
            opening, marker = fence[0].strip(), fence[1]
        elif fence[1].startswith(marker) and not fence[2].strip():
            opening, marker = "", ""
    return opening, marker


@dataclass(frozen=True, slots=True)
class Source:
    """A source of an answer; untrusted."""

    title: str
    url: str


def footer(agent: str, sources: Sequence[Source]) -> list[Block]:
    """Name the agent, and at most ten sources with their hosts in plain sight."""
    blocks: list[Block] = [_context(f"Answered by {shorten(_one_line(agent), _CONTEXT_CHARS)}")]
    links = [link for source in sources if (link := _link(source))][:MAX_SOURCES]
    if links:
        elements = [{"type": "mrkdwn", "text": link} for link in links]
        blocks.append({"type": "context", "elements": elements})
    return blocks


def _link(source: Source) -> str:
    try:
        parts = urlsplit(source.url)
        host = parts.hostname or ""
    except ValueError:
        return ""
    odd = any(character in source.url for character in '<>|\\"') or not source.url.isprintable()
    if parts.scheme not in {"http", "https"} or not host or odd or " " in source.url:
        return ""
    if len(source.url) > _MAX_URL_CHARS or "@" in parts.netloc:
        return ""
    url = source.url.replace("&", "&amp;")
    title = escape(source.title, _OPTION_CHARS).replace("|", "/")
    label = f"{title} ({host})" if title and title != host else host
    return f"<{url}|{label}>"


def _context(text: str) -> Block:
    element = {"type": "plain_text", "text": text, "emoji": False}
    return {"type": "context", "elements": [element]}


def _one_line(text: str) -> str:
    return " ".join(_without_controls(text).split()) or "an agent"


def page_note(text: str, blocks: Sequence[Block], metadata: Mapping[str, Any]) -> Note:
    """Render one page of an answer as a whole message."""
    summary = escape(text, _CONTEXT_CHARS) or "Answer"
    body = [{"type": "markdown", "text": text}] if text.strip() else []
    return Note(summary, [*body, *blocks], metadata)


def plain_note(text: str) -> Note:
    """Say one thing of our own."""
    section = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
    return Note(text, [section])


# Linking.

UNLINK_ACTION = "unlink_self"
LINK_ACTION = "link_account"
PICK_ACTION = "pick_agent"
_PICK_BLOCK = "pick:"


def link_note(link: Secret[str]) -> Note:
    """Ask a Slack user to link an account, once."""
    text = (
        "To answer as you, I need to know your account. Link it once; your latest question is "
        "answered right after. The link works for an hour, and only for you."
    )
    button = {
        "type": "button",
        "action_id": LINK_ACTION,
        "style": "primary",
        "text": {"type": "plain_text", "text": "Link your account"},
        "url": link,
    }
    section = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
    return Note(text, [section, {"type": "actions", "elements": [button]}])


def linked_note(user_name: str) -> Note:
    """Tell a Slack user which account was linked, and how to undo it."""
    name = escape(user_name, _CONTEXT_CHARS) or "your account"
    text = f"Your Slack user is now linked to *{name}*. Agents you ask here act as this account."
    button = {
        "type": "button",
        "action_id": UNLINK_ACTION,
        "style": "danger",
        "text": {"type": "plain_text", "text": "Not me: unlink"},
    }
    section = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
    return Note(text, [section, {"type": "actions", "elements": [button]}])


def unlinked_note(*, was_linked: bool) -> Note:
    """Confirm that a Slack user is no longer linked."""
    if was_linked:
        return plain_note("Your account is unlinked. Ask me anything to link one again.")
    return plain_note("No account was linked.")


# Picking an agent.


@dataclass(frozen=True, slots=True)
class Choice:
    """An agent that may be picked; names are untrusted."""

    project_id: str
    agent_id: str
    agent_name: str


@dataclass(frozen=True, slots=True)
class Project:
    """A project with its agents, as a picker shows them; the name is untrusted."""

    name: str
    agents: Sequence[Choice]


def choices_of(projects: Sequence[Project]) -> list[Choice]:
    """List the agents that a picker can show, in its order."""
    groups = [project for project in projects if project.agents][:MAX_CHOICE_GROUPS]
    return [agent for project in groups for agent in project.agents[:MAX_CHOICES_PER_GROUP]]


def picker_note(projects: Sequence[Project], question_key: str) -> Note:
    """Ask which agent shall answer; agents are grouped by project.

    The options' values are positions in `choices_of(projects)`: ids may be
    longer than Slack allows values to be.
    """
    number = 0
    groups = []
    for project in [each for each in projects if each.agents][:MAX_CHOICE_GROUPS]:
        options = []
        for agent in project.agents[:MAX_CHOICES_PER_GROUP]:
            options.append({"text": _option_text(agent.agent_name), "value": str(number)})
            number += 1
        groups.append({"label": _option_text(project.name), "options": options})
    select = {
        "type": "static_select",
        "action_id": PICK_ACTION,
        "placeholder": {"type": "plain_text", "text": "Choose an agent"},
        "option_groups": groups,
    }
    text = "Which agent shall answer? No default is set here yet."
    section = {"type": "section", "text": {"type": "mrkdwn", "text": text}}
    actions = {"type": "actions", "block_id": _PICK_BLOCK + question_key, "elements": [select]}
    return Note(text, [section, actions])


def picked_question(block_id: str) -> str:
    """Return the key of the question that a picker is about, or ""."""
    return block_id.removeprefix(_PICK_BLOCK) if block_id.startswith(_PICK_BLOCK) else ""


def _option_text(name: str) -> Mapping[str, Any]:
    text = shorten(_one_line(name), _OPTION_CHARS)
    return {"type": "plain_text", "text": text, "emoji": False}


# How things end.

INTERRUPTED = "_Interrupted before the answer was complete. Please ask again._"
STOPPED = "_Stopped._"
CUT = "_The connection to the agent was lost; the answer above may be incomplete._"
NO_WORDS = "_The agent finished without an answer._"
NEEDS_APPROVAL = (
    "_The agent wants to use a tool that needs an approval, which cannot be given in Slack yet. "
    "The run was stopped._"
)
HINT = "Ask me something: mention me together with your question, in a channel or in a thread."
ALREADY_PICKED = "This question is no longer waiting for an agent."
UNKNOWN_CHOICE = "This agent can no longer be chosen. Please ask again."
NO_AGENTS = "You have no agents to ask yet. An administrator of your organization can add some."
COMMAND_HELP = (
    "Mention me in a channel, or write me a direct message, to ask an agent.\n"
    "`link` links your account, `status` says which account is linked, `unlink` removes the link."
)

_REFUSALS: Mapping[str, str] = {
    "SLACK_STRANGER": "Only members of this workspace can ask agents here.",
    "WORKSPACE_NOT_FOUND": (
        "This workspace is not connected to an organization. "
        "An administrator has to install the app again."
    ),
    "NO_LONGER_A_MEMBER": "Your account is no longer a member of this organization.",
    "TOO_MANY_LINK_CODES": "You asked for many links in a short time. Please try again later.",
    "USER_TOKEN_REFUSED": (
        "The agents platform did not accept your account for this agent. "
        "Linking again will not help; please ask an administrator."
    ),
    "AGENT_NOT_ALLOWED": "You may not run this agent. Please ask an administrator for access.",
    "AGENT_NOT_FOUND": "The agent that answers here no longer exists. Please ask an administrator.",
    "PROJECT_NOT_FOUND": "The agent's project no longer exists. Please ask an administrator.",
    "PLATFORM_RATE_LIMITED": "The agents platform is busy. Please try again in a minute.",
    "PLATFORM_UNAVAILABLE": "The agents platform does not answer. Please try again later.",
    "PLATFORM_REFUSED": "The agents platform did not understand the question.",
    "MEMBERSHIP_UNAVAILABLE": "Your membership could not be checked. Please try again later.",
}


def is_refusal(reason: str) -> bool:
    """Tell whether a reason is a final answer to the person, not a fault of ours."""
    return reason in _FINAL


_FINAL = frozenset(_REFUSALS) - {
    "PLATFORM_RATE_LIMITED",
    "PLATFORM_UNAVAILABLE",
    "MEMBERSHIP_UNAVAILABLE",
}


def failure_text(reason: str) -> str:
    """Say why there is no answer, in words of our own."""
    known = _REFUSALS.get(reason)
    return known or f"Something went wrong and your question was not answered (`{reason}`)."


def run_failure(outcome: str, reason: str, detail: str) -> str:
    """Say how a run ended that did not complete; nothing given is trusted.

    Args:
        outcome: `failed`, `incomplete` or `limit_reached`.
        reason: A stable reason.
        detail: The platform's own words.
    """
    match outcome:
        case "incomplete":
            return CUT
        case "limit_reached":
            return f"_The answer was ended by a limit (`{_code(reason)}`)._"
        case _:
            said = neutralise(shorten(_one_line(detail), 500)) if detail.strip() else ""
            return f"**The agent failed** (`{_code(reason)}`)" + (f": {said}" if said else ".")


def _code(reason: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "", reason.upper())[:64] or "UNKNOWN"
