"""How Cloud KMS says no."""

from typing import NoReturn

from grpc import StatusCode


class Refusal(Exception):
    """A call ends with a status instead of an answer."""

    def __init__(self, code: StatusCode, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


def refuse_argument(message: str) -> NoReturn:
    """Refuse what the caller sent."""
    raise Refusal(StatusCode.INVALID_ARGUMENT, message)


def refuse_absent(name: str) -> NoReturn:
    """Refuse a name that nothing has."""
    raise Refusal(StatusCode.NOT_FOUND, f"{name} not found.")


def refuse_state(message: str) -> NoReturn:
    """Refuse what the state of a key does not allow."""
    raise Refusal(StatusCode.FAILED_PRECONDITION, message)
