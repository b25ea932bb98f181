"""What report and card say of the evaluations during training."""

import re

import pytest

from tests.fixtures.finished_run import finished_run
from trainer.report.page import render_page
from trainer.report.watch import ROWS, notes, table, watched

STOP = {
    "iteration": 6,
    "rule": "eval/kl was above 2 in 2 evaluations in a row",
    "metric": "eval/kl",
    "values": [2.5, 3.25],
    "highest": 3.25,
}
BEST = {"iteration": 4, "metric": "eval/brightness/mean", "value": 0.625}
DURING = [(i, {"eval/diversity": 0.5 - 0.1 * i, "eval/kl": 0.5 * i}) for i in (2, 4)]


def test_only_what_was_measured_more_than_twice_has_a_curve():
    assert watched(finished_run().summary) == []
    curves = watched(finished_run(during=DURING).summary)
    assert [w.metric for w in curves] == ["eval/brightness/mean", "eval/diversity", "eval/kl"]
    assert [len(w.curve.points) for w in curves] == [4, 2, 2]
    assert curves[0].curve.band
    assert not curves[2].curve.band
    assert curves[2].curve.points[-1][2] == "iteration 4: 2.00"


def test_a_stop_and_the_best_model_are_told_in_a_sentence_each():
    run = finished_run(during=DURING, stop=STOP, best=BEST)
    assert notes(run.summary, iterations=20) == [
        "Stopped after iteration 6 of 20, because eval/kl was above 2 in 2 evaluations in a row: "
        "2.50, 3.25.",
        "The model with the highest eval/brightness/mean, 0.6250 (after iteration 4), is kept in "
        "best/.",
    ]
    last = notes(finished_run(best=BEST | {"iteration": 6}).summary, iterations=6)
    assert last[0].endswith("0.6250 (the last one), is kept in best/.")
    fallen = finished_run(stop=STOP | {"values": [2.5, 2.25]})
    assert notes(fallen.summary, 20)[0].endswith("2.50, 2.25 (the highest was 3.25).")
    assert notes(finished_run().summary, iterations=6) == []


@pytest.mark.parametrize(("count", "shown"), [(1, 3), (10, 12), (98, ROWS)])
def test_the_table_is_bounded_and_has_the_first_and_the_last(count, shown):
    during = [(i + 1, {"eval/kl": 0.25}) for i in range(count)]
    run = finished_run(iterations=count + 1, during=during)
    header, rows = table(run.summary)
    assert header == ["iteration", "eval/brightness/mean", "eval/kl"]
    assert len(rows) == shown
    assert (rows[0][0], rows[-1][0]) == ("0", str(count + 1))
    assert (rows[0][2], rows[1][2]) == ("—", "0.250")
    numbers = [int(row[0]) for row in rows]
    assert numbers == sorted(set(numbers))


def test_the_page_has_all_of_it():
    run = finished_run(during=DURING, stop=STOP, best=BEST)
    page = render_page(run.spec, run.summary, run.before, run.after, run.metrics)
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", page)
    assert titles[2:5] == ["eval/brightness/mean", "eval/diversity", "eval/kl"]
    assert "Stopped after iteration 6 of 6" in page
    assert "is kept in best/" in page
    plain = finished_run()
    assert 'id="watch"' not in render_page(
        plain.spec, plain.summary, plain.before, plain.after, plain.metrics
    )
