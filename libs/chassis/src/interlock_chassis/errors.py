"""The errors a service may raise, sorted by what the caller should do next.

Raise; only the interceptor turns an error into a gRPC status. Branch on the
class or on `reason`, never on the text.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum
from types import MappingProxyType

_NO_METADATA: Mapping[str, str] = MappingProxyType({})


class Kind(Enum):
    """What a caller should do about an error."""

    INVALID = "invalid"
    """Fix the call."""

    UNAUTHENTICATED = "unauthenticated"
    """Prove who you are."""

    FORBIDDEN = "forbidden"
    """Stop."""

    NOT_FOUND = "not_found"
    """Treat it as absent."""

    CONFLICT = "conflict"
    """Resolve it first."""

    PRECONDITION = "precondition"
    """Involve a human."""

    LOST_RACE = "lost_race"
    """Re-read and retry the whole."""

    EXHAUSTED = "exhausted"
    """Wait for `retry_after`."""

    UNAVAILABLE = "unavailable"
    """Retry inside your deadline."""

    CORRUPT = "corrupt"
    """Page the operators: stored data cannot be trusted."""

    UNIMPLEMENTED = "unimplemented"
    """Do not call this yet."""

    INTERNAL = "internal"
    """Page the operators: a bug. Only decoded from a peer, never raised here."""


class ServiceError(Exception):
    """An error whose kind, reason and message may cross to the caller.

    Subclasses set `kind` and `reason`. The message is safe to show; a cause
    goes to the log, through `raise ... from cause`.

    Attributes:
        kind: What the caller should do.
        reason: Stable, UPPER_SNAKE_CASE; what callers branch on.
        message: Safe to show; never holds a secret or foreign text.
        retry_after: How long to wait before the next try, when known.
        metadata: Further facts, safe to show.
    """

    kind: Kind
    reason: str

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: timedelta | None = None,
        metadata: Mapping[str, str] = _NO_METADATA,
    ) -> None:
        self.message = message or self._promise()
        self.retry_after = retry_after
        self.metadata = metadata
        super().__init__(self.message)

    @classmethod
    def _promise(cls) -> str:
        """Take the first line of the class's docstring as its message."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0].rstrip(".")


class InvalidArgument(ServiceError):
    """The request breaks a rule of its fields."""

    kind = Kind.INVALID
    reason = "INVALID_ARGUMENT"


class DeadlineMissing(ServiceError):
    """The call carries no deadline."""

    kind = Kind.INVALID
    reason = "DEADLINE_MISSING"


class Unauthenticated(ServiceError):
    """The caller has not proved who it is."""

    kind = Kind.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class CallerNotAllowed(ServiceError):
    """The caller may not call this RPC."""

    kind = Kind.FORBIDDEN
    reason = "CALLER_NOT_ALLOWED"


class Unavailable(ServiceError):
    """A part this service needs does not answer."""

    kind = Kind.UNAVAILABLE
    reason = "UNAVAILABLE"


class Unimplemented(ServiceError):
    """This RPC is part of the contract but not served yet."""

    kind = Kind.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class RemoteError(ServiceError):
    """A peer answered with an error.

    Carries the peer's kind, reason, message, `retry_after` and metadata, so
    that a caller branches on `reason` as if the error had been raised here.
    """

    def __init__(
        self,
        kind: Kind,
        reason: str,
        message: str = "",
        *,
        retry_after: timedelta | None = None,
        metadata: Mapping[str, str] = _NO_METADATA,
    ) -> None:
        self.kind = kind
        self.reason = reason
        super().__init__(
            message or "a peer answered with an error", retry_after=retry_after, metadata=metadata
        )


class ConfigError(Exception):
    """Start-up is refused; the process exits with 78 (EX_CONFIG).

    Not a ServiceError: it never reaches a caller.

    Attributes:
        variable: The environment variable (or file, or table) at fault.
        problem: One line saying what is wrong; never the value.
    """

    def __init__(self, variable: str, problem: str) -> None:
        self.variable = variable
        self.problem = problem
        super().__init__(f"{variable}: {problem}")
