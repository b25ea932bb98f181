"""Every step's Gaussian against diffusers' own schedulers and the published formulas."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from trainer.denoising.schedule import SIGMA_MIN, Schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = {**BETAS, "clip_sample": False, "steps_offset": 1}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tabulate(scheduler, steps=7, eta=1.0):
    return Schedule.of(scheduler, steps=steps, eta=eta, device=torch.device("cpu"))


def take(schedule, i, latents, output, noise):
    mean = schedule.from_latents[i] * latents + schedule.from_output[i] * output
    return mean + schedule.sigma[i] * noise


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_ddim_steps_are_those_of_diffusers(eta, spacing, prediction):
    options = {"set_alpha_to_one": False, "timestep_spacing": spacing}
    scheduler = DDIMScheduler(**PLAIN, **options, prediction_type=prediction)
    schedule = tabulate(scheduler, steps=50, eta=eta)
    reference = DDIMScheduler.from_config(scheduler.config)
    reference.set_timesteps(50)
    assert torch.equal(schedule.timesteps, reference.timesteps)
    checked = 0
    for i, timestep in enumerate(reference.timesteps):
        if schedule.sigma[i] == torch.tensor(SIGMA_MIN):
            continue
        latents, output, noise = draw(i, 3, 2, 4, 8, 8)
        step = reference.step(output, timestep, latents, eta=eta, variance_noise=noise)
        assert_close(take(schedule, i, latents, output, noise), step.prev_sample)
        checked += 1
    assert checked >= 49


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_steps_are_those_of_diffusers(variance, spacing, prediction):
    options = {"variance_type": variance, "timestep_spacing": spacing}
    scheduler = DDPMScheduler(**PLAIN, **options, prediction_type=prediction)
    schedule = tabulate(scheduler, steps=50)
    reference = DDPMScheduler.from_config(scheduler.config)
    reference.set_timesteps(50)
    assert torch.equal(schedule.timesteps, reference.timesteps)
    for i, timestep in enumerate(reference.timesteps):
        latents, output = draw(i, 2, 2, 4, 8, 8)
        step = reference.step(
            output, timestep, latents, generator=torch.Generator().manual_seed(99)
        )
        # The last step of fixed_small, and any from timestep 0, has no noise there.
        quiet = timestep == 0 or (i == 49 and variance == "fixed_small")
        noise = torch.zeros(2, 4, 8, 8) if quiet else draw(99, 2, 4, 8, 8)
        assert_close(take(schedule, i, latents, output, noise), step.prev_sample)
        assert (schedule.sigma[i].item() == pytest.approx(SIGMA_MIN)) == quiet


def test_ddim_is_equations_12_and_16_of_its_paper():
    schedule = tabulate(DDIMScheduler(**PLAIN, set_alpha_to_one=False), steps=10, eta=0.7)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    now, then = alphas[501], alphas[401]
    sigma = 0.7 * ((1 - then) / (1 - now)).sqrt() * (1 - now / then).sqrt()
    latents, output, noise = draw(0, 3, 2, 4, 8, 8)
    predicted = (latents - (1 - now).sqrt() * output) / now.sqrt()
    expected = then.sqrt() * predicted + (1 - then - sigma**2).sqrt() * output + sigma * noise
    assert schedule.timesteps[4] == 501
    assert_close(take(schedule, 4, latents, output, noise), expected.float())


def test_ddpm_is_equation_7_of_its_paper():
    """With every timestep taken, where alpha of a step is 1 - beta of the schedule."""
    schedule = tabulate(DDPMScheduler(**{**PLAIN, "steps_offset": 0}), steps=1000)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    t = 700
    latents, output, noise = draw(0, 3, 2, 4, 8, 8)
    predicted = (latents - (1 - alphas[t]).sqrt() * output) / alphas[t].sqrt()
    mean = alphas[t - 1].sqrt() * betas[t] / (1 - alphas[t]) * predicted
    mean = mean + (1 - betas[t]).sqrt() * (1 - alphas[t - 1]) / (1 - alphas[t]) * latents
    variance = (1 - alphas[t - 1]) / (1 - alphas[t]) * betas[t]
    expected = mean + variance.sqrt() * noise
    assert schedule.timesteps[999 - t] == t
    assert_close(take(schedule, 999 - t, latents, output, noise), expected.float())


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_first_step_from_pure_noise_is_that_of_diffusers(kind, prediction):
    scheduler = kind(
        **PLAIN,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type=prediction,
    )
    # At eta 1 rounding takes diffusers' DDIM to the root of a negative number here.
    schedule = tabulate(scheduler, eta=0.9)
    assert schedule.alphas_cumprod[schedule.timesteps[0]] == 0
    latents, output = draw(0, 2, 2, 4, 8, 8)
    reference = kind.from_config(scheduler.config)
    reference.set_timesteps(7)
    options = {"eta": 0.9} if kind is DDIMScheduler else {}
    step = reference.step(
        output, 999, latents, generator=torch.Generator().manual_seed(5), **options
    )
    assert_close(take(schedule, 0, latents, output, draw(5, 2, 4, 8, 8)), step.prev_sample)
    ancestral = tabulate(scheduler, eta=1.0)
    for table in (ancestral.from_latents, ancestral.from_output, ancestral.sigma):
        assert torch.isfinite(table).all()


def test_noise_cannot_tell_the_image_where_there_is_nothing_else():
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ValueError, match=r"'epsilon' says nothing.*rescale_betas_zero_snr"):
        tabulate(DDIMScheduler(**PLAIN, **options))
    leading = {**options, "timestep_spacing": "leading"}
    assert torch.isfinite(tabulate(DDIMScheduler(**PLAIN, **leading)).from_output).all()


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_a_timestep_beyond_the_last_is_refused(kind):
    with pytest.raises(ValueError, match=r"sampling_steps 1000 .* steps_offset 1 .* last is 999"):
        tabulate(kind(**PLAIN), steps=1000)
    assert tabulate(kind(**PLAIN), steps=999).timesteps[0] == 999


@pytest.mark.parametrize("offset", [0, 1])
def test_a_schedule_without_noise_in_its_last_step_keeps_a_density(offset):
    scheduler = DDIMScheduler(**{**PLAIN, "steps_offset": offset}, set_alpha_to_one=True)
    schedule = tabulate(scheduler)
    assert schedule.sigma[-1].item() == pytest.approx(SIGMA_MIN)
    assert (schedule.sigma[:-1] > SIGMA_MIN).all()
    latents, output, noise = draw(0, 3, 1, 4, 8, 8)
    reference = DDIMScheduler.from_config(scheduler.config)
    reference.set_timesteps(7)
    quiet = reference.step(output, int(schedule.timesteps[-1]), latents, eta=1.0).prev_sample
    assert_close(take(schedule, 6, latents, output, torch.zeros_like(noise)), quiet)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler has no Gaussian steps.*DDIMScheduler"),
        (DDIMScheduler(**{**PLAIN, "clip_sample": True}), "clip_sample or thresholding"),
        (DDPMScheduler(**PLAIN, thresholding=True), "clip_sample or thresholding"),
        (DDPMScheduler(**PLAIN, variance_type="learned_range"), "variance_type 'learned_range'"),
        (DDIMScheduler(**PLAIN, prediction_type="flow"), "prediction_type 'flow'; known are"),
        (DDIMScheduler(**PLAIN, num_train_timesteps=5), "sampling_steps is 7, .* only 5 steps"),
    ],
)
def test_schedulers_it_is_not_made_for_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        tabulate(scheduler)
