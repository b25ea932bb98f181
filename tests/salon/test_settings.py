import pytest

from salon.errors import InvalidRequest
from salon.redis_password import with_new_password
from salon.redis_url import password
from salon.settings import Settings, load_settings
from salon.stack.state import read_state


def test_the_environment_is_read(monkeypatch):
    monkeypatch.setenv("SALON_REWARD_TARGET", "rewards:1234")
    monkeypatch.setenv("SALON_LEASE_SECONDS", "2.5")
    settings = load_settings()
    assert (settings.reward_target, settings.lease_seconds) == ("rewards:1234", 2.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SALON_LEASE_SECONDS", "soon"),
        ("SALON_JOB_ATTEMPTS", "0"),
        ("SALON_MAX_MESSAGE_BYTES", "1"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest, match=rf"{name}: .*'{value}'"):
        load_settings()


def test_a_reward_without_a_target_of_its_own_is_at_the_common_one(monkeypatch):
    monkeypatch.setenv("SALON_REWARD_TARGET", "rewards:1")
    monkeypatch.setenv("SALON_REWARD_TARGETS", '{"aesthetic": "gpu:2"}')
    settings = load_settings()
    assert settings.target("aesthetic") == "gpu:2"
    assert settings.target("jpeg_compressibility") == "rewards:1"


@pytest.mark.parametrize("value", ["gpu:2", '{"aesthetic": 3}', '["aesthetic"]'])
def test_targets_that_cannot_be_used_are_named(monkeypatch, value):
    monkeypatch.setenv("SALON_REWARD_TARGETS", value)
    with pytest.raises(InvalidRequest, match=r"^SALON_REWARD_TARGETS"):
        load_settings()


def test_a_task_must_have_time_left_to_score(monkeypatch):
    monkeypatch.setenv("SALON_SERVICE_WAIT_SECONDS", "59")
    with pytest.raises(InvalidRequest, match=r"SERVICE_WAIT_SECONDS.*no time would be left"):
        load_settings()


@pytest.mark.parametrize("name", ["VISIBILITY_TIMEOUT", "RESEND"])
def test_a_running_task_must_not_be_handed_out_twice(monkeypatch, name):
    monkeypatch.setenv(f"SALON_{name}_SECONDS", "30")
    with pytest.raises(InvalidRequest, match=f"{name}_SECONDS.*must exceed.*SCORE_TASK_SECONDS"):
        load_settings()


def test_the_defaults_are_consistent():
    settings = Settings()
    assert settings.resend_seconds < settings.visibility_timeout_seconds
    assert settings.blob_seconds > settings.visibility_timeout_seconds


def test_a_password_that_another_user_keeps_is_not_known_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SALON_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("SALON_REDIS_URL", raising=False)
    settings = load_settings()
    with_new_password(tmp_path / "state", settings.redis_url)

    def read_text(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    assert password(load_settings().redis_url) == ""
    assert read_state(settings) is None


def test_a_password_that_was_found_does_not_make_the_default_a_redis_that_was_named(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("SALON_REDIS_URL", raising=False)
    monkeypatch.setenv("SALON_STATE_DIR", str(tmp_path / "state"))
    default = load_settings()
    with_new_password(tmp_path / "state", default.redis_url)
    found = load_settings()
    assert password(found.redis_url)
    assert "redis_url" not in found.model_fields_set
    monkeypatch.setenv("SALON_REDIS_URL", default.redis_url)
    assert load_settings().redis_url == found.redis_url
    assert "redis_url" in load_settings().model_fields_set
