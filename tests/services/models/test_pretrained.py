"""Parts of pretrained models that look whole and are not."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from salon.errors import InvalidRequest
from services.models.pretrained import load_part

CLIP = Path(__file__).parents[3] / "models" / "tiny-clip-digits"


def test_a_folder_without_a_tokenizers_files_is_refused(tmp_path):
    assert load_part(AutoTokenizer, str(CLIP)).get_vocab()
    for path in CLIP.iterdir():
        if path.name not in ("tokenizer.json", "vocab.json", "merges.txt"):
            shutil.copy(path, tmp_path)
    with pytest.raises(InvalidRequest, match="it has no words; give a folder"):
        load_part(AutoTokenizer, str(tmp_path))
