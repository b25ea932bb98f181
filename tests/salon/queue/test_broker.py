import base64
import json

import pytest

from salon.queue.blobs import BlobStore
from salon.queue.broker import (
    LAUNCH_TASK,
    SCORE_TASK,
    ScoreMessage,
    create_app,
    score_queue,
    send_launch,
    send_score,
    served_queues,
    served_rewards,
)


@pytest.fixture
def app(settings):
    return create_app(settings)


def sent(redis_client, queue):
    """The only message of a queue: headers and body."""
    (raw,) = redis_client.lrange(queue, 0, -1)
    message = json.loads(raw)
    assert message["content-type"] == "application/json"
    return message["headers"], json.loads(base64.b64decode(message["body"])), len(raw)


def test_a_score_message_is_small_json_on_the_queue_of_its_reward(app, redis_client):
    message = ScoreMessage(
        batch="b" * 32,
        reward="jpeg_compressibility",
        reference=BlobStore(redis_client, 60).put(b"x" * 1_000_000),
        reply_to="a" * 16,
    )
    send_score(app, message)
    headers, body, size = sent(redis_client, "score.jpeg_compressibility")
    assert headers["task"] == SCORE_TASK
    assert ScoreMessage.model_validate(body[1]["message"]) == message
    assert size < 3000  # the million bytes stay behind their reference


def test_a_score_message_is_one_that_workers_of_any_release_read(app, redis_client):
    """Those of before there was a version refuse a message that has one."""
    reference = {
        "key": f"salon:blob:{'0' * 32}",
        "size": 9,
        "sha256": "0" * 64,
        "expires_at": 1790000000.25,
    }
    message = ScoreMessage(
        batch="b" * 32, reward="l2", reference=reference, reply_to="a" * 16, job="tiny-1a2b3c"
    )
    send_score(app, message)
    _, body, _ = sent(redis_client, "score.l2")
    assert body[1] == {
        "message": {
            "batch": "b" * 32,
            "reply_to": "a" * 16,
            "reward": "l2",
            "reference": reference,
            "job": "tiny-1a2b3c",
        }
    }


def test_a_launch_names_the_job_alone(app, redis_client):
    send_launch(app, "tiny-1")
    headers, body, _ = sent(redis_client, "train")
    assert headers["task"] == LAUNCH_TASK
    assert body[1] == {"job": "tiny-1"}


def test_nothing_is_ever_unpickled(app):
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == app.conf.result_serializer == "json"


def test_a_task_survives_its_worker(app, settings):
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost
    timeout = app.conf.broker_transport_options["visibility_timeout"]
    assert timeout == settings.visibility_timeout_seconds > settings.score_task_seconds


def test_queues_are_named_after_rewards():
    assert score_queue("aesthetic") == "score.aesthetic"


def test_served_is_what_living_workers_take_from(app, monkeypatch):
    answers = {
        "one": [{"name": "train"}, {"name": "score.l2"}],
        "other": [{"name": "score.l2"}, {"name": "score.mine"}],
    }
    inspect = type(app.control.inspect())
    monkeypatch.setattr(inspect, "active_queues", lambda _: answers)
    assert served_queues(app) == {"train", "score.l2", "score.mine"}
    assert served_rewards(app) == {"l2", "mine"}
    monkeypatch.setattr(inspect, "active_queues", lambda _: None)  # nobody answers
    assert served_queues(app) == served_rewards(app) == set()
