"""The transit engine of OpenBao, or of a Vault that speaks the same API.

A wrapped key is stored as the bytes inside `vault:v2:…`, its version beside
it. The server takes several spellings of one ciphertext (`v0` for `v1`, line
breaks in base64); only the one that is built here ever reaches it.
"""

import asyncio
import base64
import binascii
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import WrappedKey
from interlock_token_vault.adapters.remote_kms import KMS_BUDGET, AskAgain
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.vault import KekDisabled, KmsUnavailable

TOKEN_VARIABLE = "INTERLOCK_OPENBAO_TOKEN_FILE"  # noqa: S105 - A variable's name.
CA_VARIABLE = "INTERLOCK_OPENBAO_CA_FILE"

# Enough for many times our 32 bytes, and for any list of errors.
_MAX_ANSWER_BYTES = 64 * 1024
_TOKEN = re.compile(r"[!-~]{1,4096}")
_CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]+={0,2})")
_VERSION = re.compile(r"(.+):v([1-9][0-9]{0,8})")
# What a decryption is answered with, under 400 as everything else, when the
# key or its version is gone, retired, or not there yet.
_KEY_GONE = ("encryption key not found", "disallowed by policy", "version is too new")


@dataclass(frozen=True, slots=True)
class TransitKey:
    """Which key of which engine.

    Attributes:
        mount: Where the engine is mounted, such as `transit`.
        key: Its name; of a kind that takes associated data, such as `aes256-gcm96`.
        namespace: Where the mount is; empty for the root namespace.
    """

    mount: str
    key: str
    namespace: str = ""

    def __str__(self) -> str:
        """Name the key as it is stored beside what it wraps."""
        place = f"{self.namespace.strip('/')}/{self.mount}".strip("/")
        return f"{place}/keys/{self.key}"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Mapping[str, Any]

    def is_key_gone(self) -> bool:
        """Tell a key that may not be used from a ciphertext that does not open."""
        errors = self.body.get("errors")
        texts = " ".join(map(str, errors)) if isinstance(errors, list) else ""
        return any(known in texts for known in _KEY_GONE)


class OpenBaoKms:
    """The Kms port over one transit key; makes one attempt a call.

    Reads its token from a file, again whenever the token is refused.

    Args:
        session: Without cookies and without credentials of its own.
        url: Where the server is.
        key: Which key; its newest version wraps.
        token_file: Kept current by an agent, or by people.

    Raises:
        ConfigError: The token cannot be read.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: URL, key: TransitKey, token_file: Path
    ) -> None:
        self._session = session
        self._url = url.joinpath("v1", *key.mount.split("/"))
        self._key = key
        self._token_file = token_file
        self._token = _read_token(token_file)

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wrap a data key; see Kms."""
        fields = {"plaintext": _encode(dek.reveal()), "associated_data": _encode(bound)}
        answer = await self._ask("encrypt", fields)
        if answer.status == HTTPStatus.BAD_REQUEST:
            # The request is ours throughout, so it is the key that cannot do it.
            raise KekDisabled
        found = _CIPHERTEXT.fullmatch(_text_of(answer, "ciphertext"))
        if found is None:
            raise AskAgain(metadata={"cause": "no ciphertext"})
        return WrappedKey(f"{self._key}:v{found[1]}", _decode(found[2]))

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap a data key; see Kms."""
        version = _VERSION.fullmatch(key.kek_version)
        if version is None or version[1] != str(self._key):
            raise KekDisabled
        ciphertext = f"vault:v{version[2]}:{_encode(key.wrapped)}"
        fields = {"ciphertext": ciphertext, "associated_data": _encode(bound)}
        answer = await self._ask("decrypt", fields)
        if answer.status == HTTPStatus.BAD_REQUEST:
            raise KekDisabled if answer.is_key_gone() else CannotOpen
        return Secret(_decode(_text_of(answer, "plaintext")))

    async def _ask(self, verb: str, fields: Mapping[str, str]) -> _Answer:
        """Ask, a second time with a fresh token where there is one; 200 or 400 comes back."""
        token = self._token
        answer = await self._post(verb, fields, token)
        if answer.status == HTTPStatus.FORBIDDEN:
            fresh = self._find_fresh_token(token)
            if fresh is not None:
                answer = await self._post(verb, fields, fresh)
        if answer.status in {HTTPStatus.OK, HTTPStatus.BAD_REQUEST}:
            return answer
        if answer.status in {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}:
            # The token, the mount or the namespace: only a person can change that.
            raise KekDisabled
        cause = {"cause": f"HTTP {answer.status}"}
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise KmsUnavailable(metadata=cause)
        # 503 while sealed; a redirect would take the data key to another server.
        raise AskAgain(metadata=cause)

    async def _post(self, verb: str, fields: Mapping[str, str], token: Secret[str]) -> _Answer:
        headers = {"X-Vault-Token": token.reveal(), "X-Vault-Request": "true"}
        if self._key.namespace:
            headers["X-Vault-Namespace"] = self._key.namespace
        try:
            async with self._session.post(
                self._url / verb / self._key.key,
                json=fields,
                headers=headers,
                allow_redirects=False,
            ) as response:
                return _Answer(response.status, await _read_json(response))
        except (aiohttp.ClientError, TimeoutError) as error:
            # The error may hold the request; its kind says enough.
            raise AskAgain(metadata={"cause": type(error).__name__}) from None

    def _find_fresh_token(self, refused: Secret[str]) -> Secret[str] | None:
        """Read the token anew; None when it is still the refused one, or cannot be read."""
        try:
            self._token = _read_token(self._token_file)
        except ConfigError:
            return None
        return None if self._token == refused else self._token


@asynccontextmanager
async def open_openbao_kms(
    url: URL, key: TransitKey, *, token_file: Path, ca_file: Path | None
) -> AsyncIterator[OpenBaoKms]:
    """Open a connection pool to OpenBao, closed on leaving; asks nothing yet.

    Args:
        url: Where the server is.
        key: Which key.
        token_file: Holds the token.
        ca_file: PEM of the authority that signs the server; None trusts the system's.

    Raises:
        ConfigError: The token or the authority cannot be read.
    """
    try:
        trust = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(CA_VARIABLE, f"cannot be used: {error.strerror}") from None
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=KMS_BUDGET.total_seconds()),
        connector=aiohttp.TCPConnector(ssl=trust),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield OpenBaoKms(session, url, key, token_file)


def _read_token(path: Path) -> Secret[str]:
    # Most tools that print a token end the line.
    token = Secret.from_file(path, variable=TOKEN_VARIABLE, document=True).reveal().strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(TOKEN_VARIABLE, "the file does not hold a token")
    return Secret(token)


async def _read_json(response: aiohttp.ClientResponse) -> Mapping[str, Any]:
    """Read a bounded JSON object; whatever else it is counts as an empty one."""
    try:
        await response.content.readexactly(_MAX_ANSWER_BYTES)
    except asyncio.IncompleteReadError as shorter:
        try:
            body = json.loads(shorter.partial)
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}
    return {}


def _text_of(answer: _Answer, field: str) -> str:
    data = answer.body.get("data")
    text = data.get(field) if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise AskAgain(metadata={"cause": f"no {field}"})
    return text


def _encode(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        # The original error may quote the text.
        raise AskAgain(metadata={"cause": "no base64"}) from None
