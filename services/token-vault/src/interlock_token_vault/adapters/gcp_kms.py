"""Google Cloud KMS, with Google's own client.

The client checks no checksum itself and retries for a minute by default, so
both are done otherwise here. Importing this module takes more than a second
and 40 MB; only a vault that is told to use it does.

A wrapped key is stored as

    binding (32) | ciphertext of the KMS

Cloud KMS finds the key version in its ciphertext and does not say which it
was. The binding is an HMAC under the data key itself over the version and the
ciphertext, so that the version stored beside a wrapped key cannot be swapped:
whoever destroys "unused" versions relies on it.
"""

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

import google.auth
import google_crc32c
import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import DefaultCredentialsError
from google.cloud.kms_v1 import (
    DecryptRequest,
    EncryptRequest,
    KeyManagementServiceAsyncClient,
)
from google.cloud.kms_v1.services.key_management_service import transports
from google.cloud.kms_v1.services.key_management_service.transports import grpc_asyncio
from grpc import aio
from yarl import URL

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters.kms_keys import WrappedKey
from interlock_token_vault.adapters.remote_kms import KMS_BUDGET, AskAgain
from interlock_token_vault.domain.envelope import DEK_BYTES, CannotOpen
from interlock_token_vault.vault import KekDisabled, KmsUnavailable

_LABEL = b"interlock wrapped dek v1 cloud kms"
_BINDING_BYTES = 32
# A connection must be back long before 5 s have passed: by default attempts
# are up to 2 min apart, one of them may take 20 s, and a connection whose
# other end vanished is noticed after 15 min. More frequent pings than one each
# 30 s would make Google close the connection.
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 3000),
)
# The project, key or version is not there, or not for us, or not enabled: only
# a person can change that.
_DISABLED = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)
# Asking again at once would use up more of the same quota.
_NOT_NOW = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED})

_T = TypeVar("_T")


class GcpKms:
    """The Kms port over one CryptoKey; makes one attempt a call.

    An answer whose checksums do not hold, that does not confirm ours, or that
    names another key is discarded with AskAgain.

    Args:
        client: Reaches Cloud KMS.
        key: `projects/…/locations/…/keyRings/…/cryptoKeys/…`; its primary
            version wraps. A version's whole name is the version of the Kms port.
    """

    def __init__(self, client: KeyManagementServiceAsyncClient, key: str) -> None:
        self._client = client
        self._key = key
        self._version = re.compile(re.escape(key) + r"/cryptoKeyVersions/[1-9][0-9]{0,9}")

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wrap a data key; see Kms."""
        request = EncryptRequest(
            name=self._key,
            plaintext=dek.reveal(),
            plaintext_crc32c=google_crc32c.value(dek.reveal()),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=google_crc32c.value(bound),
        )
        answer = await self._answer(
            self._client.encrypt(request=request, retry=None, timeout=KMS_BUDGET.total_seconds()),
            # The request is ours throughout, so it is the key that cannot do it.
            invalid=KekDisabled,
        )
        if not (
            answer.verified_plaintext_crc32c
            and answer.verified_additional_authenticated_data_crc32c
        ):
            raise AskAgain(metadata={"cause": "checksums not confirmed"})
        if google_crc32c.value(answer.ciphertext) != answer.ciphertext_crc32c:
            raise AskAgain(metadata={"cause": "wrong checksum"})
        if not self._version.fullmatch(answer.name):
            raise AskAgain(metadata={"cause": "name of another key"})
        binding = _bind(dek, answer.name, answer.ciphertext)
        return WrappedKey(answer.name, binding + answer.ciphertext)

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap a data key; see Kms."""
        if not self._version.fullmatch(key.kek_version):
            raise KekDisabled
        binding, ciphertext = key.wrapped[:_BINDING_BYTES], key.wrapped[_BINDING_BYTES:]
        if not ciphertext:
            raise CannotOpen
        request = DecryptRequest(
            name=self._key,
            ciphertext=ciphertext,
            ciphertext_crc32c=google_crc32c.value(ciphertext),
            additional_authenticated_data=bound,
            additional_authenticated_data_crc32c=google_crc32c.value(bound),
        )
        answer = await self._answer(
            self._client.decrypt(request=request, retry=None, timeout=KMS_BUDGET.total_seconds()),
            invalid=CannotOpen,
        )
        if google_crc32c.value(answer.plaintext) != answer.plaintext_crc32c:
            raise AskAgain(metadata={"cause": "wrong checksum"})
        if len(answer.plaintext) != DEK_BYTES:
            # An HMAC alone would take a key and the same with zeros after it for one.
            raise CannotOpen
        dek = Secret(answer.plaintext)
        if not hmac.compare_digest(binding, _bind(dek, key.kek_version, ciphertext)):
            raise CannotOpen
        return dek

    async def _answer(
        self, call: Awaitable[_T], *, invalid: type[CannotOpen] | type[KekDisabled]
    ) -> _T:
        try:
            return await call
        except GoogleAPICallError as error:
            _refuse(error, invalid)


@asynccontextmanager
async def open_gcp_kms(url: URL, key: str) -> AsyncIterator[GcpKms]:
    """Open a connection to Cloud KMS, closed on leaving.

    Looks for the credentials of the machine, which may ask its metadata server;
    asks Cloud KMS nothing yet.

    Args:
        url: `https://cloudkms.googleapis.com` or a regional endpoint; `http`
            means a stand-in on this machine, without TLS and credentials.
        key: As in GcpKms.

    Raises:
        ConfigError: There are no credentials.
    """
    if url.scheme == "http":
        channel = aio.insecure_channel(f"{url.host}:{url.port}", options=_CHANNEL)
        transport = transports.KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
    else:
        transport = await _open_transport(url)
    client = KeyManagementServiceAsyncClient(transport=transport)
    # At DEBUG, which a variable of Google's turns on, it writes data keys down.
    logging.getLogger(grpc_asyncio.__name__).setLevel(logging.INFO)
    try:
        yield GcpKms(client, key)
    finally:
        await transport.close()  # type: ignore[no-untyped-call]


async def _open_transport(url: URL) -> transports.KeyManagementServiceGrpcAsyncIOTransport:
    official = transports.KeyManagementServiceGrpcAsyncIOTransport
    try:
        credentials, _ = await asyncio.to_thread(google.auth.default, scopes=official.AUTH_SCOPES)
    except DefaultCredentialsError:
        # The original error may quote a credentials file.
        raise ConfigError("INTERLOCK_KMS", "gcp, but there are no Google credentials") from None
    return official(
        host=f"{url.host}:{url.port}",
        credentials=credentials,
        channel=partial(_create_channel, official),
    )


def _create_channel(
    official: type[transports.KeyManagementServiceGrpcAsyncIOTransport],
    host: str,
    *,
    options: list[tuple[str, int]],
    **arguments: Any,
) -> aio.Channel:
    """Create the channel that the client would, with our own patience."""
    channel: aio.Channel = official.create_channel(host, options=[*options, *_CHANNEL], **arguments)
    return channel


def _refuse(error: GoogleAPICallError, invalid: type[CannotOpen] | type[KekDisabled]) -> NoReturn:
    code = error.grpc_status_code
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        raise invalid from error
    if code in _DISABLED:
        raise KekDisabled from error
    cause = {"cause": code.name if code else "UNKNOWN"}
    if code in _NOT_NOW:
        raise KmsUnavailable(metadata=cause) from error
    raise AskAgain(metadata=cause) from error


def _bind(dek: Secret[bytes], version: str, ciphertext: bytes) -> bytes:
    # No version holds a zero byte, so the parts cannot be shifted.
    return hmac.digest(
        dek.reveal(), b"\0".join((_LABEL, version.encode(), ciphertext)), hashlib.sha256
    )
