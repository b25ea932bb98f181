import PIL
import pytest
import transformers

from salon import RewardClient
from salon.errors import InvalidRequest
from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from services.rewards.caption_bertscore import CaptionBertscoreConfig
from tests.fixtures.llava import greedy_answer, tiny_llava
from tests.fixtures.rewards import load_rewards
from tests.fixtures.text_models import MINILM_LAYERS, greedy_recall, minilm
from tests.salon.files import noise

QUESTION = "Answer concisely: what is going on in this image?"
PROMPTS = ["a red wolf", "a blue wolf riding a bike", "an owl"]


def options(folder, **more):
    text = {"bertscore_model": str(minilm()), "bertscore_layers": str(MINILM_LAYERS)}
    return {"model": str(folder), "max_new_tokens": "8"} | text | more


def load(folder, **more):
    [reward] = load_rewards("caption_bertscore", options(folder, **more))
    return reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"), seed=5)


@pytest.fixture(scope="module")
def reward(folder):
    return load(folder)


@pytest.fixture(scope="module")
def samples():
    images = [noise(32, 32), noise(48, 36, seed=1), noise(40, 40, channels=1, seed=2)]
    return [Sample(image, prompt, {}) for image, prompt in zip(images, PROMPTS, strict=True)]


def test_the_score_is_the_recall_of_the_prompt_by_the_caption(folder, reward, samples):
    captions = [greedy_answer(folder, sample.image, QUESTION, 8) for sample in samples]
    references = [f"The image contains {prompt}" for prompt in PROMPTS]
    recalls = [
        greedy_recall(minilm(), MINILM_LAYERS, *pair)
        for pair in zip(captions, references, strict=True)
    ]
    scores = reward.score(samples)
    assert [score.details for score in scores] == [{"caption": caption} for caption in captions]
    assert [score.value for score in scores] == pytest.approx(recalls, abs=1e-5)
    assert len(set(captions)) > 1 and max(recalls) > 0


def test_the_defaults_are_those_of_the_papers_code():
    config = CaptionBertscoreConfig()
    assert (config.question, config.template) == (QUESTION, "The image contains {prompt}")
    assert (config.max_new_tokens, config.bertscore_layers) == (64, None)
    assert config.bertscore_model == "microsoft/deberta-xlarge-mnli"


def test_an_empty_caption_scores_0(tmp_path, samples):
    scores = load(tiny_llava(tmp_path, mute=True)).score(samples)
    assert [(score.value, score.details) for score in scores] == [(0.0, {"caption": ""})] * 3


def test_question_and_template_are_options(folder, reward, samples):
    asked = load(folder, question="How many are there in this image?")
    assert [score.details for score in asked.score(samples)] != [
        score.details for score in reward.score(samples)
    ]
    # A prompt in the form of the default template, so that both compare with the same text.
    same = Sample(samples[0].image, "The image contains {prompt} a red wolf", {})
    plain = load(folder, template="{prompt}")
    other = Sample(samples[0].image, "{prompt} a red wolf", {})
    assert plain.score([same])[0].value == pytest.approx(reward.score([other])[0].value, abs=1e-6)


def test_samples_that_cannot_be_judged_fail_alone(reward, samples):
    blank = Sample(samples[0].image, " \n", {})
    thin = Sample(noise(2, 64), "a wolf", {})
    results = reward.score([blank, samples[0], thin])
    assert results[0].code == reward_pb2.ERROR_CODE_MISSING_INPUT
    assert results[1].value == pytest.approx(reward.score(samples)[0].value, abs=1e-6)
    assert results[2].code == reward_pb2.ERROR_CODE_INVALID_SAMPLE
    assert reward.score([blank])[0].code == reward_pb2.ERROR_CODE_MISSING_INPUT


def test_the_version_names_what_scores_depend_on(folder, reward, tmp_path):
    others = [
        load(folder, question="What is this"),
        load(folder, template="{prompt}"),
        load(folder, max_new_tokens="9"),
        load(folder, bertscore_layers="5"),
        load(tiny_llava(tmp_path, seed=1)),
    ]
    assert len({reward.version, *(other.version for other in others)}) == 6
    assert load(folder, answers_per_pass="2").version == reward.version
    releases = f"+transformers-{transformers.__version__}+pillow-{PIL.__version__}+bert-score-"
    assert releases in reward.version


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"template": "The image"}, "option template of caption_bertscore: .*{prompt}"),
        ({"question": "what is <image> ?"}, "option question: .*'<image>'"),
        ({"question": ""}, "option question"),
        ({"max_new_tokens": "0"}, "option max_new_tokens"),
    ],
)
def test_options_that_cannot_be_used_are_refused(folder, option, message):
    with pytest.raises(InvalidRequest, match=message):
        load(folder, **option)


def test_served_over_grpc(start_service, folder, reward, samples):
    given = options(folder)
    flags = [flag for name, value in given.items() for flag in ("--set", f"{name}={value}")]
    service = start_service("caption_bertscore", *flags)
    with RewardClient(service.target) as client:
        outcomes = client.score([sample.image for sample in samples], PROMPTS)
        [missing] = client.score([samples[0].image], [""])
    expected = reward.score(samples)
    assert [outcome.score for outcome in outcomes] == pytest.approx(
        [score.value for score in expected], abs=1e-5
    )
    assert [outcome.details for outcome in outcomes] == [score.details for score in expected]
    assert missing.error.code == reward_pb2.ERROR_CODE_MISSING_INPUT
