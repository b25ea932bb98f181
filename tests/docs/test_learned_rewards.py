"""What the pages on learned rewards show works as shown, and their tables are complete."""

import re
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from salon.serving import FitOrder, Labelled, Sample
from services.learned.footprint import footprint
from services.learned.trained_reward import LearnedConfig
from services.rewards.discriminator import Critic, Discriminator, DiscriminatorHyperparameters
from services.rewards.preference import PreferenceHyperparameters
from tests.fixtures.service import REPOSITORY


def page(name):
    return (REPOSITORY / "docs" / "rewards" / f"{name}.md").read_text(encoding="utf-8")


def defaults(text):
    """The rows `name` | default | of every table."""
    return dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["discriminator", "preference"])
def test_the_example_runs_and_learns(name, start_service, tmp_path):
    service = start_service(name, "--set", f"state_dir={tmp_path}")
    (code,) = re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)
    assert len(code.splitlines()) <= 40
    code = code.replace("127.0.0.1:50051", service.target)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first[0].startswith("1+job-1@1-")
    if name == "discriminator":
        assert float(first[1]) < 10  # The penalty of a critic without slope is λ
        assert second[1] == "True"
    else:
        assert float(first[1]) > 0.7
        assert float(second[0]) > 0


@pytest.mark.parametrize(
    ("name", "model"),
    [("discriminator", DiscriminatorHyperparameters), ("preference", PreferenceHyperparameters)],
)
def test_the_tables_name_every_hyperparameter_with_its_default(name, model):
    hyperparameters = page(name).split("## Hyperparameters")[1].split("\n## ")[0]
    expected = {key: str(field.default) for key, field in model.model_fields.items()}
    assert defaults(hyperparameters) == expected


def test_the_table_names_every_option_of_the_service_with_its_default():
    options = page("discriminator").split("## Instances")[1]
    expected = {key: str(field.default) for key, field in LearnedConfig.model_fields.items()}
    assert defaults(options) == expected


def test_the_sizes_that_the_page_names_are_those_foreseen():
    text = " ".join(page("discriminator").split())
    for changes, at_rest, step in (
        ({"image_size": 64}, 65, 604),
        ({"image_size": 128}, 209, 2283),
        ({"image_size": 256, "replay_capacity": 256, "batch_size": 16}, 235, 2433),
    ):
        foreseen = footprint(Critic, DiscriminatorHyperparameters(**changes))
        assert (round(foreseen.at_rest / 1e6), round(foreseen.step / 1e6)) == (at_rest, step)
        assert f" {at_rest} MB" in text
        assert f" {step} MB" in text
    config = LearnedConfig()
    refused = footprint(Critic, DiscriminatorHyperparameters(image_size=256))
    assert refused.at_rest > config.max_instance_bytes
    assert refused.step > config.max_step_bytes


def test_an_export_with_full_buffers_is_as_large_as_the_page_says(tmp_path):
    image = Sample(np.zeros((64, 64, 3), np.uint8), "", {})
    examples = [Labelled(image, real=bool(index % 2)) for index in range(2 * 1280)]
    with closing(Discriminator(LearnedConfig(state_dir=tmp_path))) as reward:
        # A batch of one, since one step is made only for Adam's moments.
        order = FitOrder("full", "", examples, 1, {"batch_size": 1})
        reward.fit("job", order, lambda: True)
        assert round(len(reward.export("job").data) / 1e6) == 65
