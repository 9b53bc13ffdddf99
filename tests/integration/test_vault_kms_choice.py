"""INTERLOCK_KMS: each choice opens the KMS that its settings describe."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from interlock_chassis.config import load_settings, variable_of
from interlock_chassis.secret import Secret
from interlock_sandbox.kms.server import serving_kms
from interlock_sandbox.kms.testing import KEY, PROJECT, ROOT_TOKEN, serving_openbao
from interlock_token_vault.__main__ import open_kms
from interlock_token_vault.adapters.local_kms import create_keyset
from interlock_token_vault.config import VaultSettings

DEK = Secret(bytes(range(32)))

Settings = dict[str, str]


@asynccontextmanager
async def _local(folder: Path) -> AsyncIterator[Settings]:
    create_keyset(folder / "keyset.json")
    yield {"kms": "local", "local_keyset_file": str(folder / "keyset.json")}


@asynccontextmanager
async def _gcp(_: Path) -> AsyncIterator[Settings]:
    async with serving_kms([KEY]) as cloud:
        yield {
            "kms": "gcp",
            "gcp_kms_url": f"http://{cloud.address}",
            "gcp_kms_project": PROJECT,
            "gcp_kms_key": KEY,
        }


@asynccontextmanager
async def _openbao(folder: Path) -> AsyncIterator[Settings]:
    (folder / "token").write_text(ROOT_TOKEN)
    async with serving_openbao(folder, tls=True) as bao:
        await bao.call("POST", "sys/namespaces/team")
        await bao.call("POST", "sys/mounts/crypto", {"type": "transit"}, "team")
        await bao.call("POST", "crypto/keys/vault", {"type": "aes256-gcm96"}, "team")
        yield {
            "kms": "openbao",
            "openbao_url": bao.url,
            "openbao_ca_file": str(bao.ca_file),
            "openbao_token_file": str(folder / "token"),
            "openbao_namespace": "team",
            "openbao_mount": "crypto",
            "openbao_key": "vault",
        }


@pytest.mark.parametrize(
    ("serving", "version"),
    [
        pytest.param(_local, "local-1", id="local"),
        pytest.param(_gcp, f"{KEY}/cryptoKeyVersions/1", id="gcp"),
        pytest.param(
            _openbao, "team/crypto/keys/vault:v1", id="openbao", marks=pytest.mark.openbao
        ),
    ],
)
async def test_the_chosen_kms_wraps(
    tmp_path: Path,
    serving: Callable[[Path], AbstractAsyncContextManager[Settings]],
    version: str,
) -> None:
    """From variables alone, each choice wraps and unwraps with the key that they name."""
    files = {
        "database_url_file": "postgresql://interlock_vault:pw@127.0.0.1:9/interlock_vault",
        "slack_client_secret_file": "client-secret",
        "grant_public_keys_file": '{"keys": []}',
        "fingerprint_key_file": "f" * 32,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    async with serving(tmp_path) as chosen:
        fields = {
            "environment": "development",
            "listen": "127.0.0.1:0",
            "ops_listen": "127.0.0.1:0",
            "tls_ca_file": "ca",
            "tls_cert_file": "cert",
            "tls_key_file": "key",
            "slack_client_id": "1111.2222",
            "identity_address": "127.0.0.1:9",
            **{name: str(tmp_path / name) for name in files},
            **chosen,
        }
        settings = load_settings(
            VaultSettings, {variable_of(each): fields[each] for each in fields}
        )
        async with open_kms(settings) as kms:
            wrapped = await kms.wrap(DEK, b"place")
            assert wrapped.kek_version == version
            assert await kms.unwrap(wrapped, b"place") == DEK
