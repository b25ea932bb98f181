import pytest
import yaml

from salon.jobs.store import JobStore
from salon.queue.broker import send_launch
from tests.trainer.conftest import make_pipeline
from trainer.spec.file import load_spec


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random-weight pipeline."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline(tmp_path_factory.mktemp("tokenizer")).save_pretrained(folder)
    return folder


@pytest.fixture
def submit(stack, tiny_model, tmp_path):
    """Submits a small DDPO job, with changes to its spec, and returns its id."""

    def submit_job(**changes):
        spec = {
            "name": "tiny",
            "model": str(tiny_model),
            "prompts": ["one", "two"],
            "rewards": [{"name": "jpeg_compressibility"}],
            "iterations": 40,
            "algorithm": {
                "name": "ddpo",
                "samples_per_iteration": 8,
                "sample_batch_size": 4,
                "sampling_steps": 3,
                "updates_per_iteration": 2,
                "learning_rate": 1e-3,
                "per_prompt_buffer": 8,
                "per_prompt_min_count": 2,
            },
            "evaluation": {"prompts": ["six"], "samples": 4, "batch_size": 4},
            "checkpoint_every": 3,
            "device": "cpu",
        } | changes
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(spec))
        job = JobStore(stack.redis).submit("tiny", load_spec(path, []).model_dump(mode="json")).id
        send_launch(stack.app, job)
        return job

    return submit_job
