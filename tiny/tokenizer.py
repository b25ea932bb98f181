"""A CLIP tokenizer whose vocabulary is made for the prompts of the tiny generator."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from tiny.prompts import COLOURS, DIGITS

WORDS = ("a", "on", "background", *COLOURS, *DIGITS)
MAX_TOKENS = 16
_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json, merges.txt and tokenizer_config.json to the folder, and load them.

    Each of `WORDS` becomes one token; any other text falls back to bytes, so no prompt is unknown.
    """
    alphabet = sorted(ByteLevel.alphabet())
    merges = _byte_pair_merges(WORDS)
    joined = dict.fromkeys(left + right for left, right in merges)
    tokens = [*alphabet, *(char + _WORD_END for char in alphabet), *joined, _START, _END]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = [f"{left} {right}" for left, right in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder))


def _byte_pair_merges(words: tuple[str, ...]) -> list[tuple[str, str]]:
    """Merges, in order, after which every word is a single token.

    Byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, algorithm 1), run
    until nothing is left to merge. Most frequent pair first, ties in alphabetical order: merging
    word by word instead would let one word's merges split another ("re" of "red" in "three").
    """
    spelled = [[*word[:-1], word[-1] + _WORD_END] for word in words]
    merges = []
    while pairs := Counter(pair for parts in spelled for pair in pairwise(parts)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(parts, best) for parts in spelled]
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        # A part that was itself just merged is longer than pair[0], so it cannot match again.
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
