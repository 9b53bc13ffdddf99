"""Errors say what a caller should do, and survive the wire."""

from datetime import timedelta

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from interlock_chassis.errors import (
    CallerNotAllowed,
    ConfigError,
    Kind,
    RemoteError,
    ServiceError,
)
from interlock_chassis.statuses import DeadlineExceeded, code_of, from_rpc_error, to_status


class LeaseHeld(ServiceError):
    """Another worker is rotating this installation.

    The second paragraph is for readers of the code.
    """

    kind = Kind.LOST_RACE
    reason = "LEASE_HELD"


def over_the_wire(error: ServiceError) -> RemoteError:
    """Send an error as a status and read it as a client does."""
    status = to_status(error)
    return from_rpc_error(
        aio.AioRpcError(
            status.code,
            aio.Metadata(),
            aio.Metadata(*status.trailing_metadata),
            details=status.details,
        )
    )


def answer(code: grpc.StatusCode, *details: any_pb2.Any, text: str = "") -> aio.AioRpcError:
    """Make the error that a peer which is not ours would answer with."""
    status = status_pb2.Status(code=code.value[0], message=text, details=details)
    trailing = aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return aio.AioRpcError(code, aio.Metadata(), trailing, details=text)


def info(reason: str, domain: str) -> any_pb2.Any:
    """Pack an ErrorInfo."""
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    return packed


def test_the_message_is_the_promise_of_the_class_unless_given() -> None:
    """The first line of the docstring is shown, without its full stop."""
    assert LeaseHeld().message == "Another worker is rotating this installation"
    assert str(LeaseHeld("wait for generation 4")) == "wait for generation 4"


def test_a_config_error_names_the_variable_and_the_problem() -> None:
    """A ConfigError reads `VARIABLE: problem` and is no ServiceError."""
    error = ConfigError("INTERLOCK_X", "is blank")
    assert str(error) == "INTERLOCK_X: is blank"
    assert not isinstance(error, ServiceError)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_survives_the_wire(kind: Kind) -> None:
    """A caller sees the kind that was raised, for each kind there is."""
    remote = over_the_wire(RemoteError(kind, "SOME_REASON", "some words"))
    assert (remote.kind, remote.reason, remote.message) == (kind, "SOME_REASON", "some words")


def test_details_survive_the_wire() -> None:
    """Waits, metadata and words outside of ASCII arrive as they were sent."""
    remote = over_the_wire(
        LeaseHeld("später", retry_after=timedelta(milliseconds=1500), metadata={"a": "ü"})
    )
    assert remote.message == "später"
    assert remote.retry_after == timedelta(milliseconds=1500)
    assert remote.metadata == {"a": "ü"}


def test_no_two_kinds_share_a_code() -> None:
    """A code leads back to one kind, so callers of other languages see no less."""
    codes = {code_of(RemoteError(kind, "R")) for kind in Kind}
    assert len(codes) == len(Kind)


def test_a_deadline_crosses_as_grpc_names_it() -> None:
    """A cap that was reached is DEADLINE_EXCEEDED to peers, and UNAVAILABLE to ours."""
    assert code_of(DeadlineExceeded()) is grpc.StatusCode.DEADLINE_EXCEEDED
    remote = over_the_wire(DeadlineExceeded())
    assert (remote.kind, remote.reason) == (Kind.UNAVAILABLE, "DEADLINE_EXCEEDED")


def test_an_unreachable_peer_is_unavailable_and_its_text_is_dropped() -> None:
    """The transport's words, with addresses in them, go nowhere."""
    remote = from_rpc_error(answer(grpc.StatusCode.UNAVAILABLE, text="ipv4:10.0.0.1: refused"))
    assert (remote.kind, remote.reason) == (Kind.UNAVAILABLE, "PEER_UNAVAILABLE")
    assert "10.0.0.1" not in remote.message


def test_the_words_of_a_foreign_server_are_dropped() -> None:
    """A status without our ErrorInfo gives its code and nothing else."""
    foreign = answer(grpc.StatusCode.UNKNOWN, info("X", "elsewhere"), text="xoxb-1")
    remote = from_rpc_error(foreign)
    assert (remote.kind, remote.reason) == (Kind.INTERNAL, "UNKNOWN")
    assert "xoxb" not in remote.message


def test_garbled_details_are_as_good_as_none() -> None:
    """A trailer that does not parse does not break the caller."""
    trailing = aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    error = aio.AioRpcError(grpc.StatusCode.NOT_FOUND, aio.Metadata(), trailing, details="x")
    remote = from_rpc_error(error)
    assert (remote.kind, remote.reason, remote.metadata) == (Kind.NOT_FOUND, "NOT_FOUND", {})


def test_a_refusal_crosses_with_its_own_reason() -> None:
    """A branch on `reason` works the same on both sides."""
    assert over_the_wire(CallerNotAllowed()).reason == CallerNotAllowed.reason
