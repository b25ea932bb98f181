"""Bad samples and misbehaving rewards, at a real service."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import structlog

from salon.client.channel import connect
from salon.errors import DeadlineExceeded
from salon.reward.v1 import reward_pb2 as pb
from salon.reward.v1 import reward_pb2_grpc
from salon.serving import Reward
from salon.wire import frames
from salon.wire.outcomes import outcomes
from services.scoring import call_scorer as scoring
from services.scoring.call import Call
from services.scoring.call_scorer import CallScorer
from services.scoring.decoding import DecodedPixels
from services.scoring.isolation import IsolatingScorer
from services.scoring.limits import Limits
from services.scoring.metrics import Metrics
from services.scoring.sample_reader import SampleReader
from tests.salon.files import encoded, noise, png

PNG, RGB8 = pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_RGB8
GOOD = pb.Image(format=PNG, data=encoded(noise()))


def score(target, samples, reward=""):
    """Score by the raw stubs, for what the SDK would refuse to send."""
    request = pb.ScoreRequest(reward=reward, samples=samples)
    with connect(target) as channel:
        response = reward_pb2_grpc.RewardServiceStub(channel).Score(request, timeout=60)
    return outcomes(response)


def codes(results):
    return [
        result.error.code_name.removeprefix("ERROR_CODE_") if result.error else "OK"
        for result in results
    ]


def by_prompt(*prompts):
    return [pb.Sample(image=GOOD, prompt=prompt) for prompt in prompts]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    from tests.fixtures.service import Service

    service = Service(tmp_path_factory.mktemp("faulty") / "log", "tests.services.faulty")
    yield service
    assert service.stop() == 0


def test_every_bad_image_fails_alone(jpeg_service):
    transparent = np.dstack([noise(), np.full((12, 16), 128, np.uint8)])
    bad = [
        (pb.Image(format=PNG, data=GOOD.data[:200]), "INVALID_IMAGE"),
        (pb.Image(format=RGB8), "INVALID_IMAGE"),
        (pb.Image(format=PNG, data=png(20_000, 20_000)), "IMAGE_TOO_LARGE"),
        (pb.Image(format=RGB8, height=20_000, width=20_000), "IMAGE_TOO_LARGE"),
        (pb.Image(format=RGB8, data=bytes(4 * 4), height=2, width=2), "INVALID_IMAGE"),
        (pb.Image(format=RGB8, data=bytes(11), height=2, width=2), "INVALID_IMAGE"),
        (pb.Image(format=RGB8, data=bytes(13), height=2, width=2), "INVALID_IMAGE"),
        (pb.Image(format=PNG, data=encoded(noise(), "JPEG")), "INVALID_IMAGE"),
        (pb.Image(format=PNG, data=encoded(transparent)), "UNSUPPORTED_IMAGE"),
        (pb.Image(format=77, data=b"x"), "INVALID_IMAGE"),
    ]
    samples = [pb.Sample(image=GOOD), pb.Sample(), pb.Sample(image=GOOD, prompt="a" * 1_000_000)]
    expected = ["OK", "MISSING_INPUT", "PROMPT_TOO_LONG"]
    for image, code in bad:
        samples += [pb.Sample(image=image), pb.Sample(image=GOOD)]
        expected += [code, "OK"]
    results = score(jpeg_service.target, samples)
    assert codes(results) == expected
    size = len(encoded(noise(), "JPEG", quality=95)) / 1000
    assert {result.score for result in results if result.error is None} == {-size}
    assert all(str(result.error) for result in results if result.error)
    assert codes(score(jpeg_service.target, [pb.Sample(image=GOOD)])) == ["OK"]


def test_a_prompt_at_the_limit_is_taken_and_its_bytes_count_not_its_letters(jpeg_service):
    prompts = ["a" * 16384, "a" * 16385, "é" * 8192, "é" * 8193]
    results = score(jpeg_service.target, by_prompt(*prompts))
    assert codes(results) == ["OK", "PROMPT_TOO_LONG", "OK", "PROMPT_TOO_LONG"]


def test_metadata_beyond_the_limit_fails_alone(start_service):
    service = start_service("jpeg", "--max-metadata-bytes", "100")
    samples = [pb.Sample(image=GOOD) for _ in range(3)]
    samples[1].metadata["key"] = ""
    samples[1].metadata["key"] = "a" * (100 - samples[1].metadata.ByteSize())
    samples[2].metadata["key"] = samples[1].metadata["key"] + "a"
    results = score(service.target, samples)
    assert codes(results) == ["OK", "OK", "INVALID_SAMPLE"]
    assert "the metadata is 101 bytes, at most 100 are accepted" in str(results[2].error)


def test_scores_that_are_not_finite_are_errors(faulty):
    results = score(faulty.target, by_prompt("nan", "", "inf", "-inf"), "faulty")
    assert codes(results) == ["NON_FINITE_SCORE", "OK", "NON_FINITE_SCORE", "NON_FINITE_SCORE"]
    assert results[1].score == noise().mean()


@pytest.mark.parametrize("fault", ["raise", "none", "bad details", "one too few"])
def test_a_poison_sample_fails_alone(faulty, fault):
    before = len(faulty.events())
    results = score(faulty.target, by_prompt("", fault, "", fault), "faulty")
    assert codes(results) == ["OK", "REWARD_FAILED", "OK", "REWARD_FAILED"]
    assert "faulty failed on this sample" in str(results[1].error)
    logged = faulty.events()[before:]
    failures = [event for event in logged if event["event"] == "sample failed"]
    assert len(failures) == 1, "the same failure is logged once a call"
    assert "Traceback" in failures[0]["exception"]
    [call] = [event for event in logged if event["event"] == "call"]
    assert (call["samples"], call["errors"], call["code"]) == (4, 2, "OK")
    assert call["call"] == failures[0]["call"]


def test_no_traceback_and_no_text_of_an_exception_leaves_the_service(faulty):
    [result] = score(faulty.target, by_prompt("raise"), "faulty")
    assert "ValueError" in str(result.error)
    assert "Traceback" not in str(result.error)
    assert "secret" not in str(result.error)
    assert "secret of the service" in str(faulty.events())


@pytest.mark.parametrize("way", ["raise a refusal", "return a refusal"])
def test_a_reward_tells_the_client_why_it_refuses_a_sample(faulty, way):
    results = score(faulty.target, by_prompt("", way), "faulty")
    assert codes(results) == ["OK", "INVALID_SAMPLE"]
    assert str(results[1].error) == "not my kind of picture"


def test_details_travel_with_the_score(faulty):
    mean = noise().mean()
    [result] = score(faulty.target, by_prompt("details"), "faulty")
    assert result.score == mean
    assert result.details == {"caption": "a cat", "boxes": [[1, 2], [3, 4.5]], "logit": mean}


def test_a_sample_that_lacks_what_the_reward_needs(faulty, tmp_path):
    complete = pb.Sample(image=GOOD, prompt="a", metadata={"folder": str(tmp_path)})
    no_prompt = pb.Sample(image=GOOD, metadata={"folder": str(tmp_path)})
    no_metadata = pb.Sample(image=GOOD, prompt="a")
    results = score(faulty.target, [no_prompt, complete, no_metadata], "patient")
    assert codes(results) == ["MISSING_INPUT", "OK", "MISSING_INPUT"]
    assert "INPUT_PROMPT" in str(results[0].error)
    assert "INPUT_METADATA" in str(results[2].error)


class Counting(Reward):
    """The first pixel; remembers how many pixels it was given at a time."""

    name, version, description = "counting", "1", "The first pixel."

    def __init__(self):
        self.given = []

    def score(self, samples):
        self.given.append(sum(sample.image.shape[0] * sample.image.shape[1] for sample in samples))
        return [float(sample.image[0, 0, 0]) for sample in samples]


def score_here(reward, samples, given_up=lambda: None, held=None):
    """Score in this process, for what a caller cannot see."""
    call = Call(given_up, structlog.get_logger())
    scorer = IsolatingScorer(reward.name, reward.score, Metrics([reward.name]))
    payload = pb.ScoreRequest(samples=samples).SerializeToString()
    held = held or DecodedPixels()
    return CallScorer(
        call,
        SampleReader(reward, Limits(), None, call, held),
        held,
        lambda part: scorer.score(part, [call] * len(part)),
    ).score(frames.parse(payload, 1024).samples)


def test_a_big_call_is_decoded_a_slice_at_a_time(monkeypatch):
    monkeypatch.setattr(scoring, "SLICE_PIXELS", 1000)
    images = [noise(20, 20, seed=seed) for seed in range(7)] + [noise(50, 50), noise(3, 3)]
    samples = [pb.Sample(image=pb.Image(format=PNG, data=encoded(image))) for image in images]
    samples.insert(1, pb.Sample())
    reward = Counting()
    results = score_here(reward, samples)
    assert reward.given == [800, 800, 800, 400, 2500, 9]
    assert results.pop(1).HasField("error")
    assert [result.score for result in results] == [float(image[0, 0, 0]) for image in images]


def test_a_call_nobody_waits_for_is_not_computed():
    answers = iter([None, None, None, "expired"])
    reward = Counting()
    with pytest.raises(DeadlineExceeded):
        score_here(reward, [pb.Sample(image=GOOD)] * 5, lambda: next(answers))
    assert reward.given == []


def test_raw_pixels_are_not_decoded_and_need_no_slices(monkeypatch):
    monkeypatch.setattr(scoring, "SLICE_PIXELS", 1000)
    raw = pb.Image(format=RGB8, data=noise(40, 40).tobytes(), height=40, width=40)
    reward = Counting()
    assert len(score_here(reward, [pb.Sample(image=raw)] * 5)) == 5
    assert reward.given == [5 * 1600]


def test_calls_together_hold_few_decoded_pixels():
    """While others hold as many as may be, a call waits; then it goes on in small slices."""
    held = DecodedPixels(300)
    held.take(300, Call(lambda: None, structlog.get_logger()))
    reward = Counting()
    samples = [pb.Sample(image=pb.Image(format=PNG, data=encoded(noise(20, 20))))] * 3
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(score_here, reward, samples, held=held)
        with pytest.raises(TimeoutError):
            results.result(0.2)
        assert reward.given == []
        held.give_back(300)
        assert len(results.result(30)) == 3
    assert reward.given == [400, 400, 400]
    assert held.held() == 0


def test_a_call_that_waits_for_memory_ends_with_its_caller():
    held = DecodedPixels(1)
    held.take(1, Call(lambda: None, structlog.get_logger()))
    answers = iter([None, "cancelled"])
    with pytest.raises(DeadlineExceeded):
        score_here(Counting(), [pb.Sample(image=GOOD)], lambda: next(answers), held)
    assert held.held() == 1


def test_outcomes_are_in_the_order_of_the_samples(faulty):
    random = np.random.default_rng(0)
    samples, expected = [], []
    for seed in range(200):
        pixels = noise(4, 4, seed=seed)
        kind = random.choice(["OK", "NON_FINITE_SCORE", "INVALID_IMAGE"])
        data = encoded(pixels)[: 60 if kind == "INVALID_IMAGE" else None]
        prompt = "nan" if kind == "NON_FINITE_SCORE" else ""
        samples.append(pb.Sample(image=pb.Image(format=PNG, data=data), prompt=prompt))
        expected.append((kind, float(pixels.mean()) if kind == "OK" else None))
    results = score(faulty.target, samples, "faulty")
    got = list(zip(codes(results), [result.score for result in results], strict=True))
    assert got == expected
    assert len(Counter(kind for kind, _ in expected)) == 3
    assert all(value is None or math.isfinite(value) for _, value in got)
