"""Rewards that need more than image and prompt: what a job sends them, and how it ends without."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salon.errors import SampleError, UnknownInstance
from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from salon.queue.broker import send_launch
from salon.serving import Sample
from tests.faults.harness import photos
from tests.fixtures.redis import free_port
from tests.fixtures.rewards import load_rewards
from tests.fixtures.stack import RunningStack, wait_until
from trainer.evaluation.held_out import Evaluation
from trainer.rewards.queue_scorer import QueueScorer
from trainer.runtime.interrupt import Interrupt
from trainer.spec.file import load_spec

JOBS = Path(__file__).parents[2] / "jobs"


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


def finished(stack, job):
    """Its folder, once it has succeeded."""
    store = JobStore(stack.redis)
    wait_until(lambda: store.get(job).state.final, f"{job} is over", 200)
    assert store.get(job).state is JobState.SUCCEEDED, store.get(job).reason
    return stack.settings.runs_dir / job


def test_a_job_sends_a_reward_what_each_row_carries(stack, submit, tmp_path):
    for value in (1, 2, 3):
        Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / f"{value}.png")
    rows = [
        {"prompt": f"row {value}", "metadata": {"mark": value}, "reference": f"{value}.png"}
        for value in (1, 2, 3)
    ]
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    stack.serve("tests.services.faulty:Carried", "carried")
    stack.start()
    job = submit(
        prompts=rows[:1],
        rewards=[{"name": "carried"}],
        iterations=2,
        evaluation={"prompts": "held-out.jsonl", "samples": 4, "batch_size": 3},
    )
    run = finished(stack, job)
    for iteration in (0, 2):
        evaluation = Evaluation.load(run / "evaluation" / f"{iteration:06d}.safetensors")
        assert evaluation.prompts == ["row 2", "row 3", "row 2", "row 3"]
        assert evaluation.scores["carried"].tolist() == [2002, 3003, 2002, 3003]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    trained = [json.loads(line).get("rewards/carried/mean") for line in lines]
    assert [mean for mean in trained if mean is not None] == [1001, 1001]


def test_the_job_that_asks_questions_is_scored_by_the_answers(
    settings, own_redis, monkeypatch, tmp_path
):
    monkeypatch.chdir(JOBS.parent)
    target = f"127.0.0.1:{free_port()}"
    settings = settings.model_copy(update={"redis_url": own_redis.url, "reward_target": target})
    small = [
        "iterations=1",
        "algorithm.samples_per_iteration=8",
        "algorithm.sample_batch_size=8",
        "algorithm.updates_per_iteration=1",
        "evaluation.samples=8",
    ]
    spec = load_spec(JOBS / "ddpo-vqa-tiny.yaml", small)
    spec.check_inputs(settings)
    running = RunningStack(settings, own_redis, monkeypatch, ["vqa_satisfaction"])
    try:
        running.start()
        job = JobStore(running.redis).submit(spec.name, spec.model_dump(mode="json")).id
        send_launch(running.app, job)
        run = finished(running, job)
    finally:
        running.stop()
    evaluation = Evaluation.load(run / "evaluation" / "000000.safetensors")
    options = {"model": "models/tiny-llava-digits"}
    [reward] = load_rewards("vqa_satisfaction", options)
    metadata = [row.metadata for row in spec.evaluation.prompts[:8]]
    samples = [
        Sample(image, "", asked) for image, asked in zip(evaluation.images, metadata, strict=True)
    ]
    expected = [score.value for score in reward.score(samples)]
    assert evaluation.scores["vqa_satisfaction"].tolist() == expected
    assert len(set(expected)) > 1, "else any question would do"
