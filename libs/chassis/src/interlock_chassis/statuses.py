"""The wire form of errors: a gRPC status with ErrorInfo and RetryInfo, and back."""

from datetime import timedelta
from typing import assert_never

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from interlock_chassis.errors import Kind, RemoteError, ServiceError

ERROR_DOMAIN = "interlock"
"""The `domain` of every ErrorInfo of ours; others' are not ours to read."""

_DETAILS_KEY = "grpc-status-details-bin"


class DeadlineExceeded(ServiceError):
    """The call took longer than it may."""

    kind = Kind.UNAVAILABLE
    reason = "DEADLINE_EXCEEDED"


def code_of(error: ServiceError) -> grpc.StatusCode:
    """Return the gRPC code that an error crosses with."""
    if isinstance(error, DeadlineExceeded):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return _code_of_kind(error.kind)


def _code_of_kind(kind: Kind) -> grpc.StatusCode:  # noqa: C901, PLR0911, PLR0912 - One case per kind; mypy proves that none is missing.
    match kind:
        case Kind.INVALID:
            return grpc.StatusCode.INVALID_ARGUMENT
        case Kind.UNAUTHENTICATED:
            return grpc.StatusCode.UNAUTHENTICATED
        case Kind.FORBIDDEN:
            return grpc.StatusCode.PERMISSION_DENIED
        case Kind.NOT_FOUND:
            return grpc.StatusCode.NOT_FOUND
        case Kind.CONFLICT:
            return grpc.StatusCode.ALREADY_EXISTS
        case Kind.PRECONDITION:
            return grpc.StatusCode.FAILED_PRECONDITION
        case Kind.LOST_RACE:
            return grpc.StatusCode.ABORTED
        case Kind.EXHAUSTED:
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case Kind.UNAVAILABLE:
            return grpc.StatusCode.UNAVAILABLE
        case Kind.CORRUPT:
            return grpc.StatusCode.DATA_LOSS
        case Kind.UNIMPLEMENTED:
            return grpc.StatusCode.UNIMPLEMENTED
        case Kind.INTERNAL:
            return grpc.StatusCode.INTERNAL
        case _:
            assert_never(kind)


def to_status(error: ServiceError) -> grpc.Status:
    """Write an error as a gRPC status that `from_rpc_error` reads back."""
    code: int = code_of(error).value[0]
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=ERROR_DOMAIN, metadata=dict(error.metadata)
    )
    details = [_packed(info)]
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(code=code, message=error.message, details=details)
    wire: grpc.Status = rpc_status.to_status(status)
    return wire


def from_rpc_error(error: aio.AioRpcError) -> RemoteError:
    """Read the error a peer answered with.

    Without an ErrorInfo of ours the kind follows the code, the reason is the
    code's name (`PEER_UNAVAILABLE` when the peer could not be reached), and
    the peer's text is dropped.
    """
    kind = _kind_of_code(error.code())
    info, retry_after = _details_of(error)
    if info is not None:
        return RemoteError(
            kind,
            info.reason,
            error.details() or "",
            retry_after=retry_after,
            metadata=dict(info.metadata),
        )
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return RemoteError(kind, "PEER_UNAVAILABLE", "a peer cannot be reached")
    return RemoteError(kind, error.code().name)


def from_verdict(code: int, reason: str, retry_after: timedelta | None) -> RemoteError:
    """Read the error of one question among many that a peer answered in one message.

    Args:
        code: A google.rpc.Code; one that is unknown stands for an internal error.
        reason: The stable reason, as in an ErrorInfo.
        retry_after: How long to wait before asking again, where that helps.
    """
    return RemoteError(_KINDS_BY_NUMBER.get(code, Kind.INTERNAL), reason, retry_after=retry_after)


_KINDS = {
    grpc.StatusCode.INVALID_ARGUMENT: Kind.INVALID,
    grpc.StatusCode.OUT_OF_RANGE: Kind.INVALID,
    grpc.StatusCode.UNAUTHENTICATED: Kind.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: Kind.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: Kind.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Kind.CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: Kind.PRECONDITION,
    grpc.StatusCode.ABORTED: Kind.LOST_RACE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Kind.EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE: Kind.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.UNAVAILABLE,
    # The peer ended the call, as it does when it stops; our own cancelling
    # raises CancelledError and never gets here.
    grpc.StatusCode.CANCELLED: Kind.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS: Kind.CORRUPT,
    grpc.StatusCode.UNIMPLEMENTED: Kind.UNIMPLEMENTED,
}
_KINDS_BY_NUMBER: dict[int, Kind] = {code.value[0]: kind for code, kind in _KINDS.items()}


def _kind_of_code(code: grpc.StatusCode) -> Kind:
    return _KINDS.get(code, Kind.INTERNAL)


def _details_of(
    error: aio.AioRpcError,
) -> tuple[error_details_pb2.ErrorInfo | None, timedelta | None]:
    """Read our details; a peer that garbles them is treated as one without."""
    found: error_details_pb2.ErrorInfo | None = None
    retry_after: timedelta | None = None
    raw = (error.trailing_metadata() or aio.Metadata()).get(_DETAILS_KEY)
    if not isinstance(raw, bytes):
        return None, None
    try:
        for detail in status_pb2.Status.FromString(raw).details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == ERROR_DOMAIN and info.reason:
                found = info
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta()
    except (DecodeError, ValueError):
        return None, None
    return found, retry_after


def _packed(detail: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
