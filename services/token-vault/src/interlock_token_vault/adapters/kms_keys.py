"""Data keys, unwrapped by a KMS and kept for a short while.

A key may be used for at most 300 s and 1,000 times before the KMS is asked
again, so that a disabled key ends reads within that time. Tokens are kept
nowhere.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, TypeVar
from uuid import UUID, uuid4

from interlock_chassis.clock import Clock
from interlock_chassis.secret import Secret
from interlock_token_vault.domain.envelope import (
    DEK_BYTES,
    NONCE_BYTES,
    SALT_BYTES,
    Bound,
    CannotOpen,
    KeyContext,
    SealedBytes,
    SealedToken,
    TokenContext,
    WrappedDek,
    open_sealed,
    seal,
)
from interlock_token_vault.domain.installation import DekId, TokenRef
from interlock_token_vault.vault import KmsUnavailable

MAX_TTL = timedelta(seconds=300)
_MAX_USES = 1000
# About 600 bytes each: a few megabytes for the workspaces that are busy now.
_MAX_KEYS = 10_000
# Fail closed while the reader's 5 s still leave time to answer.
_KMS_BUDGET = timedelta(seconds=2)
# 128 bits: fingerprints of different tokens never meet by chance.
_REF_BYTES = 16
# A fingerprint is never a MAC of a backup.
_MAC_LABEL = b"interlock backup mac v1"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as the KMS gives it back."""

    kek_version: str
    wrapped: bytes


class Kms(Protocol):
    """A key service whose keys never leave it."""

    async def wrap(self, dek: Secret[bytes], bound: bytes) -> WrappedKey:
        """Wrap a data key under the primary key, bound to a context.

        Raises:
            KmsUnavailable: No answer.
            KekDisabled: The primary key may not be used.
        """
        ...

    async def unwrap(self, key: WrappedKey, bound: bytes) -> Secret[bytes]:
        """Unwrap a data key under the context that it was bound to.

        Raises:
            KmsUnavailable: No answer.
            KekDisabled: The key that wraps it is gone or disabled.
            CannotOpen: It was changed, or wrapped under another context.
        """
        ...


@dataclass(slots=True)
class _Kept:
    dek: Secret[bytes]
    until: float
    uses_left: int


_CacheKey = tuple[DekId, str, bytes, bytes]


class KmsKeys:
    """The Keys port over a KMS.

    Args:
        kms: Wraps and unwraps.
        fingerprint_key: Keys the fingerprints of tokens.
        clock: Tells how long a key has been kept.
        ttl: How long a key may be kept; 0 keeps none, more than 300 s is refused.
        random_bytes: Makes keys, salts and nonces.
        new_id: Makes ids of data keys.
    """

    def __init__(
        self,
        kms: Kms,
        *,
        fingerprint_key: Secret[str],
        clock: Clock,
        ttl: timedelta = MAX_TTL,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        if not timedelta(0) <= ttl <= MAX_TTL:
            raise ValueError("data keys are kept for 0 to 300 s")
        self._kms = kms
        self._fingerprint_key = fingerprint_key
        self._clock = clock
        self._ttl = ttl
        self._random_bytes = random_bytes
        self._new_id = new_id
        self._kept: OrderedDict[_CacheKey, _Kept] = OrderedDict()
        self._unwrapping: dict[_CacheKey, asyncio.Task[Secret[bytes]]] = {}

    async def make(self, context: KeyContext) -> tuple[WrappedDek, "KmsDataKey"]:
        """Make a data key; see Keys."""
        dek = Secret(self._random_bytes(DEK_BYTES))
        key = await _within_budget(self._kms.wrap(dek, context.encode()))
        wrapped = WrappedDek(
            dek_id=DekId(self._new_id()),
            installation_id=context.installation_id,
            kek_version=key.kek_version,
            wrapped=key.wrapped,
        )
        return wrapped, KmsDataKey(self, wrapped, context.encode(), dek, source="kms")

    def take(self, wrapped: WrappedDek, context: KeyContext) -> "KmsDataKey":
        """Prepare to use a stored data key; see Keys."""
        bound = context.encode()
        dek = self._find_kept(_cache_key(wrapped, bound))
        return KmsDataKey(self, wrapped, bound, dek, source="kms" if dek is None else "cache")

    async def rewrap(self, wrapped: WrappedDek, context: KeyContext) -> WrappedDek:
        """Wrap a stored data key again; see Keys. Keeps none of it."""
        bound = context.encode()
        dek = await _within_budget(
            self._kms.unwrap(WrappedKey(wrapped.kek_version, wrapped.wrapped), bound)
        )
        if len(dek.reveal()) != DEK_BYTES:
            raise CannotOpen
        key = await _within_budget(self._kms.wrap(dek, bound))
        return replace(wrapped, kek_version=key.kek_version, wrapped=key.wrapped)

    def ref(self, token: Secret[str]) -> TokenRef:
        """Fingerprint a token with HMAC-SHA256 under our own key, cut to 128 bits."""
        digest = hmac.digest(
            self._fingerprint_key.reveal().encode(), token.reveal().encode(), hashlib.sha256
        )
        return TokenRef(digest[:_REF_BYTES].hex())

    def new_mac(self) -> hmac.HMAC:
        """Begin an HMAC-SHA256 under a key that the fingerprint key gives; see Keys."""
        own = self._fingerprint_key.reveal().encode()
        return hmac.new(hmac.digest(own, _MAC_LABEL, hashlib.sha256), digestmod=hashlib.sha256)

    async def unwrap(self, wrapped: WrappedDek, bound: bytes) -> Secret[bytes]:
        """Have the KMS unwrap a key, once for all who want it now, and keep it.

        Raises:
            KmsUnavailable, KekDisabled, CannotOpen: As Kms.unwrap.
        """
        place = _cache_key(wrapped, bound)
        task = self._unwrapping.get(place)
        if task is None:
            task = asyncio.create_task(self._unwrap_and_keep(wrapped, bound, place))
            self._unwrapping[place] = task
            task.add_done_callback(lambda done: self._forget(place, done))
        # One caller that goes away does not take the key from the others.
        return await asyncio.shield(task)

    def _forget(self, place: _CacheKey, done: "asyncio.Task[Secret[bytes]]") -> None:
        self._unwrapping.pop(place, None)
        # When everybody who asked went away, nobody else looks at the error.
        if not done.cancelled():
            done.exception()

    def new_nonce(self) -> tuple[bytes, bytes]:
        """Make a salt and a nonce for one sealing."""
        return self._random_bytes(SALT_BYTES), self._random_bytes(NONCE_BYTES)

    async def _unwrap_and_keep(
        self, wrapped: WrappedDek, bound: bytes, place: _CacheKey
    ) -> Secret[bytes]:
        key = WrappedKey(wrapped.kek_version, wrapped.wrapped)
        asked_at = self._clock.monotonic()
        dek = await _within_budget(self._kms.unwrap(key, bound))
        if len(dek.reveal()) != DEK_BYTES:
            raise CannotOpen
        if self._ttl:
            # Counted from the question: the key may have been disabled since.
            until = asked_at + self._ttl.total_seconds()
            self._kept[place] = _Kept(dek, until, _MAX_USES - 1)
            self._kept.move_to_end(place)
            if len(self._kept) > _MAX_KEYS:
                self._kept.popitem(last=False)
        return dek

    def _find_kept(self, place: _CacheKey) -> Secret[bytes] | None:
        kept = self._kept.get(place)
        if kept is None:
            return None
        if kept.uses_left == 0 or self._clock.monotonic() >= kept.until:
            del self._kept[place]
            return None
        kept.uses_left -= 1
        self._kept.move_to_end(place)
        return kept.dek


class KmsDataKey:
    """The right to use one data key; see DataKey."""

    def __init__(
        self,
        keys: KmsKeys,
        wrapped: WrappedDek,
        bound: bytes,
        dek: Secret[bytes] | None,
        *,
        source: str,
    ) -> None:
        self._keys = keys
        self._wrapped = wrapped
        self._bound = bound
        self._dek = dek
        self._source = source

    @property
    def source(self) -> str:
        """Say where the key comes from: `cache` or `kms`."""
        return self._source

    async def open(self, sealed: SealedToken, context: TokenContext) -> Secret[str]:
        """Open a token in its place; see DataKey."""
        return await self.open_value(sealed.sealed, context)

    async def seal(
        self, token: Secret[str], context: TokenContext, expires_at: datetime | None
    ) -> SealedToken:
        """Seal a token into its place; see DataKey."""
        return SealedToken(
            kind=context.kind,
            slot=context.slot,
            user_id=context.user_id,
            generation=context.generation,
            dek_id=context.dek_id,
            sealed=await self.seal_value(token, context),
            ref=self._keys.ref(token),
            expires_at=expires_at,
        )

    async def open_value(self, sealed: SealedBytes, bound: Bound) -> Secret[str]:
        """Open what was sealed into any place; see DataKey."""
        dek = await self._get()
        opened = open_sealed(dek.reveal(), sealed, bound)
        try:
            return Secret(opened.decode())
        except UnicodeDecodeError:
            # The original error carries the bytes.
            raise CannotOpen from None

    async def seal_value(self, value: Secret[str], bound: Bound) -> SealedBytes:
        """Seal a text into any place; see DataKey."""
        dek = await self._get()
        salt, nonce = self._keys.new_nonce()
        return seal(dek.reveal(), value.reveal().encode(), bound, salt=salt, nonce=nonce)

    async def _get(self) -> Secret[bytes]:
        if self._dek is None:
            self._dek = await self._keys.unwrap(self._wrapped, self._bound)
        return self._dek


def _cache_key(wrapped: WrappedDek, bound: bytes) -> _CacheKey:
    """Tell keys apart by id, bytes and context: a warm cache must not skip the KMS's checks."""
    return (wrapped.dek_id, wrapped.kek_version, wrapped.wrapped, bound)


async def _within_budget(answer: Awaitable[_T]) -> _T:
    try:
        async with asyncio.timeout(_KMS_BUDGET.total_seconds()):
            return await answer
    except TimeoutError as error:
        raise KmsUnavailable from error
