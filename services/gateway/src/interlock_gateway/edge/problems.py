"""What went wrong, in words for the person in front of the browser.

One table, keyed by the stable `reason` of an error. Nothing from a request or a
peer's message gets into these texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType

from interlock_chassis.errors import Kind, ServiceError


@dataclass(frozen=True, slots=True)
class Problem:
    """A page that says what happened and what to do.

    Attributes:
        status: The HTTP status.
        title: What happened, in a few words.
        text: What it means and what to do next, one or two sentences.
    """

    status: HTTPStatus
    title: str
    text: str


# Identity does not tell a used link from an unknown one, so one text serves both.
_LINK_IS_OVER = (
    "A link works once, for one hour, and a newer one replaces it. If you have just confirmed "
    "this one, you are linked: go back to Slack. If not, mention the app there again and it "
    "gives you a fresh one."
)

BY_REASON: Mapping[str, Problem] = MappingProxyType(
    {
        "NOT_SIGNED_IN": Problem(
            HTTPStatus.UNAUTHORIZED,
            "Please sign in first",
            "This page belongs to your organization. Sign in and you come straight back here.",
        ),
        "NOT_A_MEMBER": Problem(
            HTTPStatus.FORBIDDEN,
            "No organization is active",
            "Your account is signed in, but not as a member of an organization. Ask an owner to "
            "invite you, or switch to an account or organization that uses Interlock.",
        ),
        "ROLE_NOT_SUFFICIENT": Problem(
            HTTPStatus.FORBIDDEN,
            "Your role does not allow this",
            "This takes another role in your organization. Ask an owner or an admin.",
        ),
        "WORKSPACE_NOT_FOUND": Problem(
            HTTPStatus.NOT_FOUND,
            "No such workspace",
            "Your organization has no workspace at this address. It may have been removed.",
        ),
        "MAPPING_NOT_FOUND": Problem(
            HTTPStatus.NOT_FOUND,
            "This link is gone",
            "The Slack user is not linked any more, or the link is not yours to remove.",
        ),
        "FORM_REFUSED": Problem(
            HTTPStatus.FORBIDDEN,
            "This form has gone stale",
            "For your safety a form only works from the page that showed it, for twelve hours. "
            "Go back, reload the page and try again. Nothing was changed.",
        ),
        "INVALID_PAGE_TOKEN": Problem(
            HTTPStatus.BAD_REQUEST,
            "This page of the list is not there",
            "The address of this part of the list is not valid any more. Start at its beginning.",
        ),
        "MALFORMED_EVENT": Problem(
            HTTPStatus.BAD_REQUEST,
            "There is no such event",
            "Events have names such as user.linked or call.refused. Start at the whole log.",
        ),
        # A workspace's settings.
        "AGENT_NOT_FOUND": Problem(
            HTTPStatus.BAD_REQUEST,
            "There is no such agent",
            "The agents platform shows you no agent with these ids. Nothing was changed. "
            "Look both up there and try again.",
        ),
        "MALFORMED_AGENT_DEFAULT": Problem(
            HTTPStatus.BAD_REQUEST,
            "These are no ids",
            "A project and an agent are named by their ids, as the agents platform shows them, "
            "and a channel by its C… of Slack. Nothing was changed.",
        ),
        "PLATFORM_UNAVAILABLE": Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The agents platform does not answer",
            "Whether there is such an agent cannot be told now, so nothing was changed. "
            "Wait a moment and save again.",
        ),
        "MALFORMED_CHANNEL": Problem(
            HTTPStatus.BAD_REQUEST,
            "This is no channel",
            "Slack names a channel by its id, such as C0123ABCD. Nothing was sent.",
        ),
        "MALFORMED_BODY": Problem(
            HTTPStatus.BAD_REQUEST, "This is not what we take", "Nothing was changed."
        ),
        "SLACK_REFUSED": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Slack did not take the message",
            "The app may not be in that channel, or the channel is archived. Invite the app there "
            "and try again.",
        ),
        "BOT_TOKEN_REFUSED": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Slack does not accept the app's token",
            "Nothing was sent. Add the app to this workspace again; links and settings stay.",
        ),
        "NEEDS_REINSTALL": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The app has to be installed again",
            "Slack does not accept its token any more. Add it again; links and settings stay.",
        ),
        "INSTALLATION_NOT_FOUND": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "The app is not installed there any more",
            "The vault has no token of this workspace. Add the app again; links and settings stay.",
        ),
        "UNINSTALL_REFUSED": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Please uninstall in Slack",
            "Slack does not let the app remove itself, and nothing was changed. Remove it in "
            "Slack, under Apps; the dashboard shows it within a minute.",
        ),
        "REFRESH_PENDING": Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The app's token is just being renewed",
            "Nothing is lost. Wait a moment and try again.",
        ),
        # Installing.
        "INSTALL_CANCELLED": Problem(
            HTTPStatus.OK,
            "Nothing was installed",
            "You cancelled in Slack, so Slack gave us nothing and nothing was changed. "
            "You can start again whenever you like.",
        ),
        "INSTALL_REFUSED_BY_SLACK": Problem(
            HTTPStatus.BAD_GATEWAY,
            "Slack did not allow the install",
            "Slack ended the install with an error of its own. Try again; if it stays like this, "
            "give your operator the request id below.",
        ),
        "INSTALL_STATE_SPENT": Problem(
            HTTPStatus.BAD_REQUEST,
            "This install is over",
            "An install works once, within ten minutes, in the browser that started it. "
            "Nothing was installed by this visit. Start again from the dashboard.",
        ),
        "MALFORMED_CALLBACK": Problem(
            HTTPStatus.BAD_REQUEST,
            "This install is over",
            "An install works once, within ten minutes, in the browser that started it. "
            "Nothing was installed by this visit. Start again from the dashboard.",
        ),
        "NOT_YOUR_INSTALL": Problem(
            HTTPStatus.FORBIDDEN,
            "Somebody else started this install",
            "The account that is signed in now is not the one that started the install. "
            "Nothing was installed. Start again with the right account.",
        ),
        "INSTALL_NOT_OPEN": Problem(
            HTTPStatus.BAD_REQUEST,
            "This install is over",
            "It was finished or given up already. Look at the dashboard; if the workspace is not "
            "there, start again.",
        ),
        "WORKSPACE_TAKEN": Problem(
            HTTPStatus.CONFLICT,
            "This workspace belongs to another organization",
            "A Slack workspace can be connected to one organization at a time, and this one is "
            "connected already. Nothing was changed there. Ask its owner to uninstall first.",
        ),
        "SCOPES_MISSING": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Slack granted less than the app needs",
            "Some of the permissions were left out, so the app could not answer in Slack. "
            "Nothing was installed. Start again and allow all of them.",
        ),
        "OAUTH_CODE_REFUSED": Problem(
            HTTPStatus.BAD_GATEWAY,
            "Slack took its permission back",
            "Slack did not accept the install that it had just allowed. Start again; if it stays "
            "like this, give your operator the request id below.",
        ),
        "SLACK_ANSWER_UNUSABLE": Problem(
            HTTPStatus.BAD_GATEWAY,
            "Slack answered with something unusable",
            "Nothing was installed. Start again; if it stays like this, give your operator the "
            "request id below.",
        ),
        "SLACK_UNAVAILABLE": Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Slack does not answer",
            "Nothing is lost. Wait a minute and start again from the dashboard.",
        ),
        # Installing by Nango.
        "NANGO_NOT_CONFIGURED": Problem(
            HTTPStatus.NOT_IMPLEMENTED,
            "Nango is not set up here",
            "Your operator has not connected Interlock to Nango. Add the app to Slack directly.",
        ),
        "NANGO_REFUSED": Problem(
            HTTPStatus.BAD_GATEWAY,
            "Nango did not take our request",
            "Nothing was installed. Give your operator the request id below.",
        ),
        "CONNECT_PAGE_ELSEWHERE": Problem(
            HTTPStatus.BAD_GATEWAY,
            "Nango's page is not where we expect it",
            "Nothing was installed. Your operator has to set where Nango's Connect page is; give "
            "them the request id below.",
        ),
        "CONNECTION_NOT_FOUND": Problem(
            HTTPStatus.NOT_FOUND,
            "There is no such connection",
            "Nango knows no connection of this name. Nothing was installed.",
        ),
        "CONNECTION_NOT_YOURS": Problem(
            HTTPStatus.FORBIDDEN,
            "This connection is not yours",
            "It was made for another organization, or for another app. Nothing was installed.",
        ),
        "CONNECTION_DEAD": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Slack does not take this connection any more",
            "Connect the workspace again; nothing was installed.",
        ),
        # Linking.
        "LINK_CODE_UNUSABLE": Problem(
            HTTPStatus.BAD_REQUEST,
            "This link does not work any more",
            _LINK_IS_OVER,
        ),
        "LINK_CODE_SPENT": Problem(
            HTTPStatus.GONE,
            "This link does not work any more",
            _LINK_IS_OVER,
        ),
        "NOT_YOUR_TENANT": Problem(
            HTTPStatus.FORBIDDEN,
            "This link is for another organization",
            "The Slack workspace belongs to an organization that you are not signed in to. Sign in "
            "with your account there and open the link again; it still works.",
        ),
        "USER_LINKED_ELSEWHERE": Problem(
            HTTPStatus.CONFLICT,
            "This Slack user is linked to another account",
            "A link is never replaced silently. That account, or an owner or admin, has to unlink "
            "it first, on the workspace's page. Then open the link again.",
        ),
        "TOO_MANY_ATTEMPTS": Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "That was a bit fast",
            "Too many links were tried from here. Wait a minute, then reload this page.",
        ),
        # The frame around it all.
        "WRONG_HOST": Problem(
            HTTPStatus.MISDIRECTED_REQUEST,
            "This is not our address",
            "Interlock answers at one address only. Use the link below.",
        ),
        "TLS_REQUIRED": Problem(
            HTTPStatus.BAD_REQUEST,
            "Please use https",
            "Interlock answers over an encrypted connection only. Use the link below.",
        ),
    }
)

_BY_KIND: Mapping[Kind, Problem] = MappingProxyType(
    {
        Kind.UNAVAILABLE: Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "A part of Interlock is not answering",
            "Nothing is lost and nothing was half done. Wait a moment, then reload this page.",
        ),
        Kind.EXHAUSTED: Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "That was a bit much",
            "Wait a moment, then reload this page.",
        ),
        Kind.LOST_RACE: Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "Somebody was faster",
            "The same thing was changed at the same moment. Reload this page and try again.",
        ),
        Kind.NOT_FOUND: Problem(
            HTTPStatus.NOT_FOUND, "Not here", "There is nothing at this address."
        ),
        Kind.FORBIDDEN: Problem(
            HTTPStatus.FORBIDDEN,
            "Not allowed",
            "Your account may not do this.",
        ),
    }
)

BY_STATUS: Mapping[HTTPStatus, Problem] = MappingProxyType(
    {
        HTTPStatus.NOT_FOUND: Problem(
            HTTPStatus.NOT_FOUND,
            "There is nothing here",
            "The address may be mistyped, or the page has moved.",
        ),
        HTTPStatus.METHOD_NOT_ALLOWED: Problem(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "Not like this",
            "This address exists, but not for this kind of request.",
        ),
    }
)

INTERNAL = Problem(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "Something broke on our side",
    "This is a fault of Interlock, not yours. Give your operator the request id below.",
)


BY_SLACK_ERROR: Mapping[str, Problem] = MappingProxyType(
    {
        "cannot_install_an_org_installed_app": Problem(
            HTTPStatus.CONFLICT,
            "Your Slack organization has the app already",
            "It is installed for the whole Enterprise, so this workspace cannot install it for "
            "itself. Ask an administrator of the Enterprise to let it in there.",
        ),
        "user_email_unverified": Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "Slack does not know your address yet",
            "Slack lets only people with a confirmed e-mail address install apps. Confirm yours "
            "in Slack, and start again.",
        ),
    }
)
"""What of Slack's refusals of a code a person can do more about than to start again."""


def problem_of(error: ServiceError) -> Problem:
    """Say in a person's words what an error is; INTERNAL for what nobody foresaw."""
    said = error.metadata.get("slack_error", "")
    own = BY_SLACK_ERROR.get(said) if error.reason == "OAUTH_CODE_REFUSED" else None
    return own or BY_REASON.get(error.reason) or _BY_KIND.get(error.kind) or INTERNAL


def problem_of_status(status: HTTPStatus) -> Problem:
    """Say in a person's words what a bare status means."""
    return BY_STATUS.get(status) or Problem(
        status, status.phrase, "The request could not be answered as it was sent."
    )
