"""The methods of `google.cloud.kms.v1.KeyManagementService`, with its own messages."""

import asyncio
import base64
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import google_crc32c
import grpc
from google.cloud import kms_v1
from grpc import StatusCode, aio

from interlock_sandbox.kms.crypto_keys import CryptoKeys, Key, Version
from interlock_sandbox.kms.refusal import Refusal, refuse_argument
from interlock_sandbox.kms.trouble import Fault, Trouble

SERVICE = "google.cloud.kms.v1.KeyManagementService"

_KEPT_PLAINTEXTS = 10_000
_DEFAULT_PAGE = 100
_MAX_PAGE = 1000
_ROUTING = "x-goog-request-params"

_Protection = kms_v1.ProtectionLevel
_Purpose = kms_v1.CryptoKey.CryptoKeyPurpose
_Algorithm = kms_v1.CryptoKeyVersion.CryptoKeyVersionAlgorithm


class KeyManagementService:
    """Serve keys.

    Attributes:
        plaintexts: The latest that came or went, to search for where they must not be.
    """

    def __init__(self, keys: CryptoKeys, trouble: Trouble) -> None:
        self.plaintexts: deque[bytes] = deque(maxlen=_KEPT_PLAINTEXTS)
        self._keys = keys
        self._trouble = trouble

    def add_to(self, server: aio.Server) -> None:
        """Register the methods; any other one is UNIMPLEMENTED."""
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(name, act),
                request_deserializer=request.deserialize,
                response_serializer=answer.serialize,
            )
            for name, (act, request, answer) in _METHODS.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _handler(
        self, method: str, act: "_Act"
    ) -> Callable[[Any, aio.ServicerContext[Any, Any]], Awaitable[Any]]:
        async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            metadata = dict(context.invocation_metadata() or ())
            call = self._trouble.begin(method, _name_of(request), str(metadata.get(_ROUTING, "")))
            fault = self._trouble.take(method)
            call.fault = fault.kind if fault else None
            try:
                if fault:
                    await _meet(fault, call.name)
                answer = act(self, request)
            except Refusal as refusal:
                call.code = refusal.code.name
                await context.abort(refusal.code, refusal.message)
            call.code = StatusCode.OK.name
            return _spoil(answer, fault) if fault else answer

        return handle

    # Using keys.

    def encrypt(self, request: kms_v1.EncryptRequest) -> kms_v1.EncryptResponse:
        """Encrypt, and say which checksums of the caller's were right."""
        aad = request.additional_authenticated_data
        verified = {
            "verified_plaintext_crc32c": _check_crc(
                "plaintext", request.plaintext, request.plaintext_crc32c
            ),
            "verified_additional_authenticated_data_crc32c": _check_crc(
                "additional_authenticated_data",
                aad,
                request.additional_authenticated_data_crc32c,
            ),
        }
        version, ciphertext = self._keys.encrypt(request.name, request.plaintext, aad)
        self.plaintexts.append(request.plaintext)
        return kms_v1.EncryptResponse(
            name=version,
            ciphertext=ciphertext,
            ciphertext_crc32c=google_crc32c.value(ciphertext),
            protection_level=_Protection.SOFTWARE,
            **verified,
        )

    def decrypt(self, request: kms_v1.DecryptRequest) -> kms_v1.DecryptResponse:
        """Decrypt what any enabled version of the key encrypted."""
        aad = request.additional_authenticated_data
        _check_crc("ciphertext", request.ciphertext, request.ciphertext_crc32c)
        _check_crc(
            "additional_authenticated_data", aad, request.additional_authenticated_data_crc32c
        )
        plaintext, used_primary = self._keys.decrypt(request.name, request.ciphertext, aad)
        self.plaintexts.append(plaintext)
        return kms_v1.DecryptResponse(
            plaintext=plaintext,
            plaintext_crc32c=google_crc32c.value(plaintext),
            used_primary=used_primary,
            protection_level=_Protection.SOFTWARE,
        )

    # Administering keys.

    def get_crypto_key(self, request: kms_v1.GetCryptoKeyRequest) -> kms_v1.CryptoKey:
        """Show a key with its primary version."""
        return _show_key(self._keys.key(request.name))

    def list_crypto_key_versions(
        self, request: kms_v1.ListCryptoKeyVersionsRequest
    ) -> kms_v1.ListCryptoKeyVersionsResponse:
        """List the versions of a key by number."""
        if request.filter or request.order_by:
            refuse_argument("filter and order_by are not served.")
        versions = self._keys.key(request.parent).versions
        token = request.page_token or "0"
        if not token.isascii() or not token.isdigit() or request.page_size < 0:
            refuse_argument("The page token or size is invalid.")
        start, size = int(token), min(request.page_size or _DEFAULT_PAGE, _MAX_PAGE)
        end = start + size
        return kms_v1.ListCryptoKeyVersionsResponse(
            crypto_key_versions=[_show_version(each) for each in versions[start:end]],
            next_page_token=str(end) if end < len(versions) else "",
            total_size=len(versions),
        )

    def create_crypto_key_version(
        self, request: kms_v1.CreateCryptoKeyVersionRequest
    ) -> kms_v1.CryptoKeyVersion:
        """Make a version; it is enabled and not the primary one."""
        return _show_version(self._keys.create_version(request.parent))

    def update_crypto_key_primary_version(
        self, request: kms_v1.UpdateCryptoKeyPrimaryVersionRequest
    ) -> kms_v1.CryptoKey:
        """Make another version the primary one."""
        return _show_key(self._keys.set_primary(request.name, request.crypto_key_version_id))

    def update_crypto_key_version(
        self, request: kms_v1.UpdateCryptoKeyVersionRequest
    ) -> kms_v1.CryptoKeyVersion:
        """Enable or disable a version."""
        if list(request.update_mask.paths) != ["state"]:
            refuse_argument("update_mask must be 'state'.")
        version = request.crypto_key_version
        return _show_version(self._keys.set_state(version.name, version.state))

    def destroy_crypto_key_version(
        self, request: kms_v1.DestroyCryptoKeyVersionRequest
    ) -> kms_v1.CryptoKeyVersion:
        """Schedule the destruction of a version."""
        return _show_version(self._keys.destroy(request.name))

    def list_plaintexts(self) -> list[str]:
        """List the kept plaintexts, base64."""
        return [base64.b64encode(each).decode() for each in self.plaintexts]


_Act = Callable[[KeyManagementService, Any], Any]

_METHODS: Mapping[str, tuple[_Act, Any, Any]] = MappingProxyType(
    {
        "Encrypt": (KeyManagementService.encrypt, kms_v1.EncryptRequest, kms_v1.EncryptResponse),
        "Decrypt": (KeyManagementService.decrypt, kms_v1.DecryptRequest, kms_v1.DecryptResponse),
        "GetCryptoKey": (
            KeyManagementService.get_crypto_key,
            kms_v1.GetCryptoKeyRequest,
            kms_v1.CryptoKey,
        ),
        "ListCryptoKeyVersions": (
            KeyManagementService.list_crypto_key_versions,
            kms_v1.ListCryptoKeyVersionsRequest,
            kms_v1.ListCryptoKeyVersionsResponse,
        ),
        "CreateCryptoKeyVersion": (
            KeyManagementService.create_crypto_key_version,
            kms_v1.CreateCryptoKeyVersionRequest,
            kms_v1.CryptoKeyVersion,
        ),
        "UpdateCryptoKeyPrimaryVersion": (
            KeyManagementService.update_crypto_key_primary_version,
            kms_v1.UpdateCryptoKeyPrimaryVersionRequest,
            kms_v1.CryptoKey,
        ),
        "UpdateCryptoKeyVersion": (
            KeyManagementService.update_crypto_key_version,
            kms_v1.UpdateCryptoKeyVersionRequest,
            kms_v1.CryptoKeyVersion,
        ),
        "DestroyCryptoKeyVersion": (
            KeyManagementService.destroy_crypto_key_version,
            kms_v1.DestroyCryptoKeyVersionRequest,
            kms_v1.CryptoKeyVersion,
        ),
    }
)
METHODS = frozenset(_METHODS)


async def _meet(fault: Fault, name: str) -> None:
    """Have the fault happen that comes before the act."""
    match fault.kind:
        case "delay":
            await asyncio.sleep(fault.seconds)
        case "hang":
            # Until the asker hangs up.
            await asyncio.Event().wait()
        case "unavailable":
            raise Refusal(StatusCode.UNAVAILABLE, "The service is currently unavailable.")
        case "permission_denied":
            raise Refusal(
                StatusCode.PERMISSION_DENIED,
                f"Permission denied on resource '{name}' (or it may not exist).",
            )
        case _:
            return


def _spoil(answer: Any, fault: Fault) -> Any:
    """Have the fault happen that comes after the act."""
    is_encryption = isinstance(answer, kms_v1.EncryptResponse)
    is_decryption = isinstance(answer, kms_v1.DecryptResponse)
    match fault.kind:
        case "wrong_crc" if is_encryption:
            answer.ciphertext_crc32c ^= 1
        case "wrong_crc" if is_decryption:
            answer.plaintext_crc32c ^= 1
        case "unverified" if is_encryption:
            answer.verified_plaintext_crc32c = False
            answer.verified_additional_authenticated_data_crc32c = False
        case "other_key" if is_encryption:
            answer.name = answer.name.replace("/cryptoKeyVersions/", "-other/cryptoKeyVersions/")
        case "other_plaintext" if is_decryption:
            answer.plaintext = (answer.plaintext * fault.size)[: fault.size]
            answer.plaintext_crc32c = google_crc32c.value(answer.plaintext)
        case _:
            pass
    return answer


def _check_crc(field: str, value: bytes, crc: Any) -> bool:
    """Tell whether a checksum was sent; refuse a wrong one."""
    if crc is None:
        return False
    if google_crc32c.value(value) != crc:
        refuse_argument(f"The checksum in field {field}_crc32c did not match the data.")
    return True


def _name_of(request: Any) -> str:
    for field in ("name", "parent"):
        if name := getattr(request, field, ""):
            return str(name)
    version: Any = getattr(request, "crypto_key_version", None)
    return str(version.name) if version else ""


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _show_version(version: Version) -> kms_v1.CryptoKeyVersion:
    return kms_v1.CryptoKeyVersion(
        name=version.name,
        state=version.state.told,
        protection_level=_Protection.SOFTWARE,
        algorithm=_Algorithm.GOOGLE_SYMMETRIC_ENCRYPTION,
        create_time=_instant(version.created_at),
        generate_time=_instant(version.created_at),
        destroy_time=_instant(version.destroy_at),
    )


def _show_key(key: Key) -> kms_v1.CryptoKey:
    return kms_v1.CryptoKey(
        name=key.name,
        primary=_show_version(key.versions[key.primary.told - 1]),
        purpose=_Purpose.ENCRYPT_DECRYPT,
        create_time=_instant(key.created_at),
        version_template=kms_v1.CryptoKeyVersionTemplate(
            protection_level=_Protection.SOFTWARE,
            algorithm=_Algorithm.GOOGLE_SYMMETRIC_ENCRYPTION,
        ),
    )
