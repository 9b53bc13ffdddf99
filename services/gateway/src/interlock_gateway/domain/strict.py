"""Read JSON and forms from outside, refusing whatever two readers could read differently.

Edge decides by a parsed copy, the worker parses the stored bytes again. A document
that is ambiguous — a key twice, a number that overflows — could mean one thing here
and another there, so it is refused as a whole.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from interlock_chassis.errors import Kind, ServiceError

# Slack's deepest documents, views full of rich text, stay below 20 levels.
MAX_JSON_DEPTH = 64
# Slack's largest form, a slash command, has 15 fields.
MAX_FORM_FIELDS = 100

_BOM = b"\xef\xbb\xbf"
# Brackets inside of strings do not nest; an unclosed string is left for the parser.
_BRACKET_OR_STRING = re.compile(rb'[][{}]|"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class MalformedDocument(ServiceError):
    """The body is not the document it claims to be."""

    kind = Kind.INVALID
    reason = "MALFORMED_DOCUMENT"


def parse_json_object(document: bytes) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        MalformedDocument: Not UTF-8, a byte order mark, not an object, nested deeper
            than 64 levels, a key twice, or a number that is not finite.
    """
    if document.startswith(_BOM):
        raise MalformedDocument("the document starts with a byte order mark")
    _require_shallow(document)
    try:
        parsed = json.loads(
            document.decode(),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError):
        # The original error quotes the document; numbers of 4,300 digits end here too.
        raise MalformedDocument("the document is not JSON") from None
    if not isinstance(parsed, dict):
        raise MalformedDocument("the document is not a JSON object")
    return parsed


def parse_form(document: bytes) -> dict[str, str]:
    """Parse `application/x-www-form-urlencoded`, every field at most once.

    Raises:
        MalformedDocument: A field twice or without a name, a broken percent escape,
            more than 100 fields, or text that is not UTF-8.
    """
    pieces = document.split(b"&") if document else []
    if len(pieces) > MAX_FORM_FIELDS:
        raise MalformedDocument("the form has too many fields")
    form: dict[str, str] = {}
    for piece in pieces:
        name, _, value = piece.partition(b"=")
        key = _decode_field(name)
        if not key or key in form:
            raise MalformedDocument("the form has a field twice or without a name")
        form[key] = _decode_field(value)
    return form


def _require_shallow(document: bytes) -> None:
    depth = 0
    for token in _BRACKET_OR_STRING.finditer(document):
        first = document[token.start() : token.start() + 1]
        depth += (first in b"[{") - (first in b"]}")
        if depth > MAX_JSON_DEPTH:
            raise MalformedDocument("the document is nested too deeply")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError("a key twice")
        members[name] = value
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("a number that is not finite")


def _decode_field(raw: bytes) -> str:
    if not raw.isascii() or _BROKEN_ESCAPE.search(raw):
        raise MalformedDocument("the form is not percent-encoded")
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise MalformedDocument("the form is not UTF-8") from None
