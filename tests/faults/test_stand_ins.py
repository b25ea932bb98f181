"""A job whose generator is no stand-in, and whose reward is one."""

import json

from salon.jobs.record import JobState
from salon.jobs.store import JobStore
from tests.fixtures.stack import wait_until


def test_it_is_refused_unless_told_and_then_the_report_says_so(stack, submit):
    stack.serve("tests.services.faulty:Standing", "standing")
    stack.start()
    store = JobStore(stack.redis)
    small = {"rewards": [{"name": "standing"}], "iterations": 1}

    def run(**changes):
        job = submit(**small, **changes)
        wait_until(lambda: store.get(job).state.final, f"{job} is over", 120)
        return store.get(job)

    refused = run()
    assert refused.state is JobState.FAILED
    assert "standing: served by a small stand-in" in refused.reason
    assert "allow_stand_ins: true" in refused.reason
    told = run(allow_stand_ins=True)
    assert (told.state, told.reason) == (JobState.SUCCEEDED, "")
    folder = stack.settings.runs_dir / told.id
    assert json.loads((folder / "summary.json").read_text())["stand_ins"] == ["standing"]
    for page in (folder / "report.html", folder / "model" / "README.md"):
        assert "Scored by stand-in rewards: standing." in page.read_text()
