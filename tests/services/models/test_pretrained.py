"""Parts of pretrained models that look whole and are not."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel

from salon.errors import InvalidRequest
from services.models.bertscore import BertScore
from services.models.pretrained import build_model, load_model, load_part
from tests.fixtures.text_models import MINILM_LAYERS, minilm

CLIP = Path(__file__).parents[3] / "models" / "tiny-clip-digits"


def test_a_folder_without_a_tokenizers_files_is_refused(tmp_path):
    assert load_part(AutoTokenizer, str(CLIP)).get_vocab()
    for path in CLIP.iterdir():
        if path.name not in ("tokenizer.json", "vocab.json", "merges.txt"):
            shutil.copy(path, tmp_path)
    with pytest.raises(InvalidRequest, match="it has no words; give a folder"):
        load_part(AutoTokenizer, str(tmp_path))


class Harmful:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Harmful(), 2), pickle.dumps(Harmful(), 4), b"garbage", b""],
    ids=["pickle-2", "pickle-4", "garbage", "empty"],
)
def test_a_folders_pickle_is_refused_without_advice_to_unpickle_it(tmp_path, capsys, content):
    shutil.copytree(CLIP, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    (tmp_path / "clip" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InvalidRequest, match="cannot be loaded as CLIPModel: ") as told:
        load_model(CLIPModel, str(tmp_path / "clip"), torch.device("cpu"), torch.float32)
    assert "weights_only" not in str(told.value) and "\n" not in str(told.value)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("visual_projection.weight"), "lacks 1 weight, such as visual_projection"),
        (
            lambda s: s.update({"visual_projection.weight": torch.zeros(3, 4)}),
            r"visual_projection.weight \(3, 4\) for \(",
        ),
        (
            lambda s: s.update({"text_model.encoder.layers.9.mlp.fc1.bias": torch.zeros(4)}),
            "has 1 weight, such as text_model.encoder.layers.9.mlp.fc1.bias for which its conf",
        ),
        (
            lambda s: s["visual_projection.weight"].view(-1)[3:4].fill_(torch.nan),
            "has NaN or infinity, as float32, in 1 weight, such as visual_projection.weight of ",
        ),
        (
            lambda s: s["logit_scale"].fill_(torch.inf),
            "has NaN or infinity, as float32, in 1 weight, such as logit_scale of ",
        ),
        (
            lambda s: s.update({"logit_scale": torch.tensor(4)}),
            r"has 1 weight, such as logit_scale \(i(nt)?64\), which is no type",
        ),
        (
            lambda s: s.update(
                {"visual_projection.weight": s["visual_projection.weight"].to(torch.float8_e5m2)}
            ),
            r"has 1 weight, such as visual_projection.weight \(float8_e5m2\), which is no type",
        ),
    ],
    ids=["missing", "shape", "layer", "nan", "infinite", "int", "float8"],
)
def test_weights_that_are_not_the_models_are_refused(tmp_path, edit, words):
    shutil.copytree(CLIP, tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path, metadata={"format": "pt"})
    cpu = torch.device("cpu")
    with pytest.raises(InvalidRequest, match=f"is no CLIPModel: it .*{words}"):
        load_model(CLIPModel, str(tmp_path / "clip"), cpu, torch.float32)
    config = CLIPModel.config_class.from_pretrained(CLIP)
    with pytest.raises(InvalidRequest, match=f"is no CLIPModel: it .*{words}"):
        build_model(CLIPModel, config, state, "it", cpu, torch.float32)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_file_of_a_bad_weight_is_named(tmp_path, shards, suffix):
    folder = tmp_path / "clip"
    shutil.copytree(CLIP, folder)
    path = folder / "model.safetensors"
    state = load_file(path)
    path.unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    write = torch.save if suffix == ".bin" else save_as_torch
    files = [f"{stem}{suffix}"]
    if shards > 1:
        files = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    where = {name: files[i % shards] for i, name in enumerate(sorted(state))}
    if shards > 1:
        index = {"metadata": {}, "weight_map": where}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))

    def refusal(**changes):
        for file in files:
            whole = state | changes
            write({name: whole[name] for name in where if where[name] == file}, folder / file)
        with pytest.raises(InvalidRequest) as raised:
            load_model(CLIPModel, str(folder), torch.device("cpu"), torch.float32)
        return str(raised.value)

    bad = torch.full_like(state["visual_projection.weight"], torch.nan)
    name = "visual_projection.weight"
    assert f"such as {name} of {where[name]}; give" in refusal(**{name: bad})
    assert f"such as {name} (int64), which is" in refusal(**{name: bad.nan_to_num().long()})


def save_as_torch(state, path):
    save_file(state, path, metadata={"format": "pt"})


def test_a_weight_that_overflows_in_the_type_asked_for_is_named(tmp_path):
    shutil.copytree(CLIP, tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    state = load_file(path)
    state["visual_projection.weight"].view(-1)[0] = 1e6
    save_as_torch(state, path)
    cpu = torch.device("cpu")
    assert load_model(CLIPModel, str(tmp_path / "clip"), cpu, torch.bfloat16)
    with pytest.raises(InvalidRequest, match="infinity, as float16, in 1 weight, such as visual_p"):
        load_model(CLIPModel, str(tmp_path / "clip"), cpu, torch.float16)


@pytest.mark.parametrize(
    ("half", "keys", "words"),
    [
        ("vision_config", {"hidden_act": "swoosh"}, "swoosh"),
        ("text_config", {"intermediate_size": -4}, "negative"),
    ],
)
def test_a_configuration_that_nothing_can_be_made_of_is_refused(tmp_path, half, keys, words):
    shutil.copytree(CLIP, tmp_path / "clip")
    path = tmp_path / "clip" / "config.json"
    config = json.loads(path.read_text())
    config[half] |= keys
    path.write_text(json.dumps(config))
    cpu = torch.device("cpu")
    with pytest.raises(InvalidRequest, match=f"cannot be loaded as CLIPModel: .*{words}") as told:
        load_model(CLIPModel, str(tmp_path / "clip"), cpu, torch.float32)
    assert "\n" not in str(told.value)
    state = load_file(tmp_path / "clip" / "model.safetensors")
    read = CLIPModel.config_class.from_pretrained(tmp_path / "clip")
    with pytest.raises(InvalidRequest, match=f"no CLIPModel can be made of .*{words}"):
        build_model(CLIPModel, read, state, "it", cpu, torch.float32)


def test_position_numbers_of_old_checkpoints_are_harmless(tmp_path):
    shutil.copytree(CLIP, tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    state = load_file(path)
    for half in ("text", "vision"):
        state[f"{half}_model.embeddings.position_ids"] = torch.arange(4)[None]
    save_file(state, path, metadata={"format": "pt"})
    model = load_model(CLIPModel, str(tmp_path / "clip"), torch.device("cpu"), torch.float32)
    assert torch.equal(model.state_dict()["logit_scale"], state["logit_scale"])


def test_a_text_model_of_bertscore_is_whole_but_for_its_pooler(tmp_path):
    shutil.copytree(minilm(), tmp_path / "text")
    path = tmp_path / "text" / "model.safetensors"
    state = load_file(path)
    pooler = [name for name in state if name.startswith("pooler.")]
    for name in pooler:
        del state[name]
    save_file(state, path, metadata={"format": "pt"})
    assert pooler and BertScore(str(tmp_path / "text"), MINILM_LAYERS, torch.device("cpu"))
    del state["embeddings.word_embeddings.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(InvalidRequest, match="lacks 1 weight, such as embeddings"):
        BertScore(str(tmp_path / "text"), MINILM_LAYERS, torch.device("cpu"))
