"""Folders of pipelines that are not whole, or ask for what a text does not give."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import PNDMScheduler
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from salon.errors import InvalidRequest
from trainer.denoising.pipelines.folder import PipelineFolder
from trainer.denoising.pipelines.stable_diffusion import Diffusion

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
A_WEIGHT = {
    "unet": "conv_in.bias",
    "vae": "decoder.conv_out.bias",
    "text_encoder": "final_layer_norm.bias",
    "text_encoder_2": "text_projection.weight",
}
A_LAYER = {
    "unet": "down_blocks.0.resnets.7.conv1.bias",
    "vae": "decoder.up_blocks.0.resnets.9.conv1.bias",
    "text_encoder": "encoder.layers.7.mlp.fc1.weight",
    "text_encoder_2": "text_model.encoder.layers.7.mlp.fc1.weight",
}


@pytest.fixture
def model(xl_folder, pipeline_folder, tmp_path, request):
    """A copy to break; of XL where a test names a part that it alone has."""
    part = getattr(request.node, "callspec", None)
    is_xl = part is not None and "text_encoder_2" in part.params.values()
    shutil.copytree(xl_folder if is_xl else pipeline_folder, tmp_path / "model")
    return tmp_path / "model"


def change(model, part, edit):
    """Edit a part's state dict."""
    path = model / part / FILES[part]
    state = load_file(path)
    edit(state)
    save_file(state, path, metadata={"format": "pt"})


def configure(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def refusal(model):
    with pytest.raises(InvalidRequest) as raised:
        Diffusion.load(str(model))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("part", FILES)
def test_a_weight_that_is_missing_is_never_made_up(model, part):
    name = next(n for n in load_file(model / part / FILES[part]) if n.endswith(A_WEIGHT[part]))
    change(model, part, lambda state: state.pop(name))
    assert f"its {part} lacks 1 weight, such as {A_WEIGHT[part]}" in refusal(model).replace(
        "text_model.", ""
    )


@pytest.mark.parametrize("part", FILES)
def test_a_weight_of_another_shape_is_named_with_both(model, part):
    name = next(n for n in load_file(model / part / FILES[part]) if n.endswith(A_WEIGHT[part]))
    own = tuple(load_file(model / part / FILES[part])[name].shape)
    change(model, part, lambda state: state.update({name: torch.zeros(7)}))
    told = refusal(model)
    assert f"its {part} does not fit its configuration" in told
    assert f"{A_WEIGHT[part]} (7,) for {own}" in told
    assert "low_cpu_mem_usage" not in told


@pytest.mark.parametrize("part", FILES)
def test_a_layer_that_the_configuration_leaves_out_is_named(model, part):
    change(model, part, lambda state: state.update({A_LAYER[part]: torch.zeros(2)}))
    assert f"its {part} has 1 weight, such as {A_LAYER[part]} for which" in refusal(model)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("part", FILES)
def test_a_weight_that_is_no_number_is_named_with_its_file(model, part, value):
    def spoil(state):
        name = next(n for n in state if n.endswith(A_WEIGHT[part]))
        state[name].view(-1)[-1] = value

    change(model, part, spoil)
    told = refusal(model).replace("text_model.", "")
    assert (
        f"its {part} has NaN or infinity, as float32, in 1 weight, such as {A_WEIGHT[part]} of "
        f"{part}/{FILES[part]}" in told
    )


@pytest.mark.parametrize(
    ("dtype", "called"),
    [
        (torch.int64, "i64"),
        (torch.int8, "i8"),
        (torch.bool, "bool"),
        (torch.float8_e4m3fn, "f8_e4m3"),
    ],
)
@pytest.mark.parametrize("part", FILES)
def test_a_weight_of_another_type_is_named_before_it_is_cast(model, part, dtype, called):
    def cast(state):
        name = next(n for n in state if n.endswith(A_WEIGHT[part]))
        state[name] = state[name].to(dtype)

    change(model, part, cast)
    with pytest.raises(InvalidRequest) as raised:
        PipelineFolder(model, str(model)).check()
    told = str(raised.value).replace("text_model.", "")
    assert f"its {part} has 1 weight, such as {A_WEIGHT[part]} ({called}), which is no type" in told
    assert told == refusal(model).replace("text_model.", "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_type_of_a_network_are_loaded_as_float32(model, diffusion, dtype):
    change(model, "unet", lambda state: state.update({n: w.to(dtype) for n, w in state.items()}))
    loaded = Diffusion.load(str(model)).trainable()
    for name, weight in diffusion.trainable().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight.to(dtype).float())


def test_what_old_checkpoints_hold_besides_is_harmless(model, diffusion):
    harmless = {
        "text_model.embeddings.position_ids": torch.arange(8)[None],
        "text_projection.weight": torch.zeros(4, 16),
        "vision_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2),
    }
    change(model, "text_encoder", lambda state: state.update(harmless))
    loaded = Diffusion.load(str(model)).encode(["a b"])
    assert torch.equal(loaded.embeddings, diffusion.encode(["a b"]).embeddings)


def test_a_vae_with_the_names_of_2022_draws_the_same(model, diffusion):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for name in list(state):
            for new, old in names.items():
                if f".{new}." in name:
                    state[name.replace(new, old)] = state.pop(name)

    change(model, "vae", rename)
    assert any("proj_attn" in name for name in load_file(model / "vae" / FILES["vae"]))
    latents = torch.randn(1, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    assert (Diffusion.load(str(model)).decode(latents) == diffusion.decode(latents)).all()


def test_configurations_of_2022_leave_out_what_was_not_thought_of(model):
    """As those of Stable Diffusion 1.4 on the hub, which have no prediction_type either."""
    path = model / "unet" / "config.json"
    later = (
        "num_class_embeds",
        "time_cond_proj_dim",
        "addition_embed_type",
        "encoder_hid_dim_type",
    )
    config = json.loads(path.read_text())
    kept = [key for key in config if key not in later]
    path.write_text(json.dumps({key: config[key] for key in kept}))
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True
    ).save_pretrained(model / "scheduler")
    path = model / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    assert config.pop("prediction_type")
    path.write_text(json.dumps(config))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (model / "model_index.json").write_text(json.dumps(index))
    assert Diffusion.load(str(model)).scheduler("ddim").config.prediction_type == "epsilon"


def test_weights_in_several_files_are_all_read(model, diffusion):
    path = model / "unet" / FILES["unet"]
    state = load_file(path)
    path.unlink()
    stem = "diffusion_pytorch_model"
    where = {name: f"{stem}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(state)}
    for file in set(where.values()):
        part = {name: state[name] for name in state if where[name] == file}
        save_file(part, model / "unet" / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (model / "unet" / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    loaded = Diffusion.load(str(model)).trainable()
    assert all(torch.equal(weight, loaded[name]) for name, weight in diffusion.trainable().items())
    second = model / "unet" / f"{stem}-00002-of-00002.safetensors"
    spoilt = load_file(second)
    name = sorted(spoilt)[0]
    spoilt[name].view(-1)[0] = torch.nan
    save_file(spoilt, second, metadata={"format": "pt"})
    assert refusal(model).endswith(f"such as {name} of unet/{second.name}; fetch or write it anew")
    second.unlink()
    assert "there is no unet/diffusion_pytorch_model-00002-of-00002.safetensors" in refusal(model)


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_folder_of_a_variant_alone_says_so_with_the_way_out(model, variant):
    path = model / "unet" / FILES["unet"]
    path.rename(path.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    told = refusal(model)
    assert f"its unet has only the variant {variant}" in told
    assert f"from_pretrained(folder, variant='{variant}')" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "its vae has no weights: there is no vae/diffusion_pytorch_model.safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "fetch the file with git lfs pull"),
        (b"\x02\0\0\0\0\0\0\0[]", "it is no safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}more", "it has 14 bytes where its header says 10"),
    ],
)
def test_weights_that_are_none_are_named(model, content, words):
    path = model / "vae" / FILES["vae"]
    path.unlink() if content is None else path.write_bytes(content)
    assert words in refusal(model)


def test_pickled_weights_are_named_as_what_they_are(model):
    path = model / "vae" / FILES["vae"]
    path.rename(path.with_suffix(".bin"))
    assert "its vae are a pickle, diffusion_pytorch_model.bin, which may hold code" in refusal(
        model
    )


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        ("unet", {"time_cond_proj_dim": 32}, "time_cond_proj_dim 32: it is distilled"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ("unet", {"num_class_embeds": 4}, "num_class_embeds 4"),
        ("unet", {"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type"),
        ("unet", {"addition_embed_type": "image_hint"}, "addition_embed_type 'image_hint'"),
        ("unet", {"in_channels": 9}, "in_channels 9, but vae/config.json latent_channels 4"),
        ("unet", {"out_channels": 8}, "out_channels 8"),
        ("vae", {"latent_channels": 16}, "in_channels 4, but vae/config.json latent_channels 16"),
        ("unet", {"cross_attention_dim": 32}, "cross_attention_dim 32, .* give vectors of 16"),
        ("unet", {"sample_size": None}, "sample_size None, .*e.g. 256 for 512 x 512"),
        ("unet", {"sample_size": [8]}, r"sample_size \[8\]"),
        ("scheduler", {"prediction_type": "velocity"}, "prediction_type 'velocity': known"),
        ("scheduler", {"num_train_timesteps": 0}, "num_train_timesteps 0: .*above 0"),
        ("scheduler", {"num_train_timesteps": -5}, "num_train_timesteps -5"),
        ("scheduler", {"num_train_timesteps": "1000"}, "num_train_timesteps '1000'"),
        ("scheduler", {"beta_schedule": "cubic"}, "beta_schedule 'cubic'; known are linear, "),
        ("scheduler", {"beta_schedule": None}, "beta_schedule None"),
        ("scheduler", {"beta_end": 12}, "a beta of 12"),
        ("scheduler", {"beta_start": "small"}, "a beta of 'small'"),
        ("scheduler", {"trained_betas": [0.1]}, "trained_betas that are no list of 1000"),
        ("text_encoder", {"hidden_size": "16"}, "text_encoder/config.json has hidden_size '16'"),
        ("text_encoder", {"hidden_size": -16}, "hidden_size -16: it is a whole number above 0"),
        ("text_encoder", {"hidden_size": None}, "hidden_size None"),
        ("vae", {"scaling_factor": None}, "vae/config.json has scaling_factor None: .*above 0"),
        ("vae", {"scaling_factor": 0}, "scaling_factor 0"),
        ("vae", {"scaling_factor": "x"}, "scaling_factor 'x'"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor nan"),
        ("vae", {"scaling_factor": float("inf")}, "scaling_factor inf"),
        ("vae", {"shift_factor": "x"}, "vae/config.json has shift_factor 'x'"),
        ("vae", {"force_upcast": "x"}, "force_upcast 'x': it is true or false"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "'AutoencoderTiny', but .* AutoencoderKL"),
        ("unet", {"_class_name": "Nope"}, "unet/config.json has _class_name 'Nope', but model_ind"),
        ("unet", {"_class_name": 7}, "unet/config.json has _class_name 7"),
        ("unet", {"sample_size": 100000}, "sample_size 100000, for images of 200000 x 200000"),
        ("unet", {"sample_size": [4096, 4096]}, "images of 8192 x 8192: no service takes more"),
        ("unet", {"sample_size": 10**4000}, "sample_size 1000"),
        ("vae", {"block_out_channels": [8] * 20_000}, "sample_size 8, for images of 524288 x"),
        ("scheduler", {"num_train_timesteps": 10**39}, "num_train_timesteps 1000"),
        ("unet", {"sample_size": True}, "sample_size True"),
        ("unet", {"norm_eps": -1}, "unet/config.json has norm_eps -1"),
        ("unet", {"flip_sin_to_cos": "x"}, "flip_sin_to_cos 'x'"),
        ("scheduler", {"timestep_spacing": "nope"}, "timestep_spacing 'nope': known are leading"),
        ("scheduler", {"timestep_spacing": []}, r"timestep_spacing \[\]"),
        ("scheduler", {"steps_offset": 1000}, "steps_offset 1000, by which the first of 1 sampl"),
        ("scheduler", {"steps_offset": -5}, "steps_offset -5: it is a whole number from 0 on"),
        ("scheduler", {"set_alpha_to_one": "x"}, "set_alpha_to_one 'x': it is true or false"),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "names a DDIMScheduler"),
        ("scheduler", {"_class_name": "Nope"}, "_class_name 'Nope'"),
        ("text_encoder", {"num_hidden_layers": 0}, "num_hidden_layers 0: it is a whole number"),
        ("text_encoder", {"eos_token_id": 99999}, "eos_token_id 99999, but a vocab_size of 190"),
        ("text_encoder", {"eos_token_id": None}, "eos_token_id None: it is the number of a word"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_text_alone_does_not_give_is_named_by_its_key(model, file, keys, words):
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    configure(model / file / name, **keys)
    with pytest.raises(InvalidRequest, match=words):
        PipelineFolder(model, str(model)).check()


@pytest.mark.parametrize("keys", [{"num_train_timesteps": 9}, {"steps_offset": 100}])
def test_a_schedule_with_room_for_fewer_steps_is_named_with_both(model, keys):
    folder = PipelineFolder(model, str(model))
    folder.check(steps=10)
    configure(model / "scheduler" / "scheduler_config.json", **keys)
    folder.check(steps=8)
    with pytest.raises(InvalidRequest, match=r"scheduler_config.json has .* 10") as raised:
        folder.check(steps=10)
    assert f"{next(iter(keys))} {next(iter(keys.values()))}" in str(raised.value)


@pytest.mark.parametrize("key", ["beta_schedule", "beta_start", "beta_end"])
def test_noise_that_the_model_does_not_tell_is_not_made_up(model, key):
    path = model / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != key}))
    assert f"scheduler/scheduler_config.json lacks {key}, without which nobody" in refusal(model)
    path.write_text("{}")
    assert "lacks beta_schedule and beta_start and beta_end, without" in refusal(model)


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler", None])
def test_schedulers_of_the_same_noise_read_one_anothers_configuration(model, name):
    path = model / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    del config["_class_name"]
    path.write_text(json.dumps(config | ({"_class_name": name} if name else {})))
    assert Diffusion.load(str(model)).scheduler("ddim").config.beta_end == 0.012


@pytest.mark.parametrize(
    ("part", "keys", "words"),
    [
        ("unet", {"act_fn": "swoosh"}, "swoosh"),
        ("unet", {"norm_num_groups": 7}, "num_channels"),
        ("unet", {"block_out_channels": [8, -16]}, "negative"),
        ("unet", {"block_out_channels": "wide"}, "block_out_channels"),
        ("unet", {"down_block_types": ["Tower", "DownBlock2D"]}, "Tower"),
        ("unet", {"layers_per_block": "one"}, "layers_per_block|str"),
        ("vae", {"act_fn": "swoosh"}, "swoosh"),
        ("vae", {"block_out_channels": 8}, "int"),
        ("text_encoder", {"hidden_act": "swoosh"}, "swoosh"),
        ("text_encoder", {"num_attention_heads": "two"}, "num_attention_heads.*'two'"),
        ("text_encoder", {"intermediate_size": -32}, "negative"),
        ("text_encoder", {"num_attention_heads": 3}, "3"),
        ("text_encoder", {"vocab_size": None}, "vocab_size"),
        ("text_encoder_2", {"hidden_act": "swoosh"}, "swoosh"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_configuration_that_nothing_can_be_made_of_is_named(model, part, keys, words):
    configure(model / part / "config.json", **keys)
    with pytest.raises(InvalidRequest, match=words) as raised:
        Diffusion.load(str(model))
    assert f"its {part} cannot be made of {part}/config.json: " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "UNet9D"), ("text_encoder", "CLIP9"), ("scheduler", "Later"), ("tokenizer", "Ours")],
)
def test_a_class_that_is_not_there_is_named(model, part, name):
    index = json.loads((model / "model_index.json").read_text())
    index[part][1] = name
    (model / "model_index.json").write_text(json.dumps(index))
    assert f"model_index.json names a {name} of {index[part][0]} as its {part}" in refusal(model)


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "unet"])
def test_a_part_that_the_index_leaves_out_is_named(model, part):
    configure(model / "model_index.json", **{part: [None, None]})
    assert f"its model_index.json names no {part}" in refusal(model)


@pytest.mark.parametrize(
    ("part", "file", "keys", "words"),
    [
        (
            "scheduler",
            "scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "its scheduler cannot be made of scheduler/scheduler_config.json: .*sigmoid",
        ),
        (
            "tokenizer",
            "tokenizer_config.json",
            {"model_max_length": "many"},
            "its tokenizer has a model_max_length of 'many', but its text_encoder reads 8",
        ),
    ],
)
def test_of_the_other_parts_too(model, part, file, keys, words):
    configure(model / part / file, **keys)
    with pytest.raises(InvalidRequest, match=words):
        Diffusion.load(str(model))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"addition_embed_type": None}, "addition_embed_type None"),
        ({"cross_attention_dim": 16}, "cross_attention_dim 16, .*vectors of 32"),
        ({"projection_class_embeddings_input_dim": 52}, "is told 60 numbers"),
        ({"addition_time_embed_dim": "8"}, "addition_time_embed_dim '8': it is a whole number"),
    ],
)
def test_xl_wants_its_sizes_and_both_texts(xl_folder, tmp_path, keys, words):
    shutil.copytree(xl_folder, tmp_path / "model")
    PipelineFolder(tmp_path / "model", "it").check()
    configure(tmp_path / "model" / "unet" / "config.json", **keys)
    with pytest.raises(InvalidRequest, match=words):
        PipelineFolder(tmp_path / "model", "it").check()


def test_a_tokenizer_and_its_encoder_are_of_one_model(model):
    configure(model / "tokenizer" / "tokenizer_config.json", model_max_length=77)
    assert "model_max_length of 77, but its text_encoder reads 8 tokens" in refusal(model)


@pytest.mark.parametrize("size", [[8, 16], (16, 8)])
def test_a_pair_of_sizes_is_height_and_width(model, xl_folder, tmp_path, size):
    configure(model / "unet" / "config.json", sample_size=list(size))
    diffusion = Diffusion.load(str(model))
    assert diffusion.latent_shape == (4, *size)
    height, width = (2 * side for side in size)
    image = diffusion.decode(torch.zeros(1, *diffusion.latent_shape))
    assert image.shape == (1, height, width, 3)
    plain = diffusion.pipeline("a b", num_inference_steps=1, output_type="np").images
    assert plain.shape == image.shape
    shutil.copytree(xl_folder, tmp_path / "xl")
    configure(tmp_path / "xl" / "unet" / "config.json", sample_size=list(size))
    told = Diffusion.load(str(tmp_path / "xl")).encode(["a b"]).time_ids
    assert told.tolist() == [[height, width, 0, 0, height, width]]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, which is not to be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_model_of_the_hub_comes_from_its_cache(cache, pipeline_folder, diffusion):
    repository = cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1" * 40)
    snapshot = repository / "snapshots" / ("1" * 40)
    shutil.copytree(pipeline_folder, snapshot)
    loaded = Diffusion.load("owner/name").trainable()
    assert all(torch.equal(weight, loaded[name]) for name, weight in diffusion.trainable().items())
    (snapshot / "vae" / FILES["vae"]).unlink()
    assert f"'owner/name' (in the hub's cache, {snapshot})" in refusal("owner/name")


def test_offline_a_model_that_is_not_cached_is_said_to_be_that(cache):
    told = refusal("owner/name")
    assert f"not in the hub's cache ({cache}), and HF_HUB_OFFLINE is set" in told
    assert "does not appear to have a file" not in told


def test_a_folder_is_judged_without_torch(pipeline_folder):
    code = (
        "import sys; from pathlib import Path;"
        "from trainer.denoising.pipelines.folder import PipelineFolder;"
        "PipelineFolder(Path(sys.argv[1]), 'it').check(); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(pipeline_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
