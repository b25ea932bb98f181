import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from tiny.prompts import SCENES
from tiny.tokenizer import MAX_TOKENS, WORDS, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_each_word_is_one_token(tokenizer: CLIPTokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    assert [len(tokens) for tokens in ids] == [1] * len(WORDS)
    assert len({tokens[0] for tokens in ids}) == len(WORDS)


def test_prompts_survive_the_round_trip_and_fit(tokenizer: CLIPTokenizer):
    prompts = [scene.prompt for scene in SCENES]
    ids = tokenizer(prompts).input_ids
    assert [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in ids] == prompts
    assert {len(tokens) for tokens in ids} == {9}
    assert tokenizer.model_max_length == MAX_TOKENS


def test_unforeseen_text_is_spelled_not_unknown(tokenizer: CLIPTokenizer):
    text = "naïve zebra 12 日本"
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens).replace(" ", "") == text.replace(" ", "")


def test_merges_join_tokens_of_the_vocabulary(tokenizer: CLIPTokenizer, tmp_path: Path):
    write_tokenizer(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    header, *merges = (tmp_path / "merges.txt").read_text().splitlines()
    assert header == "#version: 0.2"
    for merge in merges:
        left, right = merge.split()
        assert {left, right, left + right} <= vocabulary.keys()
    assert sorted(vocabulary.values()) == list(range(len(tokenizer)))
