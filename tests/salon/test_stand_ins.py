"""What a model's card says it is, and who is told."""

import numpy as np
import pytest

from salon.cli.specs import check_stand_ins
from salon.client import RewardClient
from salon.errors import InvalidRequest
from salon.security import Security
from salon.stand_ins import is_stand_in
from tests.fixtures.service import REPOSITORY, free_port

MODELS = REPOSITORY / "models"
IMAGES = np.zeros((2, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("model", sorted(path.name for path in MODELS.iterdir()))
def test_every_model_that_comes_with_salon_says_so(model):
    assert is_stand_in(str(MODELS / model))
    for weights in (MODELS / model).glob("*.safetensors"):
        assert is_stand_in(str(weights))


def test_it_is_not_told_from_a_name_or_a_place(tmp_path):
    assert not is_stand_in("models/tiny-sd-none")
    assert not is_stand_in("CompVis/stable-diffusion-v1-4")
    folder = tmp_path / "tiny-sd-digits"
    folder.mkdir()
    assert not is_stand_in(str(folder))
    assert is_stand_in(str(folder / "..")) is False


@pytest.mark.parametrize(
    "card",
    [
        "",
        "stand_in: true\n",
        "---\nstand_in: false\n---\n",
        "---\nlicense: mit\n---\nstand_in: true\n",
        "---\nlicense: mit\nstand_in: true\n",
        "---\n---\nstand_in: true\n---\n",
        "\xff\xfe",
    ],
)
def test_a_card_says_so_in_its_front_matter_or_not_at_all(tmp_path, card):
    (tmp_path / "README.md").write_text(card)
    assert not is_stand_in(str(tmp_path))
    (tmp_path / "README.md").write_text("---\nlicense: mit\nstand_in: true\n---\n# It\n")
    assert is_stand_in(str(tmp_path))


@pytest.mark.parametrize("source", ["", ".", "a\0b", "x" * 5000, "{prompt}\n", "auto"])
def test_an_option_that_is_no_model_is_none(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_stand_in(source)


def test_a_service_on_such_a_model_says_so_and_a_job_that_would_mix_is_refused(start_service):
    service = start_service("clip_score", "--model", str(MODELS / "tiny-clip-digits"))
    with RewardClient(service.target) as client:
        assert client.describe().stand_in is True
        assert [reward.stand_in for reward in client.list_rewards()] == [True]
        outcomes = client.score(IMAGES, ["a", "b"])
    assert [outcome.stand_in for outcome in outcomes] == [True, True]
    targets = {"clip_score": service.target}
    with pytest.raises(InvalidRequest, match=r"clip_score: .*stand-in.*allow_stand_ins: true"):
        check_stand_ins("CompVis/stable-diffusion-v1-4", ["clip_score", "l2"], targets, Security())
    check_stand_ins(str(MODELS / "tiny-sd-digits"), ["clip_score"], targets, Security())
    check_stand_ins("CompVis/stable-diffusion-v1-4", ["l2"], targets, Security())


def test_the_real_thing_says_nothing(jpeg_service):
    with RewardClient(jpeg_service.target) as client:
        assert client.describe().stand_in is False
        assert [outcome.stand_in for outcome in client.score(IMAGES)] == [False, False]
    targets = {"jpeg": jpeg_service.target, "away": f"127.0.0.1:{free_port()}"}
    check_stand_ins("a/model", ["jpeg", "away"], targets, Security())
