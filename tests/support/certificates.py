"""A certificate for 127.0.0.1 that nobody has signed but itself."""

import datetime
import ipaddress
import ssl

import pytest


def certificate(folder):
    """The path of a certificate with its key, in this folder."""
    x509 = pytest.importorskip("cryptography.x509")
    primitives = "cryptography.hazmat.primitives"
    ec = pytest.importorskip(f"{primitives}.asymmetric.ec")
    hashes = pytest.importorskip(f"{primitives}.hashes")
    forms = pytest.importorskip(f"{primitives}.serialization")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = forms.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(
        made.public_bytes(forms.Encoding.PEM)
        + key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, plain)
    )
    return path


def served_by(path):
    """What a server wraps its sockets in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
