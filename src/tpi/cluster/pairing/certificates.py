"""Making keys, certificates and signing requests: EC P-256, X.509. Stores nothing; any thread.

Imports ``cryptography``, some 10 MB: only masters load this module. Workers run it as a program when they pair for the
first time (``identity.make_key``): it reads a name from standard input and writes the length of a key (u32,
little-endian), the key as PEM, and a signing request as DER.

Certificates are valid from 1970 to 9999: small computers without a clock of their own start with a wrong one, and
what ends a certificate here is its removal from the master's registry, not a date.
"""

import datetime
import hashlib
import sys

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tpi.errors import PairingError

_NOT_BEFORE = datetime.datetime(1970, 1, 1)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as unencrypted PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """The private key in ``pem``; raises ValueError."""
    key = serialization.load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an elliptic-curve key")
    return key


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key, in hexadecimal."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(*form)).hexdigest()


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def certificate_der(certificate: x509.Certificate) -> bytes:
    """The certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def make_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A self-signed certificate that may sign those of devices, and no further authorities."""
    name = _name("tpi cluster")
    usage = _key_usage(signs_certificates=True)
    return (
        _builder(name, name, key.public_key(), x509.random_serial_number(), key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def sign_device(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    device_key: ec.EllipticCurvePublicKey,
    name: str,
) -> x509.Certificate:
    """A device's certificate, for either end of a link; its common name is ``name``."""
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    serial = x509.random_serial_number()
    return (
        _builder(_name(name), authority.subject, device_key, serial, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def make_signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A signing request (DER) for ``key``."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def read_signing_request(der: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a request whose sender holds the private one; nothing else of it counts."""
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1" and request.is_signature_valid:
            return key
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    raise PairingError("the signing request is malformed: is that device's tpi intact?")


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def main() -> None:
    """Makes one key, for whoever started this process."""
    key = new_key()
    pem = key_pem(key)
    request = make_signing_request(key, sys.stdin.buffer.read().decode())
    sys.stdout.buffer.write(len(pem).to_bytes(4, "little") + pem + request)


if __name__ == "__main__":
    main()
