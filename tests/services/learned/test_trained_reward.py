from contextlib import ExitStack, closing

import numpy as np
import pytest

from salon.errors import (
    DeadlineExceeded,
    InvalidRequest,
    RewardFailed,
    UnknownInstance,
    VersionMismatch,
)
from salon.serving import FitOrder
from services.learned.footprint import footprint
from services.learned.instance import REMEMBERED_FITS
from services.learned.trained_reward import LearnedConfig
from services.rewards.discriminator import Critic, Discriminator, DiscriminatorHyperparameters
from services.rewards.preference import Preference
from tests.services.learned.learning import (
    SMALL,
    brighter_is_better,
    discriminator,
    fit,
    light,
    light_is_real,
    scores,
)


@pytest.fixture
def reward(tmp_path):
    with closing(discriminator(tmp_path)) as reward:
        yield reward


@pytest.fixture
def make(tmp_path):
    """A reward with a state directory of that name, closed in the end; `make(kind, name)`."""
    with ExitStack() as stack:
        yield lambda kind, name, **options: stack.enter_context(
            closing(kind(LearnedConfig(state_dir=tmp_path / name, **options)))
        )


def test_every_fit_makes_a_version_that_names_revision_instance_fit_and_weights(reward):
    first = fit(reward, "job-1", light_is_real(), **SMALL).version
    second = fit(reward, "job-1", [], base_version=first).version
    kept = fit(reward, "job-1", light_is_real(), steps=0).version
    assert [version.rsplit("-", 1)[0] for version in (first, second, kept)] == [
        "1+job-1@1",
        "1+job-1@2",
        "1+job-1@3",
    ]
    weights = [version.rsplit("-", 1)[1] for version in (first, second, kept)]
    assert weights[0] != weights[1] == weights[2]
    with reward.opened("job-1") as opened:
        assert opened.version == kept
        assert opened.score(light(2)) == opened.score(light(2))


@pytest.mark.parametrize("variant", ["wgan_gp", "spectral_norm"])
def test_an_imported_instance_goes_on_exactly_as_the_exported_one(make, variant):
    one, other = make(Discriminator, "one"), make(Discriminator, "other")
    # More than the buffer holds, so that it has wrapped.
    fit(one, "job", light_is_real(100), steps=3, request_id="a", variant=variant, **SMALL)
    exported = one.export("job")
    assert other.import_("job", exported.data) == exported.version
    assert other.export("job").data == exported.data
    again = [fit(reward, "job", light_is_real(8), 3, request_id="b") for reward in (one, other)]
    assert again[0] == again[1]
    assert one.export("job").data == other.export("job").data
    assert scores(one, "job", light(5)) == scores(other, "job", light(5))


def test_preference_instances_are_exact_too(make):
    one, other = make(Preference, "one"), make(Preference, "other")
    fit(one, "job", brighter_is_better(30), steps=3, **SMALL)
    other.import_("job", one.export("job").data)
    for reward in (one, other):
        fit(reward, "job", brighter_is_better(10, seed=1), 3, request_id="b")
    assert one.export("job").data == other.export("job").data


def test_an_import_may_take_another_name_and_leaves_the_first_alone(reward):
    fit(reward, "job", light_is_real(), **SMALL)
    assert reward.import_("copy", reward.export("job").data).startswith("1+copy@1-")
    before = scores(reward, "job", light(3))
    fit(reward, "copy", [])
    assert scores(reward, "job", light(3)) == before != scores(reward, "copy", light(3))


def test_a_repeated_request_does_not_fit_twice(reward):
    first = fit(reward, "job", light_is_real(), request_id="a", **SMALL)
    second = fit(reward, "job", [], request_id="b", base_version=first.version)
    before = reward.export("job").data
    assert fit(reward, "job", light_is_real(), request_id="a", **SMALL) == first
    assert fit(reward, "job", [], request_id="b", base_version=first.version) == second
    assert reward.export("job").data == before


def test_requests_are_remembered_across_export_but_not_for_ever(reward):
    first = fit(reward, "job", light_is_real(), request_id="a", **SMALL)
    reward.import_("job", reward.export("job").data)
    assert fit(reward, "job", [], request_id="a") == first
    for index in range(REMEMBERED_FITS):
        last = fit(reward, "job", [], steps=0, request_id=f"later {index}")
    assert fit(reward, "job", [], steps=0, request_id="a") != first
    assert fit(reward, "job", [], steps=0, request_id=f"later {REMEMBERED_FITS - 1}") == last


def test_a_fit_on_another_version_is_refused(reward):
    version = fit(reward, "job", light_is_real(), **SMALL).version
    fit(reward, "job", [])
    before = reward.export("job").data
    with pytest.raises(VersionMismatch, match=r"is at version 1\+job@2-.*, not at 1\+job@1-"):
        fit(reward, "job", [], base_version=version)
    assert reward.export("job").data == before


def test_an_instance_that_is_not_there_is_not_made_by_a_fit_that_builds_on_it(reward):
    fit(reward, "mine", light_is_real(), **SMALL)
    words = "no instance job, it has mine; .* import it from its last export"
    with pytest.raises(UnknownInstance, match=words):
        fit(reward, "job", light_is_real(), base_version="1+job@4-abcdef01", **SMALL)
    for ask in (reward.export, lambda name: reward.opened(name).__enter__()):
        with pytest.raises(UnknownInstance, match=words):
            ask("job")


def test_a_fit_that_diverges_is_undone(reward):
    fit(reward, "job", light_is_real(), steps=0, gradient_penalty=1e39, **SMALL)
    before = reward.export("job").data
    with pytest.raises(RewardFailed, match="after step 2 a loss or the weights are NaN or inf"):
        fit(reward, "job", light_is_real(), steps=2)
    assert reward.export("job").data == before


def test_a_first_fit_that_fails_leaves_no_instance(reward):
    with pytest.raises(InvalidRequest, match="no generated examples"):
        fit(reward, "job", light_is_real(4)[:4], **SMALL)
    with pytest.raises(UnknownInstance):
        reward.export("job")
    fit(reward, "job", light_is_real(4), **SMALL | {"base_width": 4})


def test_nobody_waiting_means_nothing_done(reward):
    order = FitOrder("a", "", light_is_real(4), 1, SMALL)
    with pytest.raises(DeadlineExceeded):
        reward.fit("job", order, lambda: False)
    with pytest.raises(UnknownInstance):
        reward.export("job")


def test_hyperparameters_are_checked_and_then_fixed(reward):
    for given, words in (
        ({"width": 3}, "hyperparameter width: .*known: image_size, channels, base_width"),
        ({"image_size": 48}, r"hyperparameter image_size: .*\(got 48\)"),
        ({"variant": "lsgan"}, "hyperparameter variant"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            fit(reward, "job", light_is_real(4), **SMALL | given)
    fit(reward, "job", light_is_real(4), **SMALL)
    fit(reward, "job", light_is_real(4), base_width=8)
    for given in ({"base_width": 16}, {"seed": 1}, {"width": 3}):
        with pytest.raises(InvalidRequest, match="cannot become"):
            fit(reward, "job", light_is_real(4), **given)


def test_bounds_on_steps_and_bytes(make):
    reward = make(Discriminator, "one", max_steps=3, max_instance_bytes=1024 * 1024)
    with pytest.raises(InvalidRequest, match="4 steps in one fit, at most 3"):
        fit(reward, "job", light_is_real(4), steps=4, **SMALL)
    with pytest.raises(InvalidRequest, match="at most 1048576 are accepted: lower base_width"):
        fit(reward, "job", light_is_real(4), **SMALL | {"base_width": 256})
    with pytest.raises(InvalidRequest, match="can take"):
        fit(reward, "job", light_is_real(4), **SMALL | {"replay_capacity": 1_000_000})
    fit(reward, "job", light_is_real(200), steps=3, **SMALL | {"replay_capacity": 150})
    assert len(reward.export("job").data) <= reward.max_import_bytes


def test_an_instance_takes_no_more_than_was_foreseen(reward):
    small = SMALL | {"replay_capacity": 40}
    fit(reward, "job", light_is_real(40), steps=2, **small)
    foreseen = footprint(Critic, DiscriminatorHyperparameters(**small)).at_rest
    # The header's names and numbers come on top.
    assert foreseen * 0.95 < len(reward.export("job").data) < foreseen + 16 * 1024


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a" * 65, "é", "a b", "a\n"])
def test_names_that_could_be_paths_are_refused(reward, name):
    with pytest.raises(InvalidRequest, match="must be 1 to 64 letters"):
        fit(reward, name, light_is_real(4), **SMALL)


def damaged(data):
    return {
        "nothing": b"",
        "noise": np.random.default_rng(0).bytes(5000),
        "half": data[: len(data) // 2],
        "a little more": data + b"\0",
        "no metadata": data.replace(b'"salon"', b'"olsan"', 1),
        "another revision": data.replace(b'\\"revision\\":\\"1\\"', b'\\"revision\\":\\"2\\"', 1),
        "another reward": data.replace(b"discriminator", b"illuminator..", 1),
        "another network": data.replace(b'\\"base_width\\":8', b'\\"base_width\\":9', 1),
        "an unknown hyperparameter": data.replace(b'\\"base_width', b'\\"case_width', 1),
        "a missing tensor": data.replace(b'"network.0.bias"', b'"network.0.bims"', 1),
        "a missing moment": data.replace(b'"optimizer.1.step"', b'"optimizer.9.step"', 1),
        "a huge network": data.replace(b'\\"image_size\\":16,', b'\\"image_size\\":256', 1),
    }


@pytest.mark.parametrize("kind", damaged(b"").keys())
def test_what_is_no_export_is_refused_and_the_instance_stays(reward, kind):
    fit(reward, "job", light_is_real(4), **SMALL)
    data = reward.export("job").data
    changed = damaged(data)[kind]
    assert changed != data
    with pytest.raises(InvalidRequest):
        reward.import_("job", changed)
    assert reward.export("job").data == data
    assert scores(reward, "job", light(1))
