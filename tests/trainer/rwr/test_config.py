"""The hyperparameters: the paper's defaults, clear refusals."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from trainer.rwr.config import RWRConfig


@pytest.mark.parametrize(
    ("weighting", "kept"), [("softmax", 10_240), ("sparse", 1_024)], ids=["rwr", "sparse"]
)
def test_defaults_are_the_papers_table(weighting, kept):
    config = RWRConfig(weighting=weighting)
    paper = {
        "sampling_steps": 50,
        "guidance_scale": 5.0,
        "learning_rate": 1e-5,
        "weight_decay": 1e-4,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "samples_per_iteration": 10_240,
        "inverse_temperature": 0.2,
        "percentile": 0.9,
        "batch_size": 128,
    }
    assert {name: getattr(config, name) for name in paper} == paper
    assert config.epochs * kept // config.batch_size == 400  # updates per iteration


def test_a_resolved_config_means_the_same_again():
    config = RWRConfig.model_validate({"weighting": "sparse", "percentile": 0.8, "lora": {}})
    assert (config.epochs, config.learning_rate) == (50, 3e-4)
    assert RWRConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"percentile": 0.8}, "percentile (0.8) belongs to weighting: sparse"),
        (
            {"weighting": "sparse", "inverse_temperature": 1.0},
            "inverse_temperature (1.0) belongs to weighting: softmax, but weighting is sparse",
        ),
        ({"weighting": "sparse", "percentile": 1.0}, "less than 1"),
        ({"inverse_temperature": -0.2}, "greater than or equal to 0"),
        ({"weighting": "top"}, "'softmax' or 'sparse'"),
        ({"samples_per_iteration": 100}, "must be a multiple of sample_batch_size (8)"),
        ({"temperature": 0.2}, "Extra inputs are not permitted"),
        ({"clip_range": 1e-4}, "Extra inputs are not permitted"),
        ({"name": "ddpo"}, "Input should be 'rwr'"),
    ],
)
def test_refusals_name_the_problem(values, message):
    with pytest.raises(ValidationError) as refusal:
        RWRConfig.model_validate(values)
    assert message in str(refusal.value)


def test_every_field_says_what_it_is():
    for name, field in RWRConfig.model_fields.items():
        assert field.description, name


def test_the_config_is_read_without_torch():
    code = "import sys, trainer.rwr.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
