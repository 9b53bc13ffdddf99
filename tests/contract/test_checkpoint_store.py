"""What a place for checkpoints promises, asked of the folder and of the two kinds of bucket."""

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.adapters import bucket_checkpoints
from interlock_token_vault.adapters.bucket_checkpoints import BucketPlace, open_bucket
from interlock_token_vault.adapters.checkpoints import (
    CheckpointVerifier,
    Ed25519Signer,
    FileCheckpoints,
    create_checkpoint_key,
    load_checkpoints,
)
from interlock_token_vault.auditing import (
    CheckpointNotWritten,
    CheckpointStore,
    CheckpointsUnreadable,
)
from interlock_token_vault.domain.audit_log import ChainHead
from tests.support.bucket import ACCESS_KEY, BUCKET, Bucket, serving_bucket

A, B = UUID(int=1), UUID(int=2)
AT = datetime(2026, 11, 25, tzinfo=UTC)
SIGNER = Ed25519Signer.from_pem(Secret(create_checkpoint_key()))
FORGER = Ed25519Signer.from_pem(Secret(create_checkpoint_key()))
VERIFIER = CheckpointVerifier.from_pem(SIGNER.public_pem.encode())
S3_CREDENTIALS = Secret(json.dumps({"access_key_id": ACCESS_KEY, "secret_access_key": "canary"}))


def _head(chain: UUID, seq: int) -> ChainHead:
    return ChainHead(chain, seq, bytes([seq % 256]) * 32, AT + timedelta(minutes=seq))


@dataclass
class Place:
    """A store, and what its administrator sees of it.

    Attributes:
        copy: Copies it into a folder of files.
        shut, mend: Make it fail, and serve again.
    """

    store: CheckpointStore
    copy: Callable[[Path], object]
    shut: Callable[[], object]
    mend: Callable[[], object]


@asynccontextmanager
async def _file(folder: Path) -> AsyncIterator[Place]:
    store, aside = FileCheckpoints(folder / "kept"), folder / "aside"

    def shut() -> None:
        (folder / "kept").rename(aside)
        (folder / "kept").write_text("not a folder")

    def mend() -> None:
        (folder / "kept").unlink()
        aside.rename(folder / "kept")

    yield Place(store, lambda to: shutil.copytree(folder / "kept", to), shut, mend)


def _copier(bucket: Bucket) -> Callable[[Path], None]:
    def copy(to: Path) -> None:
        for name, content in bucket.objects.items():
            path = to / name.removeprefix("vault-1/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    return copy


def _bucket_place(bucket: Bucket, place: BucketPlace) -> Place:
    return Place(
        open_bucket(place),
        _copier(bucket),
        lambda: setattr(bucket, "refuse_with", 403),
        lambda: setattr(bucket, "refuse_with", 0),
    )


@asynccontextmanager
async def _s3(_: Path) -> AsyncIterator[Place]:
    async with serving_bucket() as bucket:
        url = f"s3://{BUCKET}/vault-1"
        yield _bucket_place(bucket, BucketPlace(url, bucket.url, "eu-west-1", S3_CREDENTIALS))


@asynccontextmanager
async def _gs(_: Path) -> AsyncIterator[Place]:
    async with serving_bucket() as bucket:
        place = BucketPlace(f"gs://{BUCKET}/vault-1", bucket.url, credentials=_service_account())
        yield _bucket_place(bucket, place)


def _service_account() -> Secret[str]:
    """Make a key as Google hands them out; a token signed with it names its id."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Secret(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "vault@acme.example",
                "private_key_id": ACCESS_KEY,
                "private_key": key.decode(),
            }
        )
    )


STORES = {"file": _file, "s3": _s3, "gs": _gs}


@pytest.fixture(params=STORES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """Give each store in turn."""
    async with STORES[request.param](tmp_path) as place:
        yield place


async def test_the_newest_of_each_chain_is_found(place: Place) -> None:
    """By number and not by name, over many pages of a list, and whatever came in between."""
    assert await place.store.load_newest(VERIFIER.is_genuine) == []
    for seq in (2, 3, 9, 10, 100):
        await place.store.append(SIGNER.sign(_head(A, seq)))
    for seq in (7, 8):
        await place.store.append(SIGNER.sign(_head(B, seq)))
    found = await place.store.load_newest(VERIFIER.is_genuine)
    assert sorted(found, key=lambda head: head.seq) == [_head(B, 8), _head(A, 100)]


async def test_a_forged_checkpoint_hides_no_genuine_one(place: Place) -> None:
    """What another key signed is passed over, also when it claims to be newer."""
    await place.store.append(SIGNER.sign(_head(A, 5)))
    await place.store.append(FORGER.sign(_head(A, 6)))
    assert await place.store.load_newest(VERIFIER.is_genuine) == [_head(A, 5)]


async def test_the_same_checkpoint_may_be_kept_twice(place: Place) -> None:
    """A vault that never heard the answer asks again, and is content."""
    for _ in range(2):
        await place.store.append(SIGNER.sign(_head(A, 5)))
    assert await place.store.load_newest(VERIFIER.is_genuine) == [_head(A, 5)]


async def test_a_store_that_refuses_says_so_and_recovers(place: Place) -> None:
    """Neither "kept" nor "there is nothing" is said where it is not known."""
    await place.store.append(SIGNER.sign(_head(A, 5)))
    place.shut()
    with pytest.raises(CheckpointNotWritten):
        await place.store.append(SIGNER.sign(_head(A, 6)))
    if not isinstance(place.store, FileCheckpoints):
        with pytest.raises(CheckpointsUnreadable):
            await place.store.load_newest(VERIFIER.is_genuine)
    place.mend()
    await place.store.append(SIGNER.sign(_head(A, 6)))
    assert await place.store.load_newest(VERIFIER.is_genuine) == [_head(A, 6)]


async def test_a_copy_verifies_offline(place: Place, tmp_path: Path) -> None:
    """The verifier takes the folder, or a copy of the bucket, and names what is forged."""
    await place.store.append(SIGNER.sign(_head(A, 5)))
    await place.store.append(SIGNER.sign(_head(B, 8)))
    await place.store.append(FORGER.sign(_head(B, 9)))
    place.copy(tmp_path / "copy")
    heads, damaged = load_checkpoints(tmp_path / "copy", VERIFIER)
    assert sorted(heads, key=lambda head: head.seq) == [_head(A, 5), _head(B, 8)]
    assert len(damaged) == 1
    assert damaged[0].startswith(str(B))


async def test_an_object_is_never_written_over() -> None:
    """Where another one lies in the place of a checkpoint, it is not kept, and the other stays."""
    async with serving_bucket() as bucket, _opened(bucket) as store:
        await store.append(FORGER.sign(_head(A, 5)))
        before = dict(bucket.objects)
        with pytest.raises(CheckpointNotWritten):
            await store.append(SIGNER.sign(_head(A, 5)))
        assert bucket.objects == before


async def test_an_answer_that_is_lost_is_asked_for_again() -> None:
    """The object was made, its answer was not heard: the next call finds its own."""
    async with serving_bucket() as bucket, _opened(bucket) as store:
        bucket.loses_answers = True
        with pytest.raises(CheckpointNotWritten):
            await store.append(SIGNER.sign(_head(A, 5)))
        bucket.loses_answers = False
        await store.append(SIGNER.sign(_head(A, 5)))
        assert len(bucket.objects) == 1


async def test_a_silent_store_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are never waited for without an end."""
    monkeypatch.setattr(bucket_checkpoints, "_BUDGET_S", 0.2)
    monkeypatch.setattr(bucket_checkpoints, "_READ_BUDGET_S", 0.2)
    async with serving_bucket() as bucket, _opened(bucket) as store:
        bucket.is_silent = True
        with pytest.raises(CheckpointNotWritten):
            await store.append(SIGNER.sign(_head(A, 5)))
        with pytest.raises(CheckpointsUnreadable):
            await store.load_newest(VERIFIER.is_genuine)


async def test_a_flood_of_forged_objects_is_not_nothing() -> None:
    """Genuine checkpoints that are hidden under very many others stop the vault's start."""
    async with serving_bucket() as bucket, _opened(bucket) as store:
        await store.append(SIGNER.sign(_head(A, 5)))
        bucket.objects |= {f"vault-1/{A}/{n:012}.checkpoint": b"x\n" for n in range(6, 110)}
        with pytest.raises(CheckpointsUnreadable):
            await store.load_newest(VERIFIER.is_genuine)


@asynccontextmanager
async def _opened(bucket: Bucket) -> AsyncIterator[CheckpointStore]:
    url = f"s3://{BUCKET}/vault-1"
    yield open_bucket(BucketPlace(url, bucket.url, "eu-west-1", S3_CREDENTIALS))


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("s3://bucket", "not json"),
        ("s3://bucket", '{"access_key_id": "canary"}'),
        ("s3://bucket", '{"access_key_id": "canary", "secret_access_key": 1}'),
        ("gs://bucket", '{"private_key": "canary"}'),
        ("ftp://bucket", None),
        ("s3://", None),
    ],
)
def test_a_place_that_cannot_be_used_stops_the_start(url: str, credentials: str | None) -> None:
    """The variable is named; what is in the file is not."""
    secret = None if credentials is None else Secret(credentials)
    with pytest.raises(ConfigError) as refused:
        open_bucket(BucketPlace(url, credentials=secret))
    assert "canary" not in str(refused.value)
