"""The throw-away authority issues what our servers and clients ask for."""

import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from interlock_chassis.errors import ConfigError
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_chassis.tls import TlsFiles, channel_credentials, server_credentials


@dataclass
class ShiftedClock:
    """A clock that stands where it is put."""

    instant: datetime = field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))

    def now(self) -> datetime:
        """Read the instant."""
        return self.instant

    def monotonic(self) -> float:
        """Read the instant as seconds."""
        return self.instant.timestamp()


def certificate_of(files: TlsFiles) -> x509.Certificate:
    """Parse an issued certificate."""
    return x509.load_pem_x509_certificate(files.cert.read_bytes())


def names_of(files: TlsFiles) -> x509.SubjectAlternativeName:
    """Return the names in an issued certificate."""
    extensions = certificate_of(files).extensions
    return extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.parametrize(
    ("name", "host"), [("gateway-edge", "gateway-edge"), ("app/reports", "app-reports")]
)
def test_a_certificate_names_its_process(tmp_path: Path, name: str, host: str) -> None:
    """The URI SAN is the mTLS name; DNS and IP SANs let peers on one machine connect."""
    names = names_of(ThrowAwayCa.create(tmp_path).issue(name, tmp_path / "tls"))
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://interlock/{name}"
    ]
    assert names.get_values_for_type(x509.DNSName) == [host, "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_leaf_cannot_sign_and_serves_both_ends(tmp_path: Path) -> None:
    """A stolen certificate makes no further ones."""
    extensions = certificate_of(ThrowAwayCa.create(tmp_path).issue("runner", tmp_path)).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }


def test_only_the_owner_can_read_what_is_written(tmp_path: Path) -> None:
    """Keys are 0600 from their first byte."""
    files = ThrowAwayCa.create(tmp_path / "ca").issue("runner", tmp_path / "tls")
    for path in (tmp_path / "ca" / "ca.key", files.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_authority_and_a_good_certificate_are_kept(tmp_path: Path) -> None:
    """A second run changes nothing, so running processes stay valid."""
    first = ThrowAwayCa.create(tmp_path).issue("runner", tmp_path)
    before = (first.cert.read_bytes(), first.key.read_bytes(), first.ca.read_bytes())
    again = ThrowAwayCa.create(tmp_path).issue("runner", tmp_path)
    assert (again.cert.read_bytes(), again.key.read_bytes(), again.ca.read_bytes()) == before
    assert ThrowAwayCa.load(tmp_path).certificate == ThrowAwayCa.create(tmp_path).certificate


def test_a_certificate_about_to_end_is_made_anew(tmp_path: Path) -> None:
    """A run that starts a day before the end gets a new certificate, and key."""
    clock = ShiftedClock()
    ca = ThrowAwayCa.create(tmp_path, clock=clock)
    old = ca.issue("runner", tmp_path)
    before = (certificate_of(old), old.key.read_bytes())
    clock.instant = certificate_of(old).not_valid_after_utc - timedelta(hours=23)
    renewed = ca.issue("runner", tmp_path)
    assert certificate_of(renewed) != before[0]
    assert renewed.key.read_bytes() != before[1]
    assert certificate_of(renewed).not_valid_after_utc > clock.now() + timedelta(days=29)


def test_an_authority_about_to_end_is_made_anew(tmp_path: Path) -> None:
    """A new authority replaces its leaves too."""
    clock = ShiftedClock()
    first = ThrowAwayCa.create(tmp_path, clock=clock)
    leaf = certificate_of(first.issue("runner", tmp_path / "tls"))
    clock.instant += timedelta(days=365)
    second = ThrowAwayCa.create(tmp_path, clock=clock)
    assert second.certificate != first.certificate
    assert certificate_of(second.issue("runner", tmp_path / "tls")) != leaf


def test_a_certificate_of_another_name_is_not_reused(tmp_path: Path) -> None:
    """`app/x` and `app-x` share a file name, and never a certificate."""
    ca = ThrowAwayCa.create(tmp_path)
    ca.issue("app/x", tmp_path)
    uris = names_of(ca.issue("app-x", tmp_path)).get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["spiffe://interlock/app-x"]


@pytest.mark.parametrize("name", ["", "A", "a/b/c", "../a", "a b", "a/", "-a", "a" * 64])
def test_what_is_no_name_gets_no_certificate(tmp_path: Path, name: str) -> None:
    """A name that no caller table can list, or that leaves the folder, is refused."""
    with pytest.raises(ValueError, match="mTLS name"):
        ThrowAwayCa.create(tmp_path).issue(name, tmp_path)


def test_tls_files_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    """A missing file and one that is no PEM are named by their variable."""
    files = ThrowAwayCa.create(tmp_path).issue("runner", tmp_path)
    files.cert.write_text("not a certificate")
    with pytest.raises(ConfigError, match="INTERLOCK_TLS_CERT_FILE: the file is not PEM"):
        server_credentials(files)
    files.cert.write_text("-----BEGIN CERTIFICATE-----")
    with pytest.raises(ConfigError, match="INTERLOCK_TLS_CERT_FILE: the file holds no"):
        server_credentials(files)
    files.key.unlink()
    with pytest.raises(ConfigError, match="INTERLOCK_TLS_KEY_FILE: cannot read"):
        channel_credentials(files)


def test_a_key_of_another_certificate_stops_the_start(tmp_path: Path) -> None:
    """Files mixed up are refused before the first handshake fails."""
    ca = ThrowAwayCa.create(tmp_path)
    runner, identity = ca.issue("runner", tmp_path), ca.issue("identity", tmp_path)
    mixed = TlsFiles(ca=runner.ca, cert=runner.cert, key=identity.key)
    with pytest.raises(ConfigError, match="not the certificate's"):
        channel_credentials(mixed)
