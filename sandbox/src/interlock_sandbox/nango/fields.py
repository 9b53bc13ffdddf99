"""Bodies and queries, read as strictly as Nango reads them and refused in its words."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

from aiohttp import web

from interlock_sandbox.nango.environment import JSON
from interlock_sandbox.nango.refusals import Refusal

LONGEST_TEXT = 255
MAX_TAGS = 10
MAX_TAG_KEY = 64
_TAG_KEY = re.compile(r"[a-zA-Z][a-zA-Z0-9_\-./]*")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_YES = ("true", "1", "yes", "on", "y", "enabled")
_NO = ("false", "0", "no", "off", "n", "disabled")


class Fields:
    """Read named fields and collect everything that is wrong with them.

    A field is known once it was asked for; `check` refuses the others.
    """

    def __init__(
        self, given: Mapping[str, Any], path: tuple[str, ...] = (), issues: list[JSON] | None = None
    ) -> None:
        self._given = given
        self._path = path
        self._known: set[str] = set()
        self.issues: list[JSON] = [] if issues is None else issues

    @property
    def everything(self) -> JSON:
        """All that was given, for bodies whose names are free."""
        return dict(self._given)

    @classmethod
    async def of(cls, request: web.Request) -> "Fields":
        """Parse a JSON body; one that is not labelled as JSON is not seen.

        Raises:
            Refusal: The body is not JSON, or no object.
        """
        document: Any = {}
        if request.can_read_body and request.content_type == "application/json":
            try:
                document = json.loads(await request.read())
            except (ValueError, RecursionError):
                raise Refusal(
                    HTTPStatus.BAD_REQUEST, "invalid_json", message="The body is not JSON"
                ) from None
        if not isinstance(document, dict):
            fields = cls({})
            fields.mistype("object", document)
            fields.check("invalid_body")
        return cls(document)

    def check(self, code: str) -> None:
        """Refuse what is wrong and what nobody asked for.

        Raises:
            Refusal: Something is.
        """
        self.refuse_unknown()
        if self.issues:
            raise Refusal(HTTPStatus.BAD_REQUEST, code, errors=self.issues)

    def refuse_unknown(self) -> None:
        """Note the names that nobody asked for."""
        unknown = [name for name in self._given if name not in self._known]
        if unknown:
            listed = ", ".join(f'"{name}"' for name in unknown)
            plural = "s" if len(unknown) > 1 else ""
            self.refuse("unrecognized_keys", f"Unrecognized key{plural}: {listed}")

    def refuse(self, code: str, message: str, *path: str) -> None:
        """Note something that is wrong."""
        self.issues.append({"code": code, "message": message, "path": [*self._path, *path]})

    def mistype(self, expected: str, value: Any, *path: str) -> None:
        """Note a value of the wrong type."""
        message = f"Invalid input: expected {expected}, received {_kind(value)}"
        self.refuse("invalid_type", message, *path)

    def require_object(self, name: str) -> None:
        """Note the absence of an object."""
        if self.raw(name) is None:
            self.mistype("object", _ABSENT, name)

    def raw(self, name: str) -> Any:
        """Return a field as it came."""
        self._known.add(name)
        return self._given.get(name)

    def text(self, name: str, *, longest: int = LONGEST_TEXT) -> str:
        """Return a text that must be there and not empty."""
        value = self.find_text(name, longest=longest)
        if name not in self._given:
            self.mistype("string", _ABSENT, name)
        return value or ""

    def find_text(self, name: str, *, shortest: int = 1, longest: int = LONGEST_TEXT) -> str | None:
        """Return a text that may be absent."""
        self._known.add(name)
        if name not in self._given:
            return None
        value = self._given[name]
        return value if self.is_text(value, name, shortest=shortest, longest=longest) else None

    def is_text(self, value: Any, *path: str, shortest: int, longest: int) -> bool:
        """Tell whether a value is a text of this length, and note it if not."""
        if not isinstance(value, str):
            self.mistype("string", value, *path)
        elif len(value) < shortest:
            message = f"Too small: expected string to have >={shortest} characters"
            self.refuse("too_small", message, *path)
        elif len(value) > longest:
            message = f"Too big: expected string to have <={longest} characters"
            self.refuse("too_big", message, *path)
        else:
            return True
        return False

    def find_flag(self, name: str) -> bool:
        """Return a yes or no that a query spells as text; absent is no."""
        self._known.add(name)
        value = str(self._given.get(name, _NO[0])).lower()
        if value not in {*_YES, *_NO}:
            options = "|".join(f'"{each}"' for each in (*_YES, *_NO))
            self.refuse("invalid_value", f"Invalid option: expected one of {options}", name)
        return value in _YES

    def find_number(self, name: str, default: int) -> int:
        """Return a count that a query spells as text."""
        self._known.add(name)
        value = str(self._given.get(name, default))
        if not (value.isascii() and value.isdigit()):
            self.refuse("invalid_type", "Invalid input: expected number, received NaN", name)
            return default
        return int(value)

    def find_instant(self, name: str) -> float | None:
        """Return an instant, in seconds since 1970."""
        text = self.find_text(name)
        if text is None:
            return None
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            self.refuse("invalid_format", "Invalid ISO datetime", name)
            return None

    def find_record(self, name: str) -> JSON | None:
        """Return an object whose names are free."""
        self._known.add(name)
        if name not in self._given:
            return None
        value = self._given[name]
        if not isinstance(value, dict):
            self.mistype("object", value, name)
            return None
        return value

    def find_object(self, name: str) -> "Fields | None":
        """Return an object whose fields are read next."""
        value = self.find_record(name)
        return None if value is None else Fields(value, (*self._path, name), self.issues)

    def find_tags(self) -> dict[str, str] | None:
        """Return tags with their keys in lower case."""
        tags = self.find_record("tags")
        if tags is None:
            return None
        if len(tags) > MAX_TAGS:
            self.refuse("custom", f"Tags cannot contain more than {MAX_TAGS} keys", "tags")
        for key, value in tags.items():
            if len(key) > MAX_TAG_KEY or not _TAG_KEY.fullmatch(key):
                self.refuse("invalid_key", "Invalid key in record", "tags", key)
            self.is_text(value, "tags", key, shortest=1, longest=LONGEST_TEXT)
        return {key.lower(): value for key, value in tags.items()}


_ABSENT = object()


def _kind(value: Any) -> str:
    """Name a type as JavaScript does."""
    if value is _ABSENT:
        return "undefined"
    names = {bool: "boolean", int: "number", float: "number", str: "string"}
    names |= {list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


def read_end_user(fields: Fields) -> JSON | None:
    """Read the deprecated `end_user` and `organization`, as they are shown later."""
    organization: JSON | None = None
    if (group := fields.find_object("organization")) is not None:
        organization = {
            "id": group.text("id"),
            "display_name": group.find_text("display_name", shortest=0),
        }
        group.refuse_unknown()
    person = fields.find_object("end_user")
    if person is None:
        return None
    end_user: JSON = {
        "id": person.text("id"),
        "display_name": person.find_text("display_name", shortest=0),
        "email": person.find_text("email"),
        "tags": person.find_record("tags") or {},
        "organization": organization,
    }
    if end_user["email"] is not None and not _EMAIL.fullmatch(end_user["email"]):
        person.refuse("invalid_format", "Invalid email address", "email")
    for key, value in end_user["tags"].items():
        person.is_text(value, "tags", key, shortest=0, longest=LONGEST_TEXT)
    person.refuse_unknown()
    return end_user


def end_user_tags(end_user: JSON | None) -> dict[str, str]:
    """Return what an end user adds to a connection's tags."""
    if end_user is None:
        return {}
    organization = end_user["organization"] or {}
    named = {
        "end_user_id": end_user["id"],
        "end_user_email": end_user["email"],
        "end_user_display_name": end_user["display_name"],
        "organization_id": organization.get("id"),
        "organization_display_name": organization.get("display_name"),
    }
    tags: dict[str, str] = {key.lower(): value for key, value in end_user["tags"].items()}
    return tags | {key: value for key, value in named.items() if value}
