"""Log lines are JSON, carry the request, and hold no token."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from interlock_chassis.logs import configure_logging, describe_exception, scrub
from interlock_chassis.secret import Secret
from interlock_chassis.telemetry import request_id_scope

TOKENS = [
    "xoxb-123-456-canaryABC",
    "xoxp-123-canary",
    "xoxe-1-canary",
    "xoxe.xoxp-1-canary",
    "xoxe.xoxb-1-canary",
    "xapp-1-A1-canary",
    "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOjF9.c2lnbmF0dXJl-_",
    "eyJhbGciOiJub25lIn0.eyJjYW5hcnkiOjF9.",
    "nango_connect_session_canary123",
    "v0=" + "a1" * 32,
    "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----",
    "-----BEGIN EC PRIVATE KEY-----\ncanary",
    "Authorization: Bearer canary-abc.def",
    "postgresql://role:canary@127.0.0.1/db",
    "https://hooks.slack.com/commands/T1/2/canary",
]


class Written:
    """What a test wrote to stderr."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def text(self) -> str:
        """Take what was written since the last call."""
        return self._capture.readouterr().err

    def lines(self) -> list[dict[str, Any]]:
        """Take it, parsed line by line."""
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """Catch what is written to stderr, and give logging back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield Written(capsys)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        structlog.reset_defaults()


def fail_with(text: str) -> None:
    """Raise an error with a text, and a cause of its own."""
    try:
        dict[str, str]().pop(text)
    except KeyError as error:
        raise ValueError(text) from error


@pytest.mark.parametrize("token", TOKENS)
def test_token_like_text_is_scrubbed(token: str) -> None:
    """Each known shape of a secret is replaced, alone, in text and after an escaped newline."""
    for text in (token, f"got {token!r} back", json.dumps(f"x\n{token}\ny")):
        found = scrub(text)
        assert "[redacted]" in found
        assert "canary" not in found.lower()
        assert "a1a1a1" not in found
        assert "eyJjYW5hcnkiOjF9" not in found


@pytest.mark.parametrize(
    "text", ["xox", "v0=short", "https://example.com/a:b@c", "eyJ", "T0123 C0456", "a@b.example"]
)
def test_other_text_stays(text: str) -> None:
    """Ids, addresses and URLs are what a log is for."""
    assert scrub(text) == text


def test_a_line_is_json_with_service_and_request(written: Written) -> None:
    """Fields arrive as given; the request in force is named."""
    configure_logging("runner", "info")
    with request_id_scope("abcdefgh"):
        structlog.get_logger().info("run_finished", count=2)
    (line,) = written.lines()
    assert line["event"] == "run_finished"
    assert line["count"] == 2
    assert line["service"] == "runner"
    assert line["request_id"] == "abcdefgh"
    assert line["level"] == "info"
    assert line["timestamp"].endswith("Z")


def test_the_standard_library_takes_the_same_way(written: Written) -> None:
    """Libraries' lines are JSON too, and scrubbed."""
    configure_logging("runner", "info")
    logging.getLogger("some.library").warning("sent %s", TOKENS[0])
    (line,) = written.lines()
    assert line["event"] == "sent [redacted]"
    assert line["service"] == "runner"


@pytest.mark.parametrize("token", TOKENS)
def test_tracebacks_are_scrubbed_and_show_no_locals(written: Written, token: str) -> None:
    """CF-05: an exception's text is scrubbed; values of variables are not rendered."""
    configure_logging("vault", "debug")
    try:
        fail_with(f"cannot use {token}")
    except ValueError:
        structlog.get_logger().exception("it_failed")
        logging.getLogger("x").exception("it failed")
    text = written.text()
    assert "ValueError" in text
    assert "KeyError" in text
    assert "canary" not in text
    assert "eyJjYW5hcnkiOjF9" not in text
    assert "a1a1a1" not in text


def test_local_variables_are_not_rendered(written: Written) -> None:
    """A traceback shows code, not what its variables held."""
    configure_logging("vault", "debug")
    local = "hunter" + str(len("12"))
    try:
        fail_with("x" * len(local))
    except ValueError:
        structlog.get_logger().exception("it_failed")
    assert local not in written.text()


def test_nested_fields_are_scrubbed(written: Written) -> None:
    """A token deep inside a field does not get through."""
    configure_logging("vault", "info")
    structlog.get_logger().info("x", deep={"a": [{"b": TOKENS[0]}]}, secret=Secret("canary"))
    text = written.text()
    assert "canary" not in text
    assert json.loads(text)["secret"] == "<Secret>"


@pytest.mark.parametrize("name", ["slack_sdk", "slack_sdk.web.client", "grpc", "aiohttp.client"])
def test_talkative_libraries_never_log_below_info(written: Written, name: str) -> None:
    """CF-05: at DEBUG these print tokens; not with our level, nor with one set on them."""
    configure_logging("vault", "debug")
    logger = logging.getLogger(name)
    before = logger.level
    try:
        logger.debug("canary")
        logger.setLevel(logging.DEBUG)
        logger.debug("canary")
        logger.info("fine")
    finally:
        logger.setLevel(before)
    assert [line["event"] for line in written.lines()] == ["fine"]


def test_our_own_debug_lines_are_written_when_asked_for(written: Written) -> None:
    """The level applies to our own code."""
    configure_logging("vault", "debug")
    structlog.get_logger("interlock_token_vault").debug("lease_taken")
    assert [line["event"] for line in written.lines()] == ["lease_taken"]


def test_a_line_that_cannot_be_rendered_is_told_without_arguments(written: Written) -> None:
    """Logging's own report of a bad call prints the arguments; ours does not."""
    configure_logging("vault", "info")
    logging.getLogger("x").info("token %s", Secret("canary"))
    logging.getLogger("x").info("token %d", "canary")
    text = written.text()
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["log_line_lost"] * 2
    assert "canary" not in text


def test_an_exception_is_described_by_type_and_place_alone() -> None:
    """What nobody foresaw is told by its types and frames, causes and groups included."""
    with pytest.raises(ValueError, match="canary") as raised:
        fail_with("canary")
    described = "\n".join(describe_exception(raised.value))
    assert "builtins.ValueError" in described
    assert "builtins.KeyError" in described
    assert "fail_with" in described
    assert "canary" not in described


def test_members_of_a_group_are_described_too() -> None:
    """What failed inside a task group is not hidden by the group."""
    described = describe_exception(ExceptionGroup("canary", [ValueError("canary"), OSError()]))
    assert described == ["builtins.ExceptionGroup", "  builtins.ValueError", "  builtins.OSError"]
