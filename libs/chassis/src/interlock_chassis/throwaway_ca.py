"""A certificate authority for one machine: tests and the embedded run.

Its key lies beside its certificate, so it proves nothing to anybody else.
"""

import ipaddress
import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from interlock_chassis.clock import Clock, SystemClock
from interlock_chassis.tls import NAME, SPIFFE_PREFIX, TlsFiles

_CA_LIFE = timedelta(days=365)
_LEAF_LIFE = timedelta(days=30)
# Clocks of containers on one machine differ by less.
_BACKDATED = timedelta(minutes=5)
# A certificate that ends sooner is not worth reusing for a new run.
_REUSE_MARGIN = timedelta(days=1)


@dataclass(frozen=True)
class ThrowAwayCa:
    """Issue mTLS certificates for our processes' names.

    Attributes:
        certificate: The authority's certificate.
        clock: Where validity is counted from.
    """

    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey = field(repr=False)
    clock: Clock = field(default_factory=SystemClock, repr=False)

    @classmethod
    def create(cls, folder: Path, *, clock: Clock | None = None) -> "ThrowAwayCa":
        """Return the authority kept in the folder, made when absent or about to end.

        Writes `ca.crt` and `ca.key`, readable by the owner alone.
        """
        clock = clock or SystemClock()
        if (folder / "ca.crt").exists() and (folder / "ca.key").exists():
            kept = cls.load(folder, clock=clock)
            if kept.certificate.not_valid_after_utc > clock.now() + _REUSE_MARGIN:
                return kept
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Interlock throw-away CA")])
        certificate = (
            _builder(clock, name, name, key.public_key(), _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
            .add_extension(subject, critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(folder / "ca.key", _key_pem(key))
        _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))
        return cls(certificate, key, clock)

    @classmethod
    def load(cls, folder: Path, *, clock: Clock | None = None) -> "ThrowAwayCa":
        """Return the authority kept in the folder.

        Raises:
            FileNotFoundError: There is none.
            TypeError: The key is not one of ours.
        """
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the authority's key is not an elliptic-curve key")
        return cls(certificate, key, clock or SystemClock())

    def issue(self, name: str, folder: Path, *, life: timedelta = _LEAF_LIFE) -> TlsFiles:
        """Return certificate and key of an mTLS name, made unless still good.

        SANs: `spiffe://interlock/<name>`, DNS `<name>` (with `-` for `/`) and
        `localhost`, IP 127.0.0.1; for servers and clients alike. Writes
        `<name>.crt`, `<name>.key` and the authority's `ca.crt` into the
        folder, readable by the owner alone.

        Args:
            name: Such as `gateway-edge` or `app/reports`.
            folder: Made when absent.
            life: How long the certificate is good; not longer than the authority.

        Raises:
            ValueError: Not an mTLS name.
        """
        if not NAME.fullmatch(name):
            raise ValueError("not an mTLS name")
        stem = name.replace("/", "-")
        files = TlsFiles(
            ca=folder / "ca.crt", cert=folder / f"{stem}.crt", key=folder / f"{stem}.key"
        )
        authority = self.certificate.public_bytes(serialization.Encoding.PEM)
        if not files.ca.exists() or files.ca.read_bytes() != authority:
            _write(files.ca, authority)
        if not self._still_good(name, files):
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._sign(name, stem, key.public_key(), life)
            _write(files.key, _key_pem(key))
            _write(files.cert, certificate.public_bytes(serialization.Encoding.PEM))
        return files

    def _sign(
        self, name: str, host: str, key: ec.EllipticCurvePublicKey, life: timedelta
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier(SPIFFE_PREFIX + name),
                x509.DNSName(host),
                x509.DNSName("localhost"),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            ]
        )
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(self.clock, subject, self.certificate.subject, key, life)
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _still_good(self, name: str, files: TlsFiles) -> bool:
        if not files.cert.exists() or not files.key.exists():
            return False
        kept = x509.load_pem_x509_certificate(files.cert.read_bytes())
        try:
            kept.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError):
            return False
        except Exception:  # noqa: BLE001 - cryptography raises InvalidSignature, among others.
            return False
        names = kept.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        is_fresh = kept.not_valid_after_utc > self.clock.now() + _REUSE_MARGIN
        return is_fresh and uris == [SPIFFE_PREFIX + name]


def _builder(
    clock: Clock,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    life: timedelta,
) -> x509.CertificateBuilder:
    now = clock.now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes) -> None:
    """Replace a file at once, readable by its owner alone from the first byte."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)
