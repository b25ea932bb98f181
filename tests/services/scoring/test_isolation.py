"""A batch of which some samples cannot be scored, or which the memory cannot hold."""

from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import structlog
import torch
from structlog.testing import capture_logs

from salon.client.channel import connect
from salon.errors import RewardFailed, SampleError
from salon.reward.v1 import reward_pb2 as pb
from salon.reward.v1 import reward_pb2_grpc
from salon.serving import Sample, Score
from services.scoring.call import Call
from services.scoring.isolation import IsolatingScorer, cost_of
from services.scoring.metrics import Metrics
from tests.salon.files import encoded, noise
from tests.services.faulty import Cramped

IMAGE = pb.Image(format=pb.IMAGE_FORMAT_PNG, data=encoded(noise()))


@pytest.fixture(autouse=True)
def logged():
    """What is logged in this process."""
    with capture_logs() as entries:
        yield entries


def codes(outcomes):
    return [
        pb.ErrorCode.Name(outcome.error.code).removeprefix("ERROR_CODE_")
        if outcome.HasField("error")
        else "OK"
        for outcome in outcomes
    ]


class Scorer:
    """Scores samples that are prompts alone; remembers the sizes of the batches it tried."""

    def __init__(self, score):
        self.sizes = []
        self._score = score
        self.isolating = IsolatingScorer("reward", self._remember, Metrics(["reward"]))

    def _remember(self, samples):
        self.sizes.append(len(samples))
        return self._score(samples)

    def __call__(self, *prompts):
        samples = [Sample(noise(), prompt, {}) for prompt in prompts]
        call = Call(lambda: None, structlog.get_logger())
        return self.isolating.score(samples, [call] * len(samples))


def poisoned(samples):
    if any(sample.prompt == "poison" for sample in samples):
        raise ValueError("poison")
    return [1.0] * len(samples)


def test_a_good_batch_is_asked_for_once():
    scorer = Scorer(poisoned)
    assert codes(scorer(*"abcdefgh")) == ["OK"] * 8
    assert scorer.sizes == [8]
    assert scorer.isolating.fitting is None


@pytest.mark.parametrize("poisons", [{0}, {7}, {3, 4}, {0, 1, 2, 3, 4, 5, 6, 7}])
def test_only_what_raises_alone_fails(poisons):
    scorer = Scorer(poisoned)
    outcomes = scorer(*("poison" if index in poisons else "" for index in range(8)))
    assert codes(outcomes) == ["REWARD_FAILED" if n in poisons else "OK" for n in range(8)]
    assert scorer.isolating.fitting is None
    assert scorer.isolating.all_raised == (len(poisons) == 8)


def test_one_poison_of_many_costs_few_batches_and_two_tracebacks(logged):
    scorer = Scorer(poisoned)
    scorer(*["poison"] + [""] * 31)
    assert scorer.sizes == [32, 16, 8, 4, 2, 1, 1, 2, 4, 8, 16]
    assert [entry["event"] for entry in logged] == ["batch failed, halving it", "sample failed"]


def test_a_refusal_that_is_raised_keeps_its_words():
    def refuse(samples):
        raise SampleError(pb.ERROR_CODE_INVALID_SAMPLE, "not my kind of picture")

    outcomes = Scorer(refuse)("a", "b")
    assert codes(outcomes) == ["INVALID_SAMPLE"] * 2
    assert outcomes[0].error.message == "not my kind of picture"


def test_a_refusal_is_no_failure_of_the_reward():
    def refuse(samples):
        raise SampleError(pb.ERROR_CODE_INVALID_SAMPLE, "not my kind of picture")

    scorer = Scorer(refuse)
    scorer("a", "b")
    assert not scorer.isolating.all_raised


class Keyed:
    """Something like a mapping that is not registered as one."""

    def keys(self):
        return [0, 1]

    def __len__(self):
        return 2

    def __iter__(self):
        return iter((0.0, 1.0))


@pytest.mark.parametrize(
    "results",
    [
        {0: 5.0, 1: 7.0},
        {5.0: 0, 7.0: 0}.keys(),
        {5.0, 7.0},
        frozenset((5.0, 7.0)),
        "57",
        b"57",
        None,
        5.0,
        (score for score in (5.0, 7.0)),
        map(float, (5, 7)),
        np.array(5.0),
        torch.tensor(5.0),
        Keyed(),
    ],
    ids=lambda results: type(results).__name__,
)
def test_what_is_no_series_of_results_is_no_score(results):
    outcomes = Scorer(lambda _samples: results)("a", "b")
    assert codes(outcomes) == ["REWARD_FAILED"] * 2
    message = outcomes[0].error.message
    assert f"reward.score returned a {type(results).__name__}" in message
    assert "it must return a list with one float" in message


@pytest.mark.parametrize(
    "results",
    [
        [5.0, 7],
        (5.0, 7.0),
        {0: 5.0, 1: 7.0}.values(),
        deque([5.0, 7.0]),
        np.array([5, 7]),
        torch.tensor([[5.0], [7.0]]),
        np.array([5, 7], np.float16),
        torch.tensor([5.0, 7.0], requires_grad=True),
        torch.tensor([5, 7], dtype=torch.bfloat16),
        [np.float32(5), torch.tensor(7)],
        [Fraction(5), Score(np.int64(7))],
    ],
    ids=repr,
)
def test_every_series_of_numbers_is_scores(results):
    outcomes = Scorer(lambda samples: results)("a", "b")
    assert [outcome.score for outcome in outcomes] == [5.0, 7.0], outcomes


def test_yes_and_no_are_one_and_zero():
    outcomes = Scorer(lambda samples: [True, np.bool_(False)])("a", "b")
    assert [outcome.score for outcome in outcomes] == [1.0, 0.0]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "5",
        b"5",
        (5.0, {"a": 1}),
        [5.0],
        {"score": 5.0},
        5j,
        np.complex64(5),
        torch.tensor(5 + 0j),
        np.zeros(2),
        Score("5"),
        Score(None),
        Score(1.0, {"id": 2**53 + 1}),
        Score(1.0, [1]),
    ],
    ids=repr,
)
def test_what_is_no_number_fails_alone_and_says_so(value):
    def score(samples):
        return [value if sample.prompt == "odd" else 3.0 for sample in samples]

    outcomes = Scorer(score)("", "odd", "")
    assert codes(outcomes) == ["OK", "REWARD_FAILED", "OK"]
    assert [outcomes[0].score, outcomes[2].score] == [3.0, 3.0]
    message = outcomes[1].error.message
    assert "it must return a list" in message or "the details of reward cannot be sent" in message


@pytest.mark.parametrize("results", [[], [1.0], [1.0, 2.0, 3.0], np.zeros((1, 2))], ids=repr)
def test_another_number_of_results_is_no_score(results):
    scorer = Scorer(lambda samples: results if len(samples) == 2 else [])
    outcomes = scorer("a", "b")
    assert codes(outcomes) == ["REWARD_FAILED"] * 2
    assert "returned 0 results for 1 samples" in outcomes[0].error.message


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -1, "much", None, 1j])
def test_a_cost_by_which_no_batch_can_be_formed_is_named(cost):
    class Odd(Cramped):
        def cost(self, sample):
            return cost

    with pytest.raises(RewardFailed, match=r"cramped\.cost"):
        cost_of(Odd(), Sample(noise(), "", {}))
    assert cost_of(Cramped(), Sample(noise(), "", {})) == 1.0


def test_memory_that_ran_out_tells_how_much_fits():
    scorer = Scorer(Cramped().score)
    assert [outcome.score for outcome in scorer(*"abcdefgh")] == [2.0] * 8
    assert scorer.isolating.fitting == 2
    assert [outcome.score for outcome in scorer(*"ab")] == [2.0] * 2
    assert scorer.isolating.fitting is None, "it speaks of the last batch alone"


def test_one_sample_too_large_for_the_memory_does_not_shrink_the_batches_of_others():
    scorer = Scorer(Cramped().score)
    assert codes(scorer("a", "b", "too much")) == ["OK", "OK", "REWARD_FAILED"]
    assert scorer.isolating.fitting is None
    outcomes = scorer("a", "b", "too much", "c")
    assert codes(outcomes) == ["OK", "OK", "REWARD_FAILED", "OK"]
    assert scorer.isolating.fitting is None


def test_the_service_remembers_how_much_fits(start_service):
    service = start_service("tests.services.faulty:Cramped")

    def score(*prompts):
        samples = [pb.Sample(image=IMAGE, prompt=prompt) for prompt in prompts]
        with connect(service.target) as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            return stub.Score(pb.ScoreRequest(samples=samples), timeout=30).outcomes

    def out_of_memory():
        return [event for event in service.events() if "out of memory" in event["event"]]

    assert [outcome.score for outcome in score(*"abcdefgh")] == [2.0] * 8
    assert [event["max_samples"] for event in out_of_memory()] == [2]
    assert [outcome.score for outcome in score(*"abc")] == [2.0, 2.0, 1.0]
    [outcome] = score("too much")
    assert codes([outcome]) == ["REWARD_FAILED"]
    assert "OutOfMemoryError" in outcome.error.message
    assert len(out_of_memory()) == 1, "nothing tried again what did not fit"
