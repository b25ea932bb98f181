import importlib
import inspect
import pkgutil

import pytest

from salon.errors import InvalidRequest, UnknownReward
from salon.reward.v1 import reward_pb2
from salon.serving import LearnedReward, Reward
from salon.settings import Settings
from salon.stack.local_services import (
    DEFAULT_REWARDS,
    LOCAL_SERVICES,
    local_services,
    refuse_misspelt,
    reward_targets,
    service_targets,
)
from salon.stack.programs import programs
from services import rewards


def hosted(module):
    """The reward classes that a module of `services.rewards` defines."""
    path = f"{rewards.__name__}.{module}"
    return [
        value
        for value in vars(importlib.import_module(path)).values()
        if inspect.isclass(value)
        and issubclass(value, Reward)
        and value.__module__ == path
        and hasattr(value, "name")
    ]


def test_every_module_is_there_with_every_reward_it_hosts():
    modules = {found.name for found in pkgutil.iter_modules(rewards.__path__)}
    table = {service.module: set(service.rewards) for service in LOCAL_SERVICES}
    assert table == {module: {cls.name for cls in hosted(module)} for module in modules}


@pytest.mark.parametrize("service", LOCAL_SERVICES, ids=lambda service: service.module)
def test_its_options_are_known_to_the_rewards(service):
    known = {
        name
        for cls in hosted(service.module)
        if cls.Config is not None
        for name in cls.Config.model_fields
    }
    assert set(service.options) <= known
    assert ("model" in known) <= ("model" in service.options), "it would fetch a large one"


@pytest.mark.parametrize("service", LOCAL_SERVICES, ids=lambda service: service.module)
def test_what_its_rewards_need_is_what_they_say(service):
    for cls in hosted(service.module):
        inputs = {
            reward_pb2.Input.Name(value).removeprefix("INPUT_").lower() for value in cls.inputs
        }
        if issubclass(cls, LearnedReward):
            inputs.add("instance")
        assert inputs - {"image", "prompt"} == {service.needs} - {"nothing"}


def modules(settings, *names):
    return [service.module for service in local_services(settings, names)]


def test_only_the_services_of_the_rewards_asked_for_are_chosen():
    settings = Settings()
    assert modules(settings, *DEFAULT_REWARDS) == ["jpeg"]
    assert modules(settings, "style", "l2", "jpeg_incompressibility") == [
        "jpeg",
        "l2",
        "perceptual",
    ]
    assert modules(settings, "all") == [service.module for service in LOCAL_SERVICES]


def test_a_reward_that_is_served_elsewhere_needs_no_service_here():
    settings = Settings(reward_targets={"mine": "gpu:1", "aesthetic": "gpu:2"})
    assert modules(settings, "mine", "aesthetic") == []
    assert "aesthetic" not in modules(settings, "all")
    chosen = local_services(settings, ["l2", "mine"])
    targets = {"l2": settings.reward_target, "mine": "gpu:1", "aesthetic": "gpu:2"}
    assert reward_targets(settings, chosen) == targets


def test_an_unknown_reward_is_named_with_those_that_are_known():
    with pytest.raises(UnknownReward, match=r"no reward beauty; it has aesthetic, .*vqa_satis"):
        local_services(Settings(), ["beauty", "l2"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("jpeg_compresibility", "jpeg_compressibility"),
        ("jpeg-incompressibility", "jpeg_incompressibility"),
        ("Aesthetic", "aesthetic"),
        ("clip_scores", "clip_score"),
        ("brightnes", "brightness"),
    ],
)
def test_a_name_one_letter_off_that_nobody_serves_is_refused(name, meant):
    with pytest.raises(UnknownReward, match=f"no worker scores {name}: did you mean {meant}?"):
        refuse_misspelt(["l2", name], {"brightness"})
    refuse_misspelt([name], {"brightness", name})


@pytest.mark.parametrize("name", ["beauty", "hpsv3", "aesthetic2", "l1"])
def test_a_name_that_is_far_from_all_or_another_version_is_waited_for(name):
    refuse_misspelt([name], set())


def test_the_local_stack_says_what_was_meant():
    with pytest.raises(UnknownReward, match=r"no reward clip_scor; did you mean clip_score\? it"):
        local_services(Settings(), ["clip_scor"])


def test_ports_are_consecutive():
    settings = Settings(reward_target="127.0.0.1:6000")
    chosen = local_services(settings, ["l2", *DEFAULT_REWARDS])
    assert service_targets(settings, chosen) == ["127.0.0.1:6000", "127.0.0.1:6001"]
    with pytest.raises(InvalidRequest, match="65535, and 2 services"):
        service_targets(Settings(reward_target="127.0.0.1:65535"), chosen)
    with pytest.raises(InvalidRequest, match="SALON_REWARD_TARGET: 'banana' is not host:port"):
        service_targets(Settings(reward_target="banana"), chosen)


def test_a_model_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    with pytest.raises(
        InvalidRequest, match=rf"models/tiny-clip-digits, which is not in {tmp_path}"
    ):
        programs(settings, local_services(settings, ["aesthetic"]))
