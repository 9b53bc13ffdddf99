"""Tokens as bytes: base64url segments and JSON, read without forgiveness.

The libraries that write tokens are right; those that read them also take
padding, other alphabets, repeated keys and UTF-16. Each of these lets two
readers see two different tokens, so none is taken here.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

# The largest token taken; ours are well under 1 KiB, and the limit of every field that carries one.
MAX_TOKEN_CHARS = 4096

KID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
"""How a key may be named, in documents and in token headers."""

_BASE64URL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class Malformed(Exception):
    """The text is not what it should be; the message is one of a few fixed words."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A token taken apart; nothing of it is trusted yet.

    Attributes:
        header: The header's members.
        payload: The payload's bytes, not parsed before the signature is verified.
        signed: The bytes the signature is over.
        signature: The signature.
    """

    header: Mapping[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


def take_apart(token: str) -> Parts:
    """Split a token into its three segments and read the header.

    Raises:
        Malformed: Too large, not three strict segments, or no JSON header.
    """
    if len(token) > MAX_TOKEN_CHARS:
        raise Malformed("size")
    segments = token.split(".")
    if len(segments) != 3:  # noqa: PLR2004 - header, payload, signature.
        raise Malformed("segments")
    header, payload, signature = (decode_segment(segment) for segment in segments)
    signed, _, _ = token.rpartition(".")
    return Parts(parse_object(header), payload, signed.encode(), signature)


def put_together(header: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    """Write the part of a token that is signed."""
    return ".".join(
        encode_segment(json.dumps(part, separators=(",", ":"), allow_nan=False).encode())
        for part in (header, payload)
    )


def decode_segment(segment: str) -> bytes:
    """Decode base64url without padding, in its one canonical spelling.

    Raises:
        Malformed: Empty, padded, of another alphabet, or with stray bits at the end.
    """
    if not _BASE64URL.fullmatch(segment):
        raise Malformed("base64url")
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error:
        raise Malformed("base64url") from None
    if encode_segment(data) != segment:
        raise Malformed("base64url")
    return data


def encode_segment(data: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parse_object(document: bytes) -> dict[str, Any]:
    """Parse one JSON object, UTF-8 only.

    Raises:
        Malformed: Not UTF-8, not JSON, not an object, a key twice, `NaN` or
            `Infinity`, or nested too deeply.
    """
    try:
        # The bytes are decoded here because json.loads would guess UTF-16 and UTF-32.
        value = json.loads(
            document.decode(), object_pairs_hook=_object_without_repeats, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        # The original error carries the document.
        raise Malformed("json") from None
    if type(value) is not dict:
        raise Malformed("json")
    return value


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed("repeated key")
    return members


def _refuse(_constant: str) -> NoReturn:
    raise Malformed("json")
