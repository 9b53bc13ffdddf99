"""The transit engine of a real OpenBao: tokens, namespaces, seals, TLS, and wrong answers."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from interlock_chassis.clock import SystemClock
from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_sandbox.kms.testing import ROOT_TOKEN, OpenBao, serving_openbao
from interlock_token_vault.adapters.kms_keys import Kms, WrappedKey
from interlock_token_vault.adapters.openbao_kms import TransitKey, open_openbao_kms
from interlock_token_vault.adapters.remote_kms import AskAgain, RemoteKms
from interlock_token_vault.domain.envelope import CannotOpen
from interlock_token_vault.vault import KekDisabled, KmsUnavailable

DEK = Secret(bytes(range(32)))
PLACE = b"environment, app and installation"
# What docs/adr/0013 tells operators to allow.
POLICY = """
path "transit/encrypt/dek" { capabilities = ["update"] }
path "transit/decrypt/dek" { capabilities = ["update"] }
"""


@asynccontextmanager
async def _opened(
    url: str, folder: Path, *, key: TransitKey | None = None, ca_file: Path | None = None
) -> AsyncIterator[Kms]:
    """Use a key with the token in the folder's file, as the vault does."""
    async with open_openbao_kms(
        URL(url),
        key or TransitKey("transit", "dek"),
        token_file=folder / "token",
        ca_file=ca_file,
    ) as attempt:
        yield RemoteKms(attempt, SystemClock(), pauses=(timedelta(0), timedelta(0)))


@pytest.fixture
async def bao(tmp_path: Path) -> AsyncIterator[OpenBao]:
    """Serve an OpenBao, with a token of root's in a file."""
    (tmp_path / "token").write_text(ROOT_TOKEN)
    async with serving_openbao(tmp_path) as serving:
        yield serving


@pytest.mark.openbao
async def test_two_rights_are_enough(bao: OpenBao, tmp_path: Path) -> None:
    """A token that may encrypt and decrypt serves; it can neither read nor make keys."""
    (tmp_path / "token").write_text(await bao.make_token(POLICY))
    async with _opened(bao.url, tmp_path) as kms:
        wrapped = await kms.wrap(DEK, PLACE)
        assert await kms.unwrap(wrapped, PLACE) == DEK
    async with _opened(bao.url, tmp_path, key=TransitKey("transit", "mistyped")) as kms:
        with pytest.raises(KekDisabled):
            await kms.wrap(DEK, PLACE)


@pytest.mark.openbao
async def test_a_renewed_token_is_read_from_its_file(bao: OpenBao, tmp_path: Path) -> None:
    """A refused token is exchanged for the file's; a refused file is a matter for people."""
    token_file = tmp_path / "token"
    first, second = await bao.make_token(POLICY), await bao.make_token(POLICY)
    # As most tools write it.
    token_file.write_text(f"{first}\n")
    async with _opened(bao.url, tmp_path) as kms:
        wrapped = await kms.wrap(DEK, PLACE)
        await bao.call("POST", "auth/token/revoke", {"token": first})
        with pytest.raises(KekDisabled):
            await kms.unwrap(wrapped, PLACE)
        token_file.write_text(second)
        assert await kms.unwrap(wrapped, PLACE) == DEK
        await bao.call("POST", "auth/token/revoke", {"token": second})
        token_file.unlink()
        with pytest.raises(KekDisabled):
            await kms.unwrap(wrapped, PLACE)


@pytest.mark.openbao
async def test_a_sealed_server_is_used_again_when_it_is_open(bao: OpenBao, tmp_path: Path) -> None:
    """KM-12: sealed means UNAVAILABLE, and the first question after unsealing is answered."""
    async with _opened(bao.url, tmp_path) as kms:
        wrapped = await kms.wrap(DEK, PLACE)
        await bao.seal()
        with pytest.raises(KmsUnavailable):
            await kms.unwrap(wrapped, PLACE)
        await bao.unseal()
        assert await kms.unwrap(wrapped, PLACE) == DEK


@pytest.mark.openbao
async def test_keys_of_a_namespace_are_its_own(bao: OpenBao, tmp_path: Path) -> None:
    """Mount, key and namespace together name the key, and no other one unwraps."""
    await bao.call("POST", "sys/namespaces/team")
    await bao.call("POST", "sys/mounts/crypto/transit", {"type": "transit"}, "team")
    await bao.call("POST", "crypto/transit/keys/dek", {"type": "aes256-gcm96"}, "team")
    theirs = TransitKey("crypto/transit", "dek", "team")
    async with _opened(bao.url, tmp_path, key=theirs) as kms:
        wrapped = await kms.wrap(DEK, PLACE)
        assert wrapped.kek_version == "team/crypto/transit/keys/dek:v1"
        assert await kms.unwrap(wrapped, PLACE) == DEK
    async with _opened(bao.url, tmp_path) as kms:
        with pytest.raises(KekDisabled):
            await kms.unwrap(wrapped, PLACE)
        with pytest.raises(CannotOpen):
            await kms.unwrap(WrappedKey("transit/keys/dek:v1", wrapped.wrapped), PLACE)
    for nowhere in (TransitKey("transit", "dek", "absent"), TransitKey("absent", "dek")):
        async with _opened(bao.url, tmp_path, key=nowhere) as kms:
            with pytest.raises(KekDisabled):
                await kms.wrap(DEK, PLACE)


@pytest.mark.openbao
async def test_a_key_of_the_wrong_kind_wraps_nothing(bao: OpenBao, tmp_path: Path) -> None:
    """A key that cannot bind a data key to its place is refused, not used without."""
    await bao.call("POST", "transit/keys/rsa", {"type": "rsa-2048"})
    await bao.call("POST", "transit/keys/derived", {"type": "aes256-gcm96", "derived": True})
    for name in ("rsa", "derived"):
        async with _opened(bao.url, tmp_path, key=TransitKey("transit", name)) as kms:
            with pytest.raises(KekDisabled):
                await kms.wrap(DEK, PLACE)


@pytest.mark.openbao
async def test_a_deleted_key_and_a_version_to_come_are_disabled_ones(
    bao: OpenBao, tmp_path: Path
) -> None:
    """What the server does not have, as after a restore of it, is a matter for people."""
    async with _opened(bao.url, tmp_path) as kms:
        wrapped = await kms.wrap(DEK, PLACE)
        with pytest.raises(KekDisabled):
            await kms.unwrap(WrappedKey("transit/keys/dek:v2", wrapped.wrapped), PLACE)
        await bao.call("POST", "transit/keys/dek/config", {"deletion_allowed": True})
        await bao.call("DELETE", "transit/keys/dek")
        with pytest.raises(KekDisabled):
            await kms.unwrap(wrapped, PLACE)


@pytest.mark.openbao
async def test_one_wrapped_key_has_one_spelling(bao: OpenBao, tmp_path: Path) -> None:
    """The server opens `v0` as `v1`; a version spelt otherwise never reaches it."""
    async with _opened(bao.url, tmp_path) as kms:
        wrapped = await kms.wrap(DEK, PLACE)
        for version in ("v0", "v01", "v1:", "V1", "v1\n"):
            with pytest.raises(KekDisabled):
                await kms.unwrap(WrappedKey(f"transit/keys/dek:{version}", wrapped.wrapped), PLACE)


@pytest.mark.openbao
async def test_tls_is_trusted_by_its_own_authority_alone(tmp_path: Path) -> None:
    """The named authority opens the way; without it the server is a stranger."""
    (tmp_path / "token").write_text(ROOT_TOKEN)
    async with serving_openbao(tmp_path, tls=True) as bao:
        async with _opened(bao.url, tmp_path, ca_file=bao.ca_file) as kms:
            assert await kms.unwrap(await kms.wrap(DEK, PLACE), PLACE) == DEK
        async with _opened(bao.url, tmp_path) as kms:
            with pytest.raises(KmsUnavailable) as refusal:
                await kms.wrap(DEK, PLACE)
    assert "CertificateError" in refusal.value.metadata["cause"]


# Answers that no OpenBao gives.


@dataclass
class Impostor:
    """A server that answers everything alike, and keeps what it was asked."""

    url: str = ""
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        """Answer as told."""
        self.asked.append(request.path)
        if isinstance(self.body, str):
            return web.Response(status=self.status, text=self.body, headers=self.headers)
        return web.json_response(self.body, status=self.status, headers=self.headers)


@pytest.fixture
async def impostor(tmp_path: Path) -> AsyncIterator[Impostor]:
    """Serve an impostor, with a token in a file."""
    (tmp_path / "token").write_text("example-token")
    made = Impostor()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", made.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()


def _data(**fields: object) -> dict[str, Any]:
    return {"data": fields}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("", id="nothing"),
        pytest.param("<html>", id="html"),
        pytest.param("x" * 70_000, id="too large"),
        pytest.param([], id="list"),
        pytest.param({"data": None}, id="no data"),
        pytest.param(_data(ciphertext=1, plaintext=1), id="numbers"),
        pytest.param(_data(ciphertext="vault:v0:AAAA", plaintext="!"), id="version 0"),
        pytest.param(_data(ciphertext="AAAA", plaintext="A"), id="no prefix"),
        pytest.param(_data(ciphertext="vault:v1:A", plaintext="AAA"), id="no base64"),
        pytest.param(_data(ciphertext="vault:v1:", plaintext="A==="), id="empty"),
    ],
)
async def test_what_is_no_answer_is_discarded(
    impostor: Impostor, tmp_path: Path, body: object
) -> None:
    """An answer of another form is asked for again twice, and then the KMS is away."""
    impostor.body = body
    async with _opened(impostor.url, tmp_path) as kms:
        with pytest.raises(KmsUnavailable):
            await kms.wrap(DEK, PLACE)
        with pytest.raises(KmsUnavailable):
            await kms.unwrap(WrappedKey("transit/keys/dek:v1", b"wrapped"), PLACE)
    assert len(impostor.asked) == 6


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [
        (307, AskAgain, 3),
        (400, KekDisabled, 1),
        (403, KekDisabled, 1),
        (404, KekDisabled, 1),
        (412, AskAgain, 3),
        (429, KmsUnavailable, 1),
        (500, AskAgain, 3),
        (503, AskAgain, 3),
    ],
)
async def test_a_status_says_whether_asking_again_helps(
    impostor: Impostor, tmp_path: Path, status: int, error: type[Exception], attempts: int
) -> None:
    """Trouble of the server is asked again; what a person must change, or a quota, is not."""
    impostor.status = status
    impostor.headers = {"Location": f"{impostor.url}/elsewhere"}
    async with _opened(impostor.url, tmp_path) as kms:
        with pytest.raises(error) as refusal:
            await kms.wrap(DEK, PLACE)
    assert type(refusal.value) is error
    assert impostor.asked == ["/v1/transit/encrypt/dek"] * attempts


async def test_another_data_key_than_32_bytes_comes_through_as_it_is(
    impostor: Impostor, tmp_path: Path
) -> None:
    """KM-11: the size of a data key is judged by whoever uses it, for every KMS alike."""
    impostor.body = _data(plaintext=base64.b64encode(bytes(16)).decode())
    async with _opened(impostor.url, tmp_path) as kms:
        found = await kms.unwrap(WrappedKey("transit/keys/dek:v1", b"wrapped"), PLACE)
    assert found == Secret(bytes(16))


async def test_errors_carry_neither_token_nor_data_key(tmp_path: Path) -> None:
    """What is raised when nobody listens holds nothing of the request."""
    (tmp_path / "token").write_text("canary-token")
    async with _opened("http://127.0.0.1:9", tmp_path) as kms:
        with pytest.raises(KmsUnavailable) as refusal:
            await kms.wrap(DEK, PLACE)
    assert refusal.value.metadata == {"cause": "ClientConnectorError"}
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("token", [None, "", "\n", "two words", "línea"])
async def test_a_token_that_is_none_stops_the_start(tmp_path: Path, token: str | None) -> None:
    """A missing or malformed token is named at the start, and not quoted."""
    if token is not None:
        (tmp_path / "token").write_text(token)
    with pytest.raises(ConfigError) as refusal:
        async with _opened("http://127.0.0.1:9", tmp_path):
            raise AssertionError("it opened")
    assert refusal.value.variable == "INTERLOCK_OPENBAO_TOKEN_FILE"
    assert not (token or "").strip() or str(token) not in refusal.value.problem


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_an_authority_that_is_none_stops_the_start(
    tmp_path: Path, content: str | None
) -> None:
    """A missing or malformed CA file is named at the start."""
    (tmp_path / "token").write_text("example-token")
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(ConfigError) as refusal:
        async with _opened("https://127.0.0.1:9", tmp_path, ca_file=tmp_path / "ca.pem"):
            raise AssertionError("it opened")
    assert refusal.value.variable == "INTERLOCK_OPENBAO_CA_FILE"
