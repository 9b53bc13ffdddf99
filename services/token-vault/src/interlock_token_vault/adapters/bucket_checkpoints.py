"""Signed checkpoints in a bucket of Google Cloud Storage, S3, or a store that speaks S3.

One object a checkpoint, `chain/seq.checkpoint`, created and never written
again: with a retention policy on the bucket, not even the vault can take one
back. A copy of the bucket as a folder verifies as the folder of a vault does.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import GCSStore, ObjectStore, S3Store
from yarl import URL

from interlock_chassis.errors import ConfigError
from interlock_chassis.secret import Secret
from interlock_token_vault.auditing import (
    CheckpointNotWritten,
    CheckpointsUnreadable,
)
from interlock_token_vault.domain.audit_log import (
    ChainHead,
    Checkpoint,
    checkpoint_line,
    read_checkpoints,
)

URL_VARIABLE = "INTERLOCK_AUDIT_CHECKPOINT_URL"
CREDENTIALS_VARIABLE = "INTERLOCK_AUDIT_CHECKPOINT_CREDENTIALS_FILE"
SUFFIX = ".checkpoint"
# So that names sort as numbers do, for longer than a vault runs.
_SEQ_DIGITS = 12
_REQUEST = timedelta(seconds=5)
# The next minute tries again; what waits meanwhile is nothing but a checkpoint.
_BUDGET_S = 15.0
_READ_BUDGET_S = 120.0
_READS_AT_ONCE = 32
# Whoever may write to the bucket can hide genuine ones under forged ones; then
# the vault must not take the last of many tries for "there was nothing".
_MOST_FORGED = 100


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """Which bucket, and how it is reached.

    Attributes:
        url: `gs://bucket/prefix` or `s3://bucket/prefix`.
        endpoint: Of a store other than Google's or Amazon's own; None for those.
        region: Of S3; empty: what the machine is told.
        credentials: For `gs`, a service account's key; for `s3`, JSON with
            `access_key_id` and `secret_access_key`; None: the machine's identity.
    """

    url: str
    endpoint: URL | None = None
    region: str = ""
    credentials: Secret[str] | None = None


class BucketCheckpoints:
    """A CheckpointStore in a bucket.

    Args:
        store: The bucket, at its prefix.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def append(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; see CheckpointStore."""
        path, line = _path_of(checkpoint.head), checkpoint_line(checkpoint)
        with _translated(CheckpointNotWritten):
            async with asyncio.timeout(_BUDGET_S):
                try:
                    await obstore.put_async(
                        self._store, path, line, mode="create", use_multipart=False
                    )
                except AlreadyExistsError:
                    # Ours, if only the answer was lost; a signature has one form.
                    if await self._read(path) != line:
                        raise

    async def load_newest(self, is_genuine: Callable[[Checkpoint], bool]) -> list[ChainHead]:
        """Load each chain's newest genuine checkpoint; see CheckpointStore."""
        with _translated(CheckpointsUnreadable):
            async with asyncio.timeout(_READ_BUDGET_S):
                chains: dict[str, list[str]] = {}
                async for path in self._paths():
                    chains.setdefault(path.rpartition("/")[0], []).append(path)
                gate = asyncio.Semaphore(_READS_AT_ONCE)
                async with asyncio.TaskGroup() as group:
                    found = [
                        group.create_task(self._newest(sorted(paths), is_genuine, gate))
                        for paths in chains.values()
                    ]
        return [head for each in found if (head := each.result()) is not None]

    async def _newest(
        self,
        paths: Sequence[str],
        is_genuine: Callable[[Checkpoint], bool],
        gate: asyncio.Semaphore,
    ) -> ChainHead | None:
        for tried, path in enumerate(reversed(paths)):
            if tried == _MOST_FORGED:
                raise CheckpointsUnreadable
            async with gate:
                content = await self._read(path)
            if head := _head_in(path, content, is_genuine):
                return head
        return None

    async def _paths(self) -> AsyncIterator[str]:
        async for page in obstore.list(self._store, chunk_size=1000):
            for each in page:
                if each["path"].endswith(SUFFIX):
                    yield each["path"]

    async def _read(self, path: str) -> bytes:
        answer = await obstore.get_async(self._store, path)
        return bytes(await answer.bytes_async())


def open_bucket(place: BucketPlace) -> BucketCheckpoints:
    """Reach a bucket; asks it nothing yet.

    Raises:
        ConfigError: The URL or the credentials cannot be used.
    """
    scheme, _, rest = place.url.partition("://")
    bucket, _, prefix = rest.partition("/")
    options = {
        "client_options": {
            "timeout": _REQUEST,
            "connect_timeout": _REQUEST,
            "allow_http": place.endpoint is not None and place.endpoint.scheme == "http",
        },
        "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=_BUDGET_S)},
    }
    config = _config_of(scheme, place)
    make = {"gs": GCSStore, "s3": S3Store}.get(scheme)
    if make is None or not bucket:
        raise ConfigError(URL_VARIABLE, "must be gs://bucket/prefix or s3://bucket/prefix")
    try:
        store = make(bucket, prefix=prefix or None, config=config, **options)
    except (BaseError, ValueError):
        # The original error may quote the credentials.
        variable = CREDENTIALS_VARIABLE if place.credentials else URL_VARIABLE
        raise ConfigError(variable, "cannot be used for the bucket") from None
    return BucketCheckpoints(store)


def _config_of(scheme: str, place: BucketPlace) -> dict[str, str]:
    config: dict[str, str] = {}
    if scheme == "gs":
        if place.endpoint is not None:
            config["base_url"] = str(place.endpoint).rstrip("/")
        if place.credentials is not None:
            config["service_account_key"] = place.credentials.reveal()
        return config
    if place.endpoint is not None:
        config["endpoint"] = str(place.endpoint).rstrip("/")
    if place.region:
        config["region"] = place.region
    if place.credentials is not None:
        config |= _s3_credentials(place.credentials)
    return config


def _s3_credentials(document: Secret[str]) -> dict[str, str]:
    names = ("access_key_id", "secret_access_key")
    try:
        found = json.loads(document.reveal())
        given = {name: found[name] for name in names}
    except (ValueError, KeyError, TypeError):
        given = {}
    if not given or not all(isinstance(text, str) and text for text in given.values()):
        raise ConfigError(CREDENTIALS_VARIABLE, f"must be JSON with {' and '.join(names)}")
    return given


def _path_of(head: ChainHead) -> str:
    return f"{head.chain_id}/{head.seq:0{_SEQ_DIGITS}}{SUFFIX}"


def _head_in(
    path: str, content: bytes, is_genuine: Callable[[Checkpoint], bool]
) -> ChainHead | None:
    """Take a checkpoint out of an object that holds this one only, in its right place."""
    heads, is_damaged = read_checkpoints(content, is_genuine)
    if is_damaged or len(heads) != 1 or _path_of(heads[0]) != path:
        return None
    return heads[0]


@contextmanager
def _translated(
    error_class: type[CheckpointNotWritten] | type[CheckpointsUnreadable],
) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError, ExceptionGroup) as error:
        # A silent store is a TimeoutError, which is an OSError.
        raise error_class from error
