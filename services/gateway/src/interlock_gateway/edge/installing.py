"""Install the app into a Slack workspace: from the button to the callback.

The state that travels through Slack is random, stored as a hash, bound to the
browser by a cookie and to the session, and taken once. Edge never sees a token:
it hands Slack's code to the vault, with the grant of whoever started.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from interlock_chassis.errors import Kind, RemoteError, ServiceError
from interlock_chassis.secret import Secret
from interlock_gateway.edge.ports import (
    ConnectSession,
    Identity,
    Installed,
    InstallStates,
    OAuthState,
    Person,
    SessionProof,
    Vault,
)

# Slack's codes are some 100 characters; the vault's contract takes 512 of this alphabet.
_CODE = re.compile(r"[A-Za-z0-9._-]{1,512}", re.ASCII)
# 32 random bytes as base64url, for the state and for the cookie that binds it.
_RANDOM = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
# The vault's word for a connection that nobody has made yet.
AWAITED = "CONNECTION_AWAITED"


class InstallStateSpent(ServiceError):
    """This install was not started here, or is over."""

    kind = Kind.INVALID
    reason = "INSTALL_STATE_SPENT"


class MalformedCallback(ServiceError):
    """Slack's answer is not one of its own."""

    kind = Kind.INVALID
    reason = "MALFORMED_CALLBACK"


class NotYourInstall(ServiceError):
    """This install was started in another session."""

    kind = Kind.FORBIDDEN
    reason = "NOT_YOUR_INSTALL"


class UnknownWorkspace(ServiceError):
    """The tenant has no such workspace."""

    kind = Kind.NOT_FOUND
    reason = "WORKSPACE_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class InstallStart:
    """An install that may go to Slack.

    Attributes:
        authorize_url: Slack's consent page, complete.
        browser_secret: For the cookie; the callback must bring it.
    """

    authorize_url: str
    browser_secret: str


class Installing:
    """Start installs and complete them.

    Args:
        redirect_uri: The callback, the same in both requests to Slack.
        home_path: Where a browser goes when it is done.
        new_secret: Makes 32 random bytes, as base64url.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        vault: Vault,
        states: InstallStates,
        redirect_uri: str,
        home_path: str,
        new_secret: Callable[[], str],
    ) -> None:
        self._identity = identity
        self._vault = vault
        self._states = states
        self._redirect_uri = redirect_uri
        self._home_path = home_path
        self._new_secret = new_secret

    async def start(self, proof: SessionProof, person: Person) -> InstallStart:
        """Open an install for the person's tenant.

        Asks identity for the grant, tells the vault, and stores the state.

        Raises:
            RemoteError: ROLE_NOT_SUFFICIENT for whoever is neither owner nor admin.
            EdgeDatabaseUnavailable: The state could not be stored.
        """
        state, browser_secret = self._new_secret(), self._new_secret()
        grant = await self._identity.issue_install_grant(proof, _sha256(state))
        authorize_url = await self._vault.start_install(grant)
        await self._states.put_state(
            _sha256(state),
            _sha256(browser_secret),
            OAuthState(person.session_ref, grant, self._home_path),
        )
        ours = urlencode({"state": state, "redirect_uri": self._redirect_uri})
        separator = "&" if urlsplit(authorize_url).query else "?"
        return InstallStart(f"{authorize_url}{separator}{ours}", browser_secret)

    async def complete(
        self, person: Person, *, state: str, browser_secret: str, code: str
    ) -> Installed:
        """Take the state, once, and let the vault exchange the code.

        Raises:
            MalformedCallback: The code is not of Slack's form; the state is kept.
            InstallStateSpent: No live state of this browser.
            NotYourInstall: The session is not the one that started; the state is spent.
            RemoteError: As `Vault.complete_install`.
        """
        if not _CODE.fullmatch(code):
            raise MalformedCallback
        started = await self.take(state=state, browser_secret=browser_secret)
        if started.session_ref != person.session_ref:
            raise NotYourInstall
        return await self._vault.complete_install(started.grant, Secret(code), self._redirect_uri)

    async def take(self, *, state: str, browser_secret: str) -> OAuthState:
        """End an install: its state works no more.

        Raises:
            InstallStateSpent: No live state of this browser.
        """
        require_callback(state=state, browser_secret=browser_secret)
        started = await self._states.take_state(_sha256(state), _sha256(browser_secret))
        if started is None:
            raise InstallStateSpent
        return started


class Connecting:
    """Install by Nango: open a session for the browser, and complete what it connected.

    The state is as in a direct install, and travels in the cookie alone.

    Args:
        new_secret: Makes 32 random bytes, as base64url.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        vault: Vault,
        states: InstallStates,
        new_secret: Callable[[], str],
    ) -> None:
        self._identity = identity
        self._vault = vault
        self._states = states
        self._new_secret = new_secret

    async def start(
        self, proof: SessionProof, person: Person, workspace_id: str
    ) -> tuple[ConnectSession, str]:
        """Open an install for the person's tenant.

        Args:
            proof: The person's session.
            person: Who it is.
            workspace_id: The tenant's workspace that is connected again; "" for a new one.

        Returns:
            The session, and the cookie that completion must bring.

        Raises:
            UnknownWorkspace: The tenant has no such workspace.
            RemoteError: As `Vault.start_connecting`, and ROLE_NOT_SUFFICIENT.
            EdgeDatabaseUnavailable: The state could not be stored.
        """
        renews = None
        if workspace_id:
            owned = await self._identity.list_workspaces(proof)
            renews = next((each for each in owned if each.workspace_id == workspace_id), None)
            if renews is None:
                raise UnknownWorkspace
        state, secret = self._new_secret(), self._new_secret()
        grant = await self._identity.issue_install_grant(proof, _sha256(state), by_nango=True)
        session = await self._vault.start_connecting(grant, renews)
        await self._states.put_state(
            _sha256(state), _sha256(secret), OAuthState(person.session_ref, grant, "")
        )
        return session, f"{state}.{secret}"

    async def complete(
        self, person: Person, cookie: str, provider_config_key: str, connection_id: str
    ) -> Installed:
        """Take the state and let the vault take the connection.

        The state is put back where a repeat may help.

        Raises:
            InstallStateSpent: No live state of this browser.
            NotYourInstall: The session is not the one that started; the state is spent.
            RemoteError: As `Vault.complete_connection`.
        """
        return await self._end(
            person,
            cookie,
            lambda grant: self._vault.complete_connection(
                grant, provider_config_key, connection_id
            ),
        )

    async def _end(
        self,
        person: Person,
        cookie: str,
        ask: Callable[[Secret[str]], Awaitable[Installed]],
    ) -> Installed:
        state, _, secret = cookie.partition(".")
        require_callback(state=state, browser_secret=secret)
        started = await self._states.take_state(_sha256(state), _sha256(secret))
        if started is None:
            raise InstallStateSpent
        if started.session_ref != person.session_ref:
            raise NotYourInstall
        try:
            return await ask(started.grant)
        except ServiceError as error:
            if error.kind in {Kind.UNAVAILABLE, Kind.LOST_RACE} or error.reason == AWAITED:
                await self._states.put_state(_sha256(state), _sha256(secret), started)
            raise

    async def find_outcome(self, person: Person, cookie: str) -> Installed | None:
        """Ask what came of an install that Nango's webhook completes; None for nothing yet.

        The state is taken with the outcome, and kept where there is none yet.

        Raises:
            InstallStateSpent, NotYourInstall, RemoteError: As `complete`.
        """
        try:
            return await self._end(person, cookie, self._vault.find_connected)
        except RemoteError as error:
            if error.reason == AWAITED or error.kind is Kind.LOST_RACE:
                return None
            if error.kind is Kind.UNAUTHENTICATED:
                # The grant of whoever started it has run out.
                raise InstallStateSpent from None
            raise


def require_callback(*, state: str, browser_secret: str) -> None:
    """Refuse what cannot be the end of an install, before anybody is asked.

    Raises:
        InstallStateSpent: The state or the cookie is absent or not of our form.
    """
    if not _RANDOM.fullmatch(state) or not _RANDOM.fullmatch(browser_secret):
        raise InstallStateSpent


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
