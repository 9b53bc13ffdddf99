"""A peer's name comes from its certificate, or there is none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pytest

from interlock_chassis.errors import Unauthenticated
from interlock_chassis.tls import peer_name


@dataclass(frozen=True)
class Peer:
    """A peer as gRPC shows it after the handshake."""

    uris: tuple[bytes, ...]

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the handshake's properties."""
        return {"transport_security_type": [b"ssl"], "peer_spiffe_id": list(self.uris)}


@pytest.mark.parametrize("name", ["gateway-edge", "token-vault", "app/reports-2"])
def test_a_uri_of_ours_is_a_name(name: str) -> None:
    """The part behind our trust domain is what caller tables list."""
    assert peer_name(Peer((f"spiffe://interlock/{name}".encode(),))) == name


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (b"spiffe://interlock/runner", b"spiffe://interlock/gateway-worker"),
        (b"spiffe://other/runner",),
        (b"spiffe://interlock/",),
        (b"spiffe://interlock/app/*",),
        (b"spiffe://interlock/a/b/c",),
        (b"spiffe://interlock/runner ",),
        (b"spiffe://interlock/Runner",),
        (b"spiffe://interlock/run\xffner",),
        (b"runner",),
    ],
)
def test_anything_else_is_nobody(uris: tuple[bytes, ...]) -> None:
    """GV-01: no name, two names, or a name that is not ours is not a caller."""
    with pytest.raises(Unauthenticated):
        peer_name(Peer(uris))
