from structlog.testing import capture_logs

from trainer.rewards.versions import RewardVersions


def test_another_version_is_named_also_in_the_next_attempt():
    versions = RewardVersions()
    with capture_logs() as logs:
        for version in ("1", "1", "2", "2"):
            versions.note("r", version)
        versions.note("s", "1")
        resumed = RewardVersions()
        resumed.load_state_dict(versions.state_dict())
        resumed.note("r", "3")
        resumed.note("s", "1")
    changes = [(entry["reward"], entry["before"], entry["now"]) for entry in logs]
    assert changes == [("r", "1", "2"), ("r", "2", "3")]
    assert versions.state_dict() == {"r": "2", "s": "1"}, "the two attempts share nothing"
