"""The hyperparameters: paper's defaults, clear refusals."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from trainer.ddpo.config import DDPOConfig
from trainer.denoising.config import LoraConfig


def test_defaults_are_the_papers_table():
    config = DDPOConfig()
    paper = {
        "sampling_steps": 50,
        "guidance_scale": 5.0,
        "learning_rate": 1e-5,
        "weight_decay": 1e-4,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "samples_per_iteration": 256,
        "updates_per_iteration": 4,
        "clip_range": 1e-4,
    }
    assert {name: getattr(config, name) for name in paper} == paper


def test_lora_has_a_learning_rate_of_its_own_unless_one_is_given():
    assert DDPOConfig(lora=LoraConfig()).learning_rate == 3e-4
    assert DDPOConfig.model_validate({"lora": {"rank": 8}}).learning_rate == 3e-4
    assert DDPOConfig(lora=LoraConfig(), learning_rate=1e-3).learning_rate == 1e-3


def test_the_score_function_estimator_has_one_update_of_all_samples():
    config = DDPOConfig(estimator="score_function")
    assert (config.updates_per_iteration, config.inner_epochs) == (1, 1)
    assert DDPOConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_resolved_config_means_the_same_again():
    config = DDPOConfig.model_validate({"lora": {}, "eta": 0.5})
    assert DDPOConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples_per_iteration": 100}, "must be a multiple of sample_batch_size (8)"),
        (
            {"samples_per_iteration": 64, "updates_per_iteration": 3},
            "must be a multiple of updates_per_iteration (3); the next that fits is 66",
        ),
        ({"per_prompt_buffer": 8}, "per_prompt_min_count (16) must not exceed"),
        ({"guidence_scale": 2}, "Extra inputs are not permitted"),
        ({"lora": {"rnak": 2}}, "Extra inputs are not permitted"),
        ({"lora": {"target_modules": []}}, "at least 1 item"),
        ({"eta": 0}, "greater than 0"),
        ({"clip_range": "wide"}, "valid number"),
        ({"learning_rate": float("nan")}, "finite number"),
        ({"name": "rwr"}, "Input should be 'ddpo'"),
        ({"timestep_fraction": 0}, "greater than 0"),
        ({"timestep_fraction": 1.5}, "less than or equal to 1"),
        ({"kl_weight": -1}, "greater than or equal to 0"),
        ({"staleness": 2}, "Input should be 0 or 1"),
        ({"estimator": "score_function", "updates_per_iteration": 4}, "updates_per_iteration is 4"),
        ({"estimator": "score_function", "inner_epochs": 2}, "inner_epochs is 2"),
        ({"estimator": "score_function", "staleness": 1}, "take estimator: importance"),
    ],
)
def test_refusals_name_the_problem(values, message):
    with pytest.raises(ValidationError) as refusal:
        DDPOConfig.model_validate(values)
    assert message in str(refusal.value)


def test_every_field_says_what_it_is():
    for model in (DDPOConfig, LoraConfig):
        for name, field in model.model_fields.items():
            assert field.description, name


def test_the_config_is_read_without_torch():
    code = "import sys, trainer.ddpo.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
