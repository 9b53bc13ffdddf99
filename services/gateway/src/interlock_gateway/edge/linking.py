"""Link a Slack user to the account of the browser, after the person confirmed it."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import timedelta

import structlog

from interlock_chassis.errors import Kind, ServiceError
from interlock_chassis.secret import Secret
from interlock_gateway.edge.ports import (
    Attempts,
    Identity,
    LinkOffer,
    Person,
    SessionProof,
    Worker,
)

# Nobody redeems ten codes a minute; an office behind one address may have thirty people
# link at once on the first day. Looking is counted apart, it changes nothing.
REDEEMS_PER_SESSION = 10
REDEEMS_PER_ADDRESS = 30
LOOKS_PER_SESSION = 30
_WINDOW = timedelta(minutes=1)
_WRONG = frozenset({"LINK_CODE_SPENT", "TOO_MANY_ATTEMPTS"})

# Identity's codes are 43 characters of base64url; its contract takes 128.
_CODE = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)
_MIN_CODE_CHARS, _MAX_CODE_CHARS = 16, 128

# As many as a page shows; a cookie has 4 KiB.
_MAX_NAME_CHARS = 80

# Nobody mistypes a link. So many attempts without one within a minute, over everybody,
# are somebody guessing.
GUESSES_ALARM = 50


class LinkCodeUnusable(ServiceError):
    """The link is not one of ours."""

    kind = Kind.INVALID
    reason = "LINK_CODE_UNUSABLE"


class TooManyAttempts(ServiceError):
    """Too many links were tried."""

    kind = Kind.EXHAUSTED
    reason = "TOO_MANY_ATTEMPTS"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a link code, for the page that tells it.

    The browser carries it there, so that the page can be loaded again while the
    code cannot be redeemed again. Nothing in it is secret.

    Attributes:
        code_sha256: The code, as `code_sha256` names it.
        slack_team_id: Slack `T…`, or `E…` for an org-wide install.
        name: The workspace's display name, at most 80 characters; untrusted text.
        was_linked: Whether the same link existed before.
        is_answering: Whether the question that waited runs now; None when the worker
            could not be asked, whose sweep then finds the question.
    """

    code_sha256: str
    workspace_id: str
    slack_team_id: str
    name: str
    slack_user_id: str
    was_linked: bool
    is_answering: bool | None

    def to_text(self) -> str:
        """Write it in the letters of base64url."""
        document = json.dumps(astuple(self), separators=(",", ":"))
        return base64.urlsafe_b64encode(document.encode()).rstrip(b"=").decode()

    @classmethod
    def from_text(cls, text: str) -> "Receipt":
        """Read what `to_text` wrote; of anything else nothing is promised."""
        return cls(*json.loads(base64.urlsafe_b64decode(text + "==")))


def find_link_code(text: str) -> str | None:
    """Take a text for a link code; None when its length rules that out.

    A text of other characters becomes a code that nobody has, so that it and a wrong
    guess are told apart by nothing that anybody sees.
    """
    if not _MIN_CODE_CHARS <= len(text) <= _MAX_CODE_CHARS:
        return None
    if _CODE.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def code_sha256(code: str) -> str:
    """Name a code without showing it."""
    return hashlib.sha256(code.encode()).hexdigest()


class Linking:
    """Show what a link code would do, and redeem it.

    Args:
        identity: Knows the codes.
        worker: Asked to resume the question.
        attempts: Counters of all replicas.
        on_guessing: Called once a minute in which too many codes were wrong.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        worker: Worker,
        attempts: Attempts,
        on_guessing: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._worker = worker
        self._attempts = attempts
        self._on_guessing = on_guessing

    async def describe(self, proof: SessionProof, person: Person, code: str) -> LinkOffer:
        """Say what redeeming would do. Spends nothing.

        Raises:
            LinkCodeUnusable: The text cannot be a code.
            TooManyAttempts: More than 30 a minute in this session.
            RemoteError: As `Identity.describe_link_code`.
        """
        _require_link_code(code)
        await self._count("look", person.session_ref, LOOKS_PER_SESSION)
        try:
            return await self._identity.describe_link_code(proof, Secret(code))
        except ServiceError as error:
            await self._suspect(error)
            raise

    async def redeem(
        self, proof: SessionProof, person: Person, code: str, *, email_difference_confirmed: bool
    ) -> Receipt:
        """Link, spend the code, and have the waiting question run.

        A worker that cannot be asked costs nothing but time.

        Raises:
            LinkCodeUnusable: The text cannot be a code.
            TooManyAttempts: More than 10 a minute in this session, or 30 from this address.
            RemoteError: As `Identity.redeem_link_code`.
        """
        _require_link_code(code)
        await self._count("redeem", person.session_ref, REDEEMS_PER_SESSION)
        await self._count("redeem-from", proof.client_address, REDEEMS_PER_ADDRESS)
        try:
            redeemed = await self._identity.redeem_link_code(
                proof, Secret(code), email_difference_confirmed=email_difference_confirmed
            )
        except ServiceError as error:
            await self._suspect(error)
            raise
        workspace = redeemed.workspace
        return Receipt(
            code_sha256=code_sha256(code),
            workspace_id=workspace.workspace_id,
            slack_team_id=workspace.slack_team_id,
            name=workspace.name[:_MAX_NAME_CHARS],
            slack_user_id=redeemed.slack_user_id,
            was_linked=redeemed.was_linked,
            is_answering=await self._resume(redeemed.resume_grant),
        )

    async def _resume(self, grant: Secret[str]) -> bool | None:
        try:
            return await self._worker.resume_after_link(grant)
        except ServiceError as error:
            structlog.get_logger().warning("resume_not_asked", reason=error.reason)
            return None

    async def _count(self, what: str, whose: str, limit: int) -> None:
        key = f"{what}:{code_sha256(whose)}"
        if await self._attempts.count(key) > limit:
            structlog.get_logger().warning("link_attempts_exceeded", counter=what)
            refusal = TooManyAttempts(retry_after=_WINDOW)
            await self._suspect(refusal)
            raise refusal

    async def _suspect(self, error: ServiceError) -> None:
        """Count what a guesser would get, over everybody."""
        if error.reason not in _WRONG:
            return
        if await self._attempts.count("wrong-codes") == GUESSES_ALARM:
            self._on_guessing()


def _require_link_code(code: str) -> None:
    if not _CODE.fullmatch(code):
        raise LinkCodeUnusable
