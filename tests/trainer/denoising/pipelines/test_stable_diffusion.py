"""Loading, encoding, decoding and saving, against diffusers itself."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from salon.errors import InvalidRequest, SalonError
from trainer.denoising.pipelines.stable_diffusion import Diffusion, to_uint8

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def render(pipeline):
    """Images of the pipeline's own sampler at fixed seeds."""
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.eval().requires_grad_(False)  # torch picks its attention kernel by this
    return pipeline(
        ["a b", "c"],
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        output_type="np",
    ).images


def train_a_little(parameters):
    """Stand-in for training: move what is trainable."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))


def load_base(folder):
    return StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )


def test_embeddings_are_those_of_the_pipeline_and_each_prompt_is_encoded_once(diffusion):
    prompts = ["a b", "", "c", "a b", "c"]
    passes = []
    hook = diffusion.pipeline.text_encoder.register_forward_hook(lambda *_: passes.append(1))
    conditioning = diffusion.encode(prompts)
    diffusion.encode(["c", "a b"])
    hook.remove()
    assert len(passes) == 3
    expected, _ = diffusion.pipeline.encode_prompt(prompts, "cpu", 1, False)
    torch.testing.assert_close(conditioning.embeddings, expected)
    assert not conditioning.embeddings.requires_grad
    assert conditioning.pooled is conditioning.time_ids is None


def test_xl_prompts_are_encoded_by_both_encoders_and_told_their_size(xl_diffusion):
    prompts = ["a b", "c", "a b"]
    told = xl_diffusion.encode(prompts)
    embeddings, empty, pooled, empty_pooled = xl_diffusion.pipeline.encode_prompt(
        prompt=prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    torch.testing.assert_close(told.embeddings, embeddings)
    torch.testing.assert_close(told.pooled, pooled)
    assert told.time_ids.tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    none = xl_diffusion.unconditional()
    assert torch.equal(none.embeddings, empty[:1])
    assert torch.equal(none.pooled, empty_pooled[:1])


def test_pixels_are_rounded_not_truncated():
    levels = torch.tensor([10.4, 10.6, 0.2, 254.7])
    pixels = torch.cat([levels / 255 * 2 - 1, torch.tensor([-3.0, 3.0])])
    image = to_uint8(pixels.view(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert image.shape == (1, 1, 6, 3)
    assert image[0, 0, :, 0].tolist() == [10, 11, 0, 255, 0, 255]


def test_decoding_is_that_of_the_pipeline(diffusion):
    latents = torch.randn(3, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    images = diffusion.decode(latents)
    scaled = latents / diffusion.pipeline.vae.config.scaling_factor
    with torch.no_grad():
        decoded = diffusion.pipeline.vae.decode(scaled).sample
    expected = diffusion.pipeline.image_processor.postprocess(decoded, output_type="pil")
    np.testing.assert_array_equal(images, np.stack([np.asarray(image) for image in expected]))


def test_an_image_that_is_no_number_is_not_a_black_one(diffusion):
    latents = torch.zeros(2, *diffusion.latent_shape)
    latents[1, 0, 0, 0] = torch.inf
    with pytest.raises(SalonError, match=r"no finite numbers: .* learning_rate .* precision fp32"):
        diffusion.decode(latents)


def test_xl_latents_are_decoded_with_the_mean_and_spread_of_their_vae(xl_diffusion):
    mean, deviation = [0.5, -1.0, 2.0, 0.1], [3.0, 1.0, 0.5, 2.0]
    latents = torch.randn(2, *xl_diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    plain = xl_diffusion.decode(latents)
    scale = xl_diffusion.pipeline.vae.config.scaling_factor
    shift = scale * torch.tensor(mean).view(1, 4, 1, 1)
    by_hand = xl_diffusion.decode(latents * torch.tensor(deviation).view(1, 4, 1, 1) + shift)
    xl_diffusion.pipeline.vae.register_to_config(latents_mean=mean, latents_std=deviation)
    images = xl_diffusion.decode(latents)
    assert np.abs(images.astype(int) - by_hand).max() <= 1
    assert np.abs(images.astype(int) - plain).max() > 1


@pytest.mark.parametrize(("upcast", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_the_vae_of_xl_stays_exact_where_it_must(xl_diffusion, upcast, dtype):
    xl_diffusion.precision = "bf16"
    xl_diffusion.pipeline.vae.register_to_config(force_upcast=upcast)
    seen = []
    hook = xl_diffusion.pipeline.vae.decoder.conv_in.register_forward_hook(
        lambda _, __, output: seen.append(output.dtype)
    )
    assert xl_diffusion.decode(torch.zeros(1, *xl_diffusion.latent_shape)).shape == (1, 16, 16, 3)
    hook.remove()
    assert seen == [dtype]


def test_a_trained_unet_is_saved_as_a_folder_that_diffusers_loads(diffusion, tmp_path):
    trainable = diffusion.trainable()
    base = render(diffusion.pipeline)
    train_a_little(trainable)
    trained = render(diffusion.pipeline)
    diffusion.save(tmp_path / "model")
    reloaded = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(render(reloaded), trained)
    assert np.abs(trained - base).max() > 0.01
    assert not list((tmp_path / "model").rglob("*.bin"))
    tokenizer = {path.name for path in (tmp_path / "model" / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= tokenizer


@pytest.mark.parametrize("targets", [ATTENTION, (*ATTENTION, "proj_in", "conv1")], ids=len)
def test_adapters_are_saved_as_weights_that_diffusers_loads(
    diffusion, pipeline_folder, tmp_path, targets
):
    base = render(diffusion.pipeline)
    diffusion.add_lora(rank=2, alpha=6, target_modules=targets, seed=0)
    trainable = diffusion.trainable()
    np.testing.assert_array_equal(render(diffusion.pipeline), base)  # B starts at zero
    train_a_little(trainable)
    trained = render(diffusion.pipeline)
    diffusion.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "scheduler"}
    pipeline = load_base(pipeline_folder)
    pipeline.load_lora_weights(tmp_path)
    np.testing.assert_array_equal(render(pipeline), trained)
    assert np.abs(trained - base).max() > 0.01


@pytest.mark.parametrize("lora", [False, True])
def test_what_was_trained_of_xl_is_saved_for_diffusers(xl_diffusion, xl_folder, tmp_path, lora):
    if lora:
        xl_diffusion.add_lora(rank=2, alpha=6, target_modules=ATTENTION, seed=0)
    trainable = xl_diffusion.trainable()
    base = render(xl_diffusion.pipeline)
    train_a_little(trainable)
    trained = render(xl_diffusion.pipeline)
    xl_diffusion.save(tmp_path)
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder if lora else tmp_path)
    if lora:
        pipeline.load_lora_weights(tmp_path)
    np.testing.assert_allclose(render(pipeline), trained, atol=1e-5)
    assert np.abs(trained - base).max() > 0.01
    for folder in () if lora else ("tokenizer", "tokenizer_2"):
        names = {path.name for path in (tmp_path / folder).iterdir()}
        assert {"vocab.json", "merges.txt"} <= names


def test_only_what_is_trained_has_gradients(diffusion):
    frozen = [*diffusion.pipeline.vae.parameters(), *diffusion.pipeline.text_encoder.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    assert len(diffusion.trainable()) == len(list(diffusion.unet.parameters()))
    diffusion.add_lora(rank=2, alpha=2, target_modules=ATTENTION, seed=0)
    assert diffusion.trainable()
    assert all("lora" in name for name in diffusion.trainable())


def test_adapters_depend_on_the_seed_and_leave_the_global_generator_alone(pipeline_folder):
    def adapters(seed):
        diffusion = Diffusion.load(str(pipeline_folder))
        torch.manual_seed(seed + 100)
        state = torch.get_rng_state()
        diffusion.add_lora(rank=2, alpha=2, target_modules=ATTENTION, seed=seed % 2)
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([p.detach().flatten() for p in diffusion.trainable().values()])

    assert torch.equal(adapters(0), adapters(2))
    assert not torch.equal(adapters(0), adapters(1))


def test_wrong_target_modules_are_named(diffusion):
    with pytest.raises(InvalidRequest, match=r"lora\.target_modules \['nowhere', 'o_q'\]"):
        diffusion.add_lora(rank=2, alpha=2, target_modules=("nowhere", "to_q", "o_q"), seed=0)
    with pytest.raises(InvalidRequest, match=r"lora\.target_modules \['norm1'\]: .*not supported"):
        diffusion.add_lora(rank=2, alpha=2, target_modules=("norm1",), seed=0)


def test_sampling_is_ddim_without_clipping_whatever_sampler_the_model_came_with(diffusion):
    own = PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1)
    diffusion.pipeline.scheduler = own
    scheduler = Diffusion(diffusion.pipeline).scheduler("ddim")
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert not scheduler.config.clip_sample
    assert diffusion.pipeline.scheduler is own


def test_ddpm_takes_the_place_of_the_models_sampler_too(diffusion):
    scheduler = diffusion.scheduler("ddpm")
    assert isinstance(scheduler, DDPMScheduler)
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert not scheduler.config.clip_sample


def test_a_sampler_without_betas_is_refused(diffusion):
    diffusion.pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler, has no betas"):
        diffusion.scheduler("ddim")


def test_other_pipelines_are_refused_by_name(pipeline_folder, tmp_path):
    index = json.loads((pipeline_folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusion3Pipeline"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    message = "StableDiffusionPipeline or a StableDiffusionXLPipeline: it is a StableDiffusion3"
    with pytest.raises(InvalidRequest, match=message):
        Diffusion.load(str(tmp_path))


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"cannot be loaded .* model_index\.json"):
        Diffusion.load(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("tokenizer/tokenizer.json", "its tokenizer has no words"),
        ("text_encoder/model.safetensors", "text_encoder/model.safetensors cannot be read: .*cut"),
        ("unet/diffusion_pytorch_model.safetensors", "cut short at 3 bytes"),
    ],
)
def test_a_file_that_is_missing_or_cut_short_is_refused(pipeline_folder, tmp_path, file, reason):
    model = tmp_path / "model"
    shutil.copytree(pipeline_folder, model)
    if file.endswith(".json"):
        (model / file).unlink()
    else:
        (model / file).write_bytes(b"cut")
    with pytest.raises(InvalidRequest, match=f"cannot be loaded .*{reason}"):
        Diffusion.load(str(model))


def test_pickled_weights_are_refused(pipeline_folder, tmp_path):
    pipeline = load_base(pipeline_folder)
    pipeline.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(InvalidRequest, match="safetensors"):
        Diffusion.load(str(tmp_path))
