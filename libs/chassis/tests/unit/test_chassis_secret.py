"""A Secret shows its value to `reveal()` and to nothing else."""

import copy
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret

CANARY = "xoxb-canary-1234"


@dataclass(frozen=True)
class Holder:
    """A dataclass that holds a secret, as settings and responses do."""

    token: Secret[str]


def test_reveal_returns_what_was_put_in() -> None:
    """The value comes back unchanged, for text and for bytes."""
    assert Secret(CANARY).reveal() == CANARY
    assert Secret(b"\x00\xff").reveal() == b"\x00\xff"


@pytest.mark.parametrize(
    "leak",
    [
        str,
        format,
        lambda secret: f"{secret}",
        lambda secret: f"{secret:>20}",
        lambda secret: "%s" % secret,  # noqa: UP031 - One more way to print.
        lambda secret: "token=" + secret,
        bytes,
        hash,
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        json.dumps,
        lambda secret: asdict(Holder(secret)),
        lambda secret: {secret: 1},
    ],
)
def test_every_way_to_spill_it_is_refused(leak: Callable[[Secret[str]], object]) -> None:
    """Printing, copying, hashing and serialising raise, and do not quote the value."""
    with pytest.raises(TypeError) as refused:
        leak(Secret(CANARY))
    assert CANARY not in str(refused.value)


def test_repr_answers_with_a_fixed_text() -> None:
    """Repr tells that there is a secret, also inside containers and dataclasses."""
    assert repr(Secret(CANARY)) == "<Secret>"
    assert repr(Holder(Secret(CANARY))) == "Holder(token=<Secret>)"
    assert f"{[Secret(CANARY)]}" == "[<Secret>]"


def test_logging_cannot_format_it(caplog: pytest.LogCaptureFixture) -> None:
    """A log call with `%r` writes the fixed text."""
    with caplog.at_level(logging.INFO):
        logging.getLogger("x").info("token %r", Secret(CANARY))
    assert caplog.messages == ["token <Secret>"]


def test_equality_is_by_value_and_never_with_plain_text() -> None:
    """Two secrets compare by value; a str, or bytes of the same letters, never equals."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("a") != Secret(b"a")


def test_an_empty_secret_is_no_reason_to_take_the_other_branch() -> None:
    """`if secret` tells that there is one, not what it holds."""
    assert bool(Secret("")) is True


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    """The secret is the file's text, spaces inside included."""
    path = tmp_path / "secret"
    path.write_text("a b")
    assert Secret.from_file(path, variable="V").reveal() == "a b"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_a_newline_at_the_end_is_refused_with_a_hint(tmp_path: Path, ending: str) -> None:
    """CF-01: a newline that an editor added stops the start; the value is not shown."""
    path = tmp_path / "secret"
    path.write_text(CANARY + ending)
    with pytest.raises(ConfigError, match="newline") as refused:
        Secret.from_file(path, variable="INTERLOCK_X_FILE")
    assert refused.value.variable == "INTERLOCK_X_FILE"
    assert CANARY not in str(refused.value)


def test_a_document_may_end_in_a_newline(tmp_path: Path) -> None:
    """JSON and PEM files end in one, and it is no part of a secret."""
    path = tmp_path / "keys.json"
    path.write_text("{}\n")
    assert Secret.from_file(path, variable="V", document=True).reveal() == "{}\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "blank"),
        (b" \n\t", "blank"),
        (b"\xff\xfe", "UTF-8"),
        (b"x" * (64 * 1024 + 1), "larger"),
    ],
)
def test_a_file_that_cannot_be_a_secret_is_refused(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    """CF-01: blank, binary and huge files stop the start, as documents too."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    for document in (False, True):
        with pytest.raises(ConfigError, match=problem):
            Secret.from_file(path, variable="V", document=document)


def test_a_missing_file_is_named_by_its_variable(tmp_path: Path) -> None:
    """CF-01: a path that leads nowhere stops the start."""
    with pytest.raises(ConfigError, match="V: cannot read the file"):
        Secret.from_file(tmp_path / "absent", variable="V")
