"""Optimisation, averaging, precision and files of a UNet in training."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from salon.errors import InvalidRequest, SalonError
from trainer.denoising.config import DenoisingConfig, LoraConfig
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.pipelines.stable_diffusion import Diffusion

PROMPTS = ["a", "b", "c"]
LORA = LoraConfig(rank=2, alpha=3)


def make_finetuner(diffusion, keep_reference=False, **changes):
    values = {
        "samples_per_iteration": 8,
        "sampling_steps": 3,
        "learning_rate": 1e-2,
        "guidance_scale": 2.0,
        **changes,
    }
    config = DenoisingConfig(name="none", **values)
    return Finetuner(diffusion, config, PROMPTS, seed=0, keep_reference=keep_reference)


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_of(finetuner, seed=0):
    """Of two steps taken by the policy as it is, less probable from now on."""
    latents, noise = draw(seed, 2, 2, 4, 8, 8)
    steps = torch.tensor([0, 1]), finetuner.diffusion.encode(["a", "b"])
    with torch.no_grad():
        mean, sigma = finetuner.policy.step(latents, *steps)
    return finetuner.policy.log_prob(latents, mean + sigma * noise, *steps).mean()


def train(finetuner, updates=1):
    for seed in range(updates):
        finetuner.optimization.backward(loss_of(finetuner, seed))
        finetuner.optimization.apply_gradient()


def copies(finetuner):
    return {name: p.detach().clone() for name, p in finetuner.parameters.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_the_gradient_is_scaled_down_and_cleared(diffusion):
    finetuner = make_finetuner(diffusion, max_grad_norm=0.5)
    for parameter in finetuner.parameters.values():
        parameter.grad = torch.full_like(parameter, 2.0)
    count = sum(parameter.numel() for parameter in finetuner.parameters.values())
    seen = []
    step = finetuner.optimization._optimizer.step

    def watch():
        seen.extend(p.grad.norm() for p in finetuner.parameters.values())
        return step()

    finetuner.optimization._optimizer.step = watch
    norm = finetuner.optimization.apply_gradient()
    assert norm.item() == pytest.approx(2 * count**0.5, rel=1e-5)
    assert torch.stack(seen).norm().item() == pytest.approx(0.5, rel=1e-4)
    assert all(parameter.grad is None for parameter in finetuner.parameters.values())


def test_the_average_is_the_recursion_and_makes_the_pictures(diffusion, tmp_path):
    finetuner = make_finetuner(diffusion, ema_decay=0.2)
    expected = copies(finetuner)
    for update in range(3):
        train(finetuner)
        # The first steps weigh more, until decay is what was asked for (tf.train's rule).
        decay = 0.0 if update == 0 else min(0.2, (1 + update) / (10 + update))
        for name, value in expected.items():
            value.mul_(decay).add_((1 - decay) * finetuner.parameters[name].detach())
    trained = copies(finetuner)
    state = finetuner.optimization.state()
    for name, value in expected.items():
        torch.testing.assert_close(state[f"average.{name}"], value)
    pictures = finetuner.generate(PROMPTS, [1, 2, 3])
    finetuner.save(tmp_path / "model")
    assert_equal(copies(finetuner), trained)
    saved = Diffusion.load(str(tmp_path / "model"))
    assert_equal(saved.trainable(), {n: state[f"average.{n}"] for n in trained})
    plain = make_finetuner(saved)
    np.testing.assert_array_equal(plain.generate(PROMPTS, [1, 2, 3]), pictures)


@pytest.mark.parametrize(
    "changes", [{"ema_decay": 0.9, "lora": LORA}, {"precision": "fp16", "ema_decay": 0.9}]
)
def test_a_restored_run_continues_as_the_one_it_was_taken_from(pipeline_folder, changes):
    whole = make_finetuner(Diffusion.load(str(pipeline_folder)), **changes)
    train(whole)
    state = whole.optimization.state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    train(whole, 2)
    resumed = make_finetuner(Diffusion.load(str(pipeline_folder)), **changes)
    resumed.optimization.restore(state)
    assert_equal(resumed.optimization.state(), kept)
    train(resumed, 2)
    assert_equal(resumed.optimization.state(), whole.optimization.state())


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"ema_decay": 0.9}, {}, "moving average.*ema_decay"),
        ({}, {"ema_decay": 0.9}, "moving average.*ema_decay"),
        ({"precision": "fp16"}, {}, "scales its loss.*precision"),
        ({"lora": LORA}, {}, "not of this model"),
    ],
)
def test_a_state_of_another_configuration_is_refused(pipeline_folder, one, other, message):
    state = make_finetuner(Diffusion.load(str(pipeline_folder)), **one).optimization.state()
    with pytest.raises(ValueError, match=message):
        make_finetuner(Diffusion.load(str(pipeline_folder)), **other).optimization.restore(state)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_trained_weights_are_fp32_in_any_precision(diffusion, precision, lora):
    finetuner = make_finetuner(diffusion, precision=precision, lora=lora)
    frozen = [p for p in diffusion.unet.parameters() if not p.requires_grad]
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {p.dtype for p in frozen} == ({dtypes[precision]} if lora else set())
    before = copies(finetuner)
    train(finetuner, 2)
    assert {p.dtype for p in finetuner.parameters.values()} == {torch.float32}
    assert any(not torch.equal(p, before[n]) for n, p in finetuner.parameters.items())
    images = finetuner.generate(PROMPTS, [1, 2, 3])
    assert images.std() > 1
    train(finetuner)  # sampling leaves nothing behind that training must not use


def test_a_gradient_that_overflows_is_not_applied(diffusion):
    finetuner = make_finetuner(diffusion, precision="fp16")
    before = copies(finetuner)
    finetuner.optimization.backward(loss_of(finetuner) * 1e38)
    assert not torch.isfinite(finetuner.optimization.apply_gradient())
    assert_equal(copies(finetuner), before)
    assert finetuner.optimization.state()["loss_scale"].item() == 2.0**15
    train(finetuner)
    assert any(not torch.equal(p, before[n]) for n, p in finetuner.parameters.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gradient_that_is_no_number_ends_training_before_the_step(diffusion, precision):
    finetuner = make_finetuner(diffusion, precision=precision)
    if precision == "fp16":  # at scale 1 the scale is not why
        finetuner.optimization.restore(
            finetuner.optimization.state() | {"loss_scale": torch.tensor(1.0)}
        )
    before = copies(finetuner)
    finetuner.optimization.backward(loss_of(finetuner) * float("nan"))
    with pytest.raises(SalonError, match=rf"norm .* is nan: .* learning_rate .*{precision}"):
        finetuner.optimization.apply_gradient()
    assert_equal(copies(finetuner), before)


def test_checkpointing_changes_memory_and_not_the_gradient(pipeline_folder):
    gradients, passes = [], []
    for checkpointing in (False, True):
        diffusion = Diffusion.load(str(pipeline_folder))
        finetuner = make_finetuner(diffusion, gradient_checkpointing=checkpointing)
        loss = loss_of(finetuner)
        hook = diffusion.unet.mid_block.resnets[1].register_forward_pre_hook(
            lambda *_, mode=checkpointing: passes.append(mode)
        )
        finetuner.optimization.backward(loss)
        hook.remove()
        gradients.append({n: p.grad for n, p in finetuner.parameters.items()})
    assert passes == [True]  # computed anew on the way back
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_reference_of_a_whole_unet_is_a_copy_of_its_start(diffusion):
    finetuner = make_finetuner(diffusion, keep_reference=True)
    latents, conditioning = draw(0, 2, 4, 8, 8), diffusion.encode(["a", "b"])
    index = torch.tensor([0, 2])
    with torch.no_grad():
        base, _ = finetuner.policy.step(latents, index, conditioning)
    train(finetuner)
    reference = finetuner.policy.reference_step(latents, index, conditioning)
    moved, _ = finetuner.policy.step(latents, index, conditioning)
    torch.testing.assert_close(reference, base, rtol=1e-5, atol=1e-5)
    assert not reference.requires_grad
    assert (moved - base).abs().max() > 1e-3


def test_tf32_is_off_unless_asked_for():
    assert DenoisingConfig(name="none").tf32 is False
    assert DenoisingConfig(name="none").precision == "fp32"


def test_compiling_for_a_cpu_is_refused(diffusion):
    with pytest.raises(InvalidRequest, match="compile: true is for a GPU"):
        make_finetuner(diffusion, compile=True)


def test_threads_for_rows_on_a_gpu_are_refused(diffusion):
    diffusion.device = torch.device("meta")  # any but a CPU
    with pytest.raises(InvalidRequest, match="row_threads: 2 is for a CPU"):
        make_finetuner(diffusion, row_threads=2)


@pytest.mark.slow
def test_a_traced_unet_has_the_same_gradient(pipeline_folder):
    """What torch.compile captures of the UNet, without the code that it would generate."""
    gradients = []
    for traced in (False, True):
        finetuner = make_finetuner(Diffusion.load(str(pipeline_folder)))
        if traced:
            finetuner.diffusion.unet.compile(backend="aot_eager")
        finetuner.policy.sample(finetuner.diffusion.encode(["a"]), draw(0, 1, 4, 4, 8, 8))
        finetuner.optimization.backward(loss_of(finetuner))
        gradients.append({name: p.grad for name, p in finetuner.parameters.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_what_is_saved_draws_the_pictures_of_training(
    diffusion, pipeline_folder, tmp_path, monkeypatch, name, lora
):
    """By the scheduler of the folder, whatever the model came with, on the same noise."""
    diffusion.pipeline.scheduler = PNDMScheduler(  # as Stable Diffusion 1.4 has it
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    finetuner = make_finetuner(diffusion, scheduler=name, lora=lora)
    train(finetuner, updates=3)
    images = finetuner.generate(["a", "b"], [1, 2])
    finetuner.save(tmp_path)
    if lora is None:
        pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
        pipeline.load_lora_weights(tmp_path)
        kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[name]
        pipeline.scheduler = kind.from_pretrained(tmp_path, subfolder="scheduler")
    ((_, noise),) = finetuner._starts(["a", "b"], [1, 2])
    steps = iter(noise[:, 1:].unbind(1))
    module = f"diffusers.schedulers.scheduling_{name}.randn_tensor"
    monkeypatch.setattr(module, lambda *_, **__: next(steps))
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        ["a", "b"],
        latents=noise[:, 0],
        num_inference_steps=3,
        guidance_scale=2.0,
        eta=1.0,
        output_type="np",
    ).images
    # DDPM's last step has no noise in diffusers, and the least there may be in training.
    assert np.abs((drawn * 255).round() - images).max() <= {"ddim": 1, "ddpm": 4}[name]
    assert type(pipeline.scheduler).__name__ == {"ddim": "DDIMScheduler"}.get(name, "DDPMScheduler")
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert not pipeline.scheduler.config.clip_sample


def test_a_scheduler_without_gaussian_steps_is_an_error_in_words(diffusion):
    diffusion.pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InvalidRequest, match=r"algorithm.scheduler ddim: .*has no betas"):
        make_finetuner(diffusion)
