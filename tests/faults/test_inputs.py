"""Rewards that need more than image and prompt: what a job sends them, and how it ends without."""

import numpy as np
import pytest
from PIL import Image

from salon.errors import SampleError, UnknownInstance
from salon.jobs.store import JobState, JobStore
from tests.faults.harness import photos
from tests.fixtures.stack import wait_until
from trainer.evaluation.held_out import Evaluation
from trainer.rewards.queue_scorer import QueueScorer
from trainer.runtime.interrupt import Interrupt


@pytest.fixture
def score(stack):
    """Scores images with one reward, as a job that drops what has no score."""
    made = []

    def score(reward, images):
        scorer = QueueScorer(
            stack.app,
            stack.redis,
            stack.settings,
            rewards=[reward],
            on_reward_error="drop",
            deadline_seconds=60.0,
            interrupt=Interrupt(),
            on_waiting=print,
        )
        made.append(scorer)
        return scorer.submit(images, ["a prompt"] * len(images)).result(timeout=60)

    yield score
    for scorer in made:
        scorer.close()


def test_a_job_compares_every_sample_with_the_reference_that_it_names(stack, submit, tmp_path):
    target = photos(1)[0][:16, :16]
    Image.fromarray(target).save(tmp_path / "target.png")
    stack.serve("l2", "l2")
    stack.start()
    job = submit(rewards=[{"name": "l2", "reference": str(tmp_path / "target.png")}], iterations=1)
    store = JobStore(stack.redis)
    wait_until(lambda: store.get(job).state.final, f"{job} is over", 120)
    assert store.get(job).state is JobState.SUCCEEDED, store.get(job).reason
    file = stack.settings.runs_dir / job / "evaluation" / "000000.safetensors"
    evaluation = Evaluation.load(file)
    differences = (evaluation.images.astype(float) - target) / 255
    expected = -np.square(differences).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(evaluation.scores["l2"], expected, rtol=1e-6)


def test_a_reward_that_lacks_its_reference_ends_the_job(stack, score):
    stack.serve("l2", "l2")
    stack.start("jpeg", "scoring")
    with pytest.raises(SampleError, match=r"reward l2 needs INPUT_REFERENCE.*or take l2 out"):
        score("l2", photos(2))


def test_a_learned_reward_without_an_instance_ends_the_job(stack, score):
    stack.serve("tests.services.remembering", "remembering")
    stack.start("jpeg", "scoring")
    with pytest.raises(UnknownInstance, match=r"reward remembering scores by instance"):
        score("remembering", photos(2))
