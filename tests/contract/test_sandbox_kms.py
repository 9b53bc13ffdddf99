"""The Cloud KMS stand-in, asked by Google's own client, held to what is known of the real one."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

import aiohttp
import google_crc32c
import pytest
from google.api_core.exceptions import (
    FailedPrecondition,
    GoogleAPICallError,
    InvalidArgument,
    MethodNotImplemented,
    NotFound,
    PermissionDenied,
    ServiceUnavailable,
)
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceGrpcAsyncIOTransport,
)
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import aio

from interlock_sandbox.kms.server import KmsStandIn, serving_kms
from interlock_sandbox.kms.testing import KEY

OTHER_KEY = KEY.replace("/dek", "/other")
FIRST, SECOND = (f"{KEY}/cryptoKeyVersions/{number}" for number in "12")
PLAINTEXT, AAD = bytes(range(32)), b"place"
State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState


class ManualTime:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_767_225_600.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@dataclass
class Stage:
    """A stand-in with two keys, and Google's client."""

    cloud: KmsStandIn
    client: Any
    time: ManualTime

    async def encrypt(self, **changes: Any) -> Any:
        """Encrypt under the key."""
        request = {"name": KEY, "plaintext": PLAINTEXT, "additional_authenticated_data": AAD}
        return await self.client.encrypt(request={**request, **changes}, retry=None, timeout=5)

    async def decrypt(self, ciphertext: bytes, **changes: Any) -> Any:
        """Decrypt by the key."""
        request = {"name": KEY, "ciphertext": ciphertext, "additional_authenticated_data": AAD}
        return await self.client.decrypt(request={**request, **changes}, retry=None, timeout=5)

    async def set_state(self, name: str, state: Any, mask: str = "state") -> Any:
        """Enable or disable a version."""
        return await self.client.update_crypto_key_version(
            crypto_key_version=kms_v1.CryptoKeyVersion(name=name, state=state),
            update_mask=FieldMask(paths=[mask]),
        )


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Give a stand-in with two keys, and Google's client."""
    time = ManualTime()
    async with serving_kms([KEY, OTHER_KEY], now=time) as cloud:
        channel = aio.insecure_channel(cloud.address)
        transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
        yield Stage(cloud, kms_v1.KeyManagementServiceAsyncClient(transport=transport), time)
        await channel.close()


async def _refused(call: Awaitable[Any], error: type[GoogleAPICallError], text: str) -> None:
    with pytest.raises(error) as refusal:
        await call
    assert text in str(refusal.value)


async def test_a_ciphertext_opens_under_its_key_and_data(stage: Stage) -> None:
    """Encrypt answers with the version used, Decrypt is told the key alone."""
    sealed = await stage.encrypt()
    assert sealed.name == FIRST
    assert sealed.ciphertext_crc32c == google_crc32c.value(sealed.ciphertext)
    assert sealed.protection_level == kms_v1.ProtectionLevel.SOFTWARE
    opened = await stage.decrypt(sealed.ciphertext)
    assert (opened.plaintext, opened.used_primary) == (PLAINTEXT, True)
    assert opened.plaintext_crc32c == google_crc32c.value(PLAINTEXT)
    invalid = "Decryption failed: the ciphertext is invalid."
    await _refused(
        stage.decrypt(sealed.ciphertext, additional_authenticated_data=b"x"),
        InvalidArgument,
        invalid,
    )
    await _refused(stage.decrypt(sealed.ciphertext[:-1]), InvalidArgument, invalid)
    await _refused(
        stage.decrypt(sealed.ciphertext, name=OTHER_KEY),
        InvalidArgument,
        "verify that 'name' refers to the correct CryptoKey",
    )


async def test_checksums_are_confirmed_only_when_they_were_sent(stage: Stage) -> None:
    """`verified_*` is false for what was not sent; a wrong checksum is refused."""
    silent = await stage.encrypt()
    assert not silent.verified_plaintext_crc32c
    assert not silent.verified_additional_authenticated_data_crc32c
    sent = await stage.encrypt(
        plaintext_crc32c=google_crc32c.value(PLAINTEXT),
        additional_authenticated_data_crc32c=google_crc32c.value(AAD),
    )
    assert sent.verified_plaintext_crc32c
    assert sent.verified_additional_authenticated_data_crc32c
    for field in ("plaintext_crc32c", "additional_authenticated_data_crc32c"):
        await _refused(stage.encrypt(**{field: 1}), InvalidArgument, field)
    for field in ("ciphertext_crc32c", "additional_authenticated_data_crc32c"):
        await _refused(stage.decrypt(sent.ciphertext, **{field: 1}), InvalidArgument, field)


async def test_sizes_are_limited(stage: Stage) -> None:
    """64 KiB of plaintext and of associated data pass, one byte more does not."""
    largest = bytes(64 * 1024)
    await stage.encrypt(plaintext=largest, additional_authenticated_data=largest)
    await _refused(stage.encrypt(plaintext=largest + b"x"), InvalidArgument, "plaintext")
    await _refused(
        stage.encrypt(additional_authenticated_data=largest + b"x"), InvalidArgument, "additional"
    )
    await _refused(stage.decrypt(bytes(640 * 1024 + 1)), InvalidArgument, "ciphertext")


async def test_names_are_checked_before_they_are_looked_up(stage: Stage) -> None:
    """A malformed name is INVALID_ARGUMENT, a missing key or version NOT_FOUND."""
    for name in ("dek", KEY + "/", KEY.replace("/dek", f"/{'k' * 64}"), KEY.replace("dek", "d.k")):
        await _refused(stage.encrypt(name=name), InvalidArgument, "name of a CryptoKey")
    absent = KEY.replace("/dek", "/absent")
    await _refused(stage.encrypt(name=absent), NotFound, absent)
    await _refused(stage.encrypt(name=SECOND), NotFound, SECOND)
    # Decrypt takes a key, not a version.
    sealed = await stage.encrypt(name=FIRST)
    assert sealed.name == FIRST
    await _refused(stage.decrypt(sealed.ciphertext, name=FIRST), InvalidArgument, "CryptoKey")
    await _refused(
        stage.client.get_crypto_key(name=absent, retry=None, timeout=5), NotFound, absent
    )


async def test_a_rotation_leaves_old_ciphertexts_open(stage: Stage) -> None:
    """A new version is enabled and not primary; made primary it encrypts, the old one decrypts."""
    old = await stage.encrypt()
    made = await stage.client.create_crypto_key_version(parent=KEY, crypto_key_version={})
    assert (made.name, made.state) == (SECOND, State.ENABLED)
    assert (await stage.encrypt()).name == FIRST
    key = await stage.client.update_crypto_key_primary_version(name=KEY, crypto_key_version_id="2")
    assert key.primary.name == SECOND
    assert key.purpose == kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
    assert (await stage.client.get_crypto_key(name=KEY)).primary.name == SECOND
    assert (await stage.encrypt()).name == SECOND
    opened = await stage.decrypt(old.ciphertext)
    assert (opened.plaintext, opened.used_primary) == (PLAINTEXT, False)


async def test_a_version_that_is_not_enabled_does_nothing(stage: Stage) -> None:
    """Disabled, scheduled for destruction: FAILED_PRECONDITION that names the state."""
    sealed = await stage.encrypt()
    await stage.set_state(FIRST, State.DISABLED)
    disabled = f"{FIRST} is not enabled, current state is: DISABLED."
    await _refused(stage.decrypt(sealed.ciphertext), FailedPrecondition, disabled)
    await _refused(stage.encrypt(), FailedPrecondition, disabled)
    await stage.set_state(FIRST, State.ENABLED)
    assert (await stage.decrypt(sealed.ciphertext)).plaintext == PLAINTEXT
    destroyed = await stage.client.destroy_crypto_key_version(name=FIRST)
    assert destroyed.state == State.DESTROY_SCHEDULED
    assert destroyed.destroy_time.timestamp() == stage.time.now + 30 * 24 * 3600
    await _refused(stage.decrypt(sealed.ciphertext), FailedPrecondition, "DESTROY_SCHEDULED")
    await _refused(stage.set_state(FIRST, State.ENABLED), FailedPrecondition, FIRST)
    await _refused(stage.client.destroy_crypto_key_version(name=FIRST), FailedPrecondition, FIRST)


async def test_only_the_state_can_be_updated(stage: Stage) -> None:
    """Another mask, and any state but ENABLED and DISABLED, is refused."""
    await _refused(stage.set_state(FIRST, State.DISABLED, "name"), InvalidArgument, "update_mask")
    await _refused(stage.set_state(FIRST, State.DESTROYED), FailedPrecondition, "DESTROYED")
    await _refused(stage.set_state(FIRST, State.PENDING_GENERATION), InvalidArgument, "not a state")
    await stage.client.create_crypto_key_version(parent=KEY, crypto_key_version={})
    await stage.set_state(SECOND, State.DISABLED)
    await _refused(
        stage.client.update_crypto_key_primary_version(name=KEY, crypto_key_version_id="2"),
        FailedPrecondition,
        SECOND,
    )


async def test_versions_are_listed_in_pages(stage: Stage) -> None:
    """Every version comes once, by number, whatever the size of a page."""
    for _ in range(4):
        await stage.client.create_crypto_key_version(parent=KEY, crypto_key_version={})
    request = {"parent": KEY, "page_size": 2}
    pages = await stage.client.list_crypto_key_versions(request=request)
    names = [version.name async for version in pages]
    assert names == [f"{KEY}/cryptoKeyVersions/{number}" for number in range(1, 6)]


async def test_what_administrators_change_can_take_its_time(stage: Stage) -> None:
    """Disabling and another primary are eventual, enabling is immediate."""
    sealed = await stage.encrypt()
    stage.cloud.keys.propagation_s = 60
    await stage.client.create_crypto_key_version(parent=KEY, crypto_key_version={})
    await stage.client.update_crypto_key_primary_version(name=KEY, crypto_key_version_id="2")
    await stage.set_state(FIRST, State.DISABLED)
    assert (await stage.encrypt()).name == FIRST
    assert (await stage.decrypt(sealed.ciphertext)).plaintext == PLAINTEXT
    stage.time.now += 60
    assert (await stage.encrypt()).name == SECOND
    await _refused(stage.decrypt(sealed.ciphertext), FailedPrecondition, "DISABLED")
    await stage.set_state(FIRST, State.ENABLED)
    assert (await stage.decrypt(sealed.ciphertext)).plaintext == PLAINTEXT


async def test_what_is_not_served_is_unimplemented(stage: Stage) -> None:
    """Other methods answer as a server without them."""
    with pytest.raises(MethodNotImplemented):
        await stage.client.get_public_key(name=FIRST, retry=None, timeout=5)


async def test_trouble_is_made_over_http(stage: Stage) -> None:
    """The control API causes faults, counts them down, and shows who met them."""
    control = f"{stage.cloud.control_url}/_control"
    async with aiohttp.ClientSession() as http:

        async def post(path: str, body: dict[str, Any]) -> int:
            async with http.post(f"{control}/{path}", json=body) as response:
                return response.status

        async def get(path: str) -> Any:
            async with http.get(f"{control}/{path}") as response:
                return await response.json()

        assert await post("faults", {"method": "Encrypt", "kind": "unavailable", "count": 2}) == 200
        assert await post("faults", {"kind": "permission_denied"}) == 200
        for error in (ServiceUnavailable, ServiceUnavailable, PermissionDenied):
            with pytest.raises(error):
                await stage.encrypt()
        await stage.encrypt()
        assert await get("faults") == {"faults": {}}
        calls = (await get("calls?method=Encrypt&after=2"))["calls"]
        assert [(call["code"], call["fault"]) for call in calls] == [
            ("PERMISSION_DENIED", "permission_denied"),
            ("OK", None),
        ]
        assert await get("secrets") == {"tokens": ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="]}
        assert await post("propagation", {"seconds": 60}) == 200
        state = await get("state")
        assert state["propagation_s"] == 60
        assert [key["name"] for key in state["keys"]] == [KEY, OTHER_KEY]
        assert "kek" not in str(state)
        for wrong in (
            {"kind": "none"},
            {"kind": "hang", "method": "Sign"},
            {"kind": "hang", "count": 0},
        ):
            assert await post("faults", wrong) == 400
        assert await post("propagation", {"seconds": -1}) == 400
        await post("faults", {"kind": "hang"})
        headers = {"Content-Type": "application/json"}
        async with http.delete(f"{control}/faults", headers=headers) as response:
            assert await response.json() == {"faults": {}}
