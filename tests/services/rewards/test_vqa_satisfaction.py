import pytest

from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from services.models.llava import Llava, LlavaConfig
from tests.fixtures.llava import tiny_llava
from tests.fixtures.rewards import load_rewards
from tests.salon.files import noise

QUESTIONS = ["What animal is in this image?", "How many wolf are there in this image?", "What is"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def reward(folder):
    [reward] = load_rewards("vqa_satisfaction", {"model": str(folder), "max_new_tokens": "8"})
    return reward


@pytest.fixture(scope="module")
def responses(folder):
    """What the model says to the three questions about the image of `asking`."""
    llava = Llava(LlavaConfig(model=str(folder), max_new_tokens=8))
    return llava.answer([noise(32, 32)] * 3, QUESTIONS)


def asking(questions, answers, image=None):
    metadata = {"questions": questions, "answers": answers}
    return Sample(noise(32, 32) if image is None else image, "", metadata)


def test_the_score_is_the_share_of_answers_that_the_responses_hold(reward, responses):
    inside = responses[0][1:4]  # a part of a word is enough
    answers = [inside, "no such answer", responses[2]]
    [score] = reward.score([asking(QUESTIONS, answers)])
    assert score.value == 2 / 3
    assert score.details == {"responses": responses}
    assert [
        reward.score([asking(QUESTIONS[:1], [answer])])[0].value for answer in (inside, "nothing")
    ] == [1.0, 0.0]


def test_case_and_order_count(reward, responses):
    swapped = responses[0].swapcase()
    assert reward.score([asking(QUESTIONS[:1], [swapped])])[0].value == 0.0
    rolled = [responses[1], responses[2], responses[0]]
    assert len(set(responses)) == 3
    expected = sum(a in b for a, b in zip(rolled, responses, strict=True)) / 3
    assert reward.score([asking(QUESTIONS, rolled)])[0].value == expected < 1.0


def test_samples_with_different_numbers_of_questions_keep_their_own(reward, responses):
    other = noise(40, 60, seed=3)
    [alone] = reward.score([asking(QUESTIONS[:2], ["a", "is"], other)])
    scores = reward.score(
        [
            asking(QUESTIONS, responses),
            asking(QUESTIONS[:2], ["a", "is"], other),
            asking([], []),
            asking(QUESTIONS[1:], ["nothing", responses[2]]),
        ]
    )
    assert scores[0].value == 1.0
    assert scores[1] == alone
    assert scores[2].code == reward_pb2.ERROR_CODE_INVALID_SAMPLE
    assert (scores[3].value, scores[3].details) == (0.5, {"responses": responses[1:]})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r'metadata\["questions"\] must be a list of texts, got None'),
        ({"questions": ["a"]}, r'metadata\["answers"\] must be a list of texts, got None'),
        ({"questions": "a", "answers": ["b"]}, r"must be a list of texts, got 'a'"),
        (
            {"questions": ["a", 1], "answers": ["b", "c"]},
            r"must be a list of texts, got \['a', 1\]",
        ),
        ({"questions": ["a"], "answers": [""]}, r'metadata\["answers"\] holds an empty text'),
        ({"questions": [" "], "answers": ["b"]}, r'metadata\["questions"\] holds an empty text'),
        ({"questions": ["a", "b"], "answers": ["c"]}, "2 questions and 1 answers"),
        ({"questions": ["a"] * 17, "answers": ["b"] * 17}, "17 questions: give 1 to 16"),
        ({"questions": ["a" * 501], "answers": ["b"]}, "501 characters, more than 500"),
        ({"questions": ["<image>"], "answers": ["b"]}, "holds '<image>'"),
    ],
)
def test_malformed_metadata_is_named(reward, metadata, message):
    [error] = reward.score([Sample(noise(32, 32), "", metadata)])
    assert error.code == reward_pb2.ERROR_CODE_INVALID_SAMPLE
    with pytest.raises(type(error), match=message):
        raise error


def test_the_limits_are_options(folder):
    [strict] = load_rewards(
        "vqa_satisfaction",
        {"model": str(folder), "max_questions": "1", "max_question_characters": "9"},
    )
    results = strict.score([asking(["a"] * 2, ["b"] * 2), asking(["a" * 10], ["b"])])
    assert "give 1 to 1" in str(results[0]) and "more than 9" in str(results[1])


def test_the_cost_is_the_number_of_questions(reward):
    assert reward.cost(asking(QUESTIONS, ["a"] * 3)) == 3.0
    assert [reward.cost(asking(bad, [])) for bad in ([], "abc", None)] == [1.0] * 3


def test_its_example_can_be_scored(reward):
    [score] = reward.score([reward.example()])
    assert score.value in (0.0, 1.0)
