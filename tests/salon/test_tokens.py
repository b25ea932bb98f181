import hashlib
import subprocess
import sys

import pytest

from salon.errors import InvalidRequest
from salon.tokens import hash_token, new_token


def test_the_file_gets_the_hash_alone():
    token, line = new_token("laptop")
    assert line == f"sha256:{hashlib.sha256(token.encode()).hexdigest()} laptop"
    assert hash_token(token) in line
    assert token not in line


def test_a_token_is_256_bits_and_never_the_same():
    tokens = {new_token("a")[0] for _ in range(100)}
    assert len(tokens) == 100
    assert {len(token) for token in tokens} == {43}  # 32 bytes in base64 without padding


@pytest.mark.parametrize("name", ["", "two words", " a", "a\n"])
def test_a_name_is_one_word(name):
    with pytest.raises(InvalidRequest, match="one word"):
        new_token(name)


def run(*arguments, umask=-1):
    return subprocess.run(
        [sys.executable, "-c", "from salon.cli import main; main()", "token", *arguments],
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_adds_a_line_and_prints_the_token(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("# by hand, without a line break at its end")
    first, second = (run(name, str(file)).stdout.strip() for name in ("laptop", "trainer"))
    assert file.read_text().splitlines()[1:] == [
        f"sha256:{hash_token(first)} laptop",
        f"sha256:{hash_token(second)} trainer",
    ]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    done = run("laptop", str(tmp_path / "missing" / "tokens"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "missing/tokens: No such file" in done.stderr


def test_the_group_may_not_write_a_new_file_whatever_the_umask(tmp_path):
    file = tmp_path / "tokens"
    assert run("laptop", str(file), umask=0o002).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_name_that_is_there_already_is_refused(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# laptop-2\n{new_token('laptop')[1]}\n")
    before = file.read_bytes()
    done = run("laptop", str(file))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "the name laptop already" in done.stderr
    assert file.read_bytes() == before
    assert run("laptop-2", str(file)).returncode == 0
