"""Random generators that depend on a key alone, so that a resumed run draws what it would have."""

import hashlib

import torch


def derive_seed(*key: str | int) -> int:
    """A 63-bit seed from `key`: the first bytes of the SHA-256 of its parts, in order."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: str | int) -> torch.Generator:
    """A fresh CPU generator seeded from `key`, such as (job seed, purpose, iteration, batch).

    Always on the CPU, so that one key means the same numbers whatever device the model is on.
    """
    return torch.Generator("cpu").manual_seed(derive_seed(*key))
