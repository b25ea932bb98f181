"""Bearer tokens: made here, kept by the service as hashes alone."""

import hashlib
import os
import secrets
from pathlib import Path

from salon.errors import InvalidRequest

TOKEN_BYTES = 32
HASH_PREFIX = "sha256:"


def new_token(name: str) -> tuple[str, str]:
    """A new token, and the line for the service's file of tokens.

    Args:
        name: whose token it is, for people and logs; no spaces.

    Returns:
        The token, 256 random bits in URL-safe base64; and `sha256:<64 hex digits> <name>`.

    Raises:
        InvalidRequest: the name is empty or has a space in it.
    """
    if name.split() != [name]:
        raise InvalidRequest(f"a token's name is one word without spaces, got {name!r}")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    return token, f"{HASH_PREFIX}{hash_token(token)} {name}"


def hash_token(token: str) -> str:
    """SHA-256 of the token's UTF-8, 64 lower-case hex digits.

    Salt and a slow hash (bcrypt, scrypt) protect passwords, which people choose and attackers can
    guess. Among 2**256 random tokens there is nothing to guess, and a slow hash would let anyone
    keep the service busy with wrong tokens.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def add_token(name: str, file: Path) -> str:
    """Make a token and add its line to the service's file of tokens, which is made if need be.

    Args:
        name: whose token it is; as for `new_token`.
        file: it gets the hash alone.

    Returns:
        The token, which is kept nowhere.

    Raises:
        InvalidRequest: the name is no single word or has a token there already, or the file cannot
            be written; it is then as before.
    """
    token, line = new_token(name)
    try:
        with open(file, "a+", encoding="utf-8", opener=_open) as lines:
            lines.seek(0)
            before = lines.read()
            if name in _names(before):
                raise InvalidRequest(
                    f"{file} has a token of the name {name} already: choose another name, such as "
                    f"{name}-2, or take its line out first"
                )
            open_line = bool(before) and not before.endswith("\n")
            lines.write("\n" * open_line + line + "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidRequest(f"cannot add a token to {file}: {reason}") from None
    return token


def _open(path: str, flags: int) -> int:
    # Where the umask lets the group write, the service would refuse the file.
    return os.open(path, flags, mode=0o644)


def _names(text: str) -> set[str]:
    lines = (line.split() for line in text.split("\n"))
    return {words[-1] for words in lines if words and words[0].startswith(HASH_PREFIX)}
