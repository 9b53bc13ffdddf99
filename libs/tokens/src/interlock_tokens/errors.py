"""How a token, a purpose or a claim is refused."""

from interlock_chassis.errors import Kind, ServiceError


class InvalidToken(ServiceError):
    """The token does not verify.

    The caller learns no more than that.

    Attributes:
        problem: What was wrong, one of a few fixed words, for the log only.
    """

    kind = Kind.UNAUTHENTICATED
    reason = "INVALID_TOKEN"

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        super().__init__()


class PurposeNotGranted(ServiceError):
    """The grant is not for this."""

    kind = Kind.FORBIDDEN
    reason = "PURPOSE_NOT_GRANTED"


class MalformedClaims(ServiceError):
    """A token with these claims would be refused by every verifier, so none is signed."""

    kind = Kind.INVALID
    reason = "MALFORMED_CLAIMS"


class NoSigningKey(ServiceError):
    """No key of this process may sign this kind of token at this time."""

    kind = Kind.UNAVAILABLE
    reason = "NO_SIGNING_KEY"
