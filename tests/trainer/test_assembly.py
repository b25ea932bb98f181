"""What an attempt finds out before it trains: in this process, on a real Redis."""

import pytest

from salon.errors import InvalidRequest
from salon.jobs.lease import acquire
from salon.jobs.store import JobStore
from trainer.assembly import train
from trainer.runtime.interrupt import Cause, Interrupt, Interrupted

SPEC = {
    "name": "tiny",
    "prompts": ["abcdef", "b"],
    "rewards": [{"name": "jpeg_compressibility"}],
    "iterations": 1,
    "algorithm": {"name": "ddpo", "sampling_steps": 3},
    "evaluation": {"prompts": ["c"], "samples": 2},
    "device": "cpu",
}


@pytest.fixture
def attempt(settings, redis_client, pipeline_folder):
    """Makes one attempt at a job that was asked to stop already, and returns its warnings.

    The text encoder of its model reads eight tokens, one a letter beside start and end.
    """

    def make_attempt(again=False, **changes):
        store = JobStore(redis_client)
        job = store.submit("tiny", SPEC | {"model": str(pipeline_folder)} | changes)
        if again:
            acquire(redis_client, job.id, "v", "", 60, 3).release("it died", refund=False)
        lease = acquire(redis_client, job.id, "w", str(settings.runs_dir / job.id), 60, 3)
        interrupt = Interrupt()
        interrupt.set(Cause.PREEMPTED)
        try:
            train(store.get(job.id), lease, settings, interrupt, 0)
        except Interrupted:
            events = store.events(job.id)
            return [event.data["text"] for event in events if event.kind == "warning"]

    return make_attempt


def test_prompts_that_fit_need_no_warning(attempt):
    assert attempt() == []


def test_an_attempt_that_starts_from_nothing_again_says_so(attempt, settings):
    [told] = attempt(again=True)
    [run] = settings.runs_dir.iterdir()
    assert told == (
        f"warning: no whole checkpoint in {run}: this attempt starts from the beginning"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text(""), "is no folder"),
        (lambda path: path.symlink_to("gone"), "is a link to gone, where nothing is"),
    ],
    ids=["file", "link"],
)
def test_a_place_for_runs_that_is_none_is_named(attempt, settings, make, words):
    make(settings.runs_dir)
    with pytest.raises(InvalidRequest) as raised:
        attempt()
    assert str(raised.value) == (
        f"SALON_RUNS_DIR is {settings.runs_dir}, which {words}: set it to a folder of your own"
    )


def test_prompts_that_the_text_encoder_cuts_are_counted(attempt):
    evaluation = {"prompts": ["c", "uvwxyz-cut", "vwxyzu-cut"], "samples": 2}
    assert attempt(prompts=["abcdefg", "b"], evaluation=evaluation) == [
        "warning: prompts: 1 of 2 are longer than the 8 tokens that the model's text encoder reads,"
        " and cut off there, e.g. 'abcdefg'",
        "warning: evaluation.prompts: 2 of 3 are longer than the 8 tokens that the model's text "
        "encoder reads, and cut off there, e.g. 'uvwxyz-cut'",
    ]


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [("abcdef trained", "abcdef held out"), ("a Cat", "A  cat "), ("ab", "AB")],
)
def test_a_held_out_prompt_that_the_model_has_seen_is_refused(attempt, trained, held_out):
    with pytest.raises(InvalidRequest) as raised:
        attempt(prompts=["b", trained], evaluation={"prompts": ["c", held_out], "samples": 2})
    assert f"{held_out!r} is the training prompt {trained!r}" in str(raised.value)


def test_both_tokenizers_of_xl_are_asked(attempt, xl_folder):
    (warning,) = attempt(model=str(xl_folder), prompts=["abcdefg", "b"])
    assert "prompts: 1 of 2" in warning


def test_a_missing_key_is_found_before_a_model_is_loaded(attempt, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(InvalidRequest, match=r"push_to_hub: me/it: .*set HF_TOKEN where"):
        attempt(model="/nowhere", push_to_hub="me/it")
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    with pytest.raises(InvalidRequest, match="model '/nowhere'"):
        attempt(model="/nowhere", push_to_hub="me/it")
