import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from salon.errors import InvalidRequest
from salon.security import read_pair, read_roots
from tests.fixtures.certificates import Authority, private


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


def test_the_bytes_are_those_of_the_files(authority):
    certificate, key = authority.issue("a")
    assert read_pair(certificate, key) == (certificate.read_bytes(), key.read_bytes())
    assert read_roots(authority.file) == authority.file.read_bytes()


def test_the_key_of_another_certificate_is_named(authority):
    certificate, key = authority.issue("b")[0], authority.issue("c")[1]
    with pytest.raises(InvalidRequest, match=f"{key} does not belong to certificate {certificate}"):
        read_pair(certificate, key)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(authority):
    certificate, key = authority.issue("d")
    secret = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private(secret, b"password"))
    with pytest.raises(InvalidRequest, match=f"{key} cannot be used.*without a password"):
        read_pair(certificate, key)


def test_files_that_cannot_be_read_are_named(authority, tmp_path):
    certificate, key = authority.issue("e")
    missing = tmp_path / "missing.pem"
    for call, words in (
        (lambda: read_pair(missing, key), f"certificate {missing} cannot be read"),
        (lambda: read_pair(certificate, tmp_path), f"key {tmp_path} cannot be read"),
        (lambda: read_roots(missing), f"CA file {missing} cannot be read"),
        (lambda: read_pair(key, key), f"certificate {key} or key {key} cannot be used"),
        (lambda: read_roots(key), f"CA file {key} cannot be used"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            call()
