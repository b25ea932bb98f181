"""The two files of a report, without a browser."""

import base64
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.fixtures.finished_run import HOSTILE, finished_run
from trainer.evaluation.held_out import effects
from trainer.report import write_report
from trainer.report.page import render_page
from trainer.report.pictures import spread_over
from trainer.report.results import Result
from trainer.rewards.scorer import Scale
from trainer.runtime.run_folder import RunFolder
from trainer.runtime.statistics import compare


def render(run):
    return render_page(run.spec, run.summary, run.before, run.after, run.metrics)


def text_of(page):
    """What a reader sees, roughly: no markup, no runs of space."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).split())


def test_the_headline_has_means_effect_and_count():
    run = finished_run()
    text = text_of(render(run))
    entry = run.summary["rewards"]["brightness"]
    low, high = entry["ci95"]
    assert re.search(r"brightness rises from 0\.\d+ to 0\.\d+ effect size", text)
    assert f"+{entry['effect_size']:.2f} [{low:.2f}, {high:.2f}] on 19 images" in text


@pytest.mark.parametrize(
    ("shift", "change"), [(0.5, "rises from"), (-0.5, "falls from"), (0.0, "shows no clear change")]
)
def test_a_direction_is_claimed_only_where_the_interval_excludes_zero(shift, change):
    scores = np.random.default_rng(1).normal(0, 0.1, 40)
    (result,) = Result.all_of(
        {"rewards": {"r": compare(scores, scores[::-1] + shift)}, "eval_rewards": {}}
    )
    assert result.change.startswith(change)


def test_every_pair_is_there_and_an_error_is_a_dash():
    run = finished_run(samples=20)
    page = render(run)
    assert page.count("data:image/png;base64,") == 40
    assert "4 more pairs" in text_of(page)
    scores = re.findall(r'<span class="score[^"]*" title="brightness">([^<]*)<', page)
    assert (len(scores), scores.count("—")) == (40, 2)


def test_it_stays_bounded_with_many_and_large_pictures():
    run = finished_run(samples=70, size=300)
    page = render(run)
    # Noise, the worst there is: as PNG these pictures would be of 25 MB.
    assert page.count("data:image/webp;base64,") == 128
    assert len(page) < 12e6
    text = text_of(page)
    assert "64 of 70 pairs" in text
    assert "Generated at 300 × 300 pixels, shown at most 256 wide or high." in text
    assert "they are WebP of quality 85, which is not what was scored" in text
    assert 'class="gallery"' in page, "large pictures are not pixelated"


def test_small_pictures_are_exact():
    run = finished_run(samples=3)
    page = render(run)
    first = re.search(r'src="data:image/png;base64,([^"]*)"', page).group(1)
    with Image.open(io.BytesIO(base64.b64decode(first))) as picture:
        assert np.array_equal(np.asarray(picture), run.before.images[0])
    assert "WebP" not in text_of(page)


def test_nothing_in_it_points_outside():
    page = render(finished_run())
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_what_is_shown_is_escaped():
    page = render(finished_run())
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=" in page
    assert "{{ 7 * 7 }}" in page


def test_several_rewards_have_a_section_each_and_their_sum():
    page = render(finished_run(rewards=("brightness", "second")))
    assert page.count('id="reward-') == 2
    assert "1 × brightness + 1 × second , what training maximises" in text_of(page)
    scores = re.findall(r'<span class="score[^>]*><small>(\w+)</small>', page)
    assert scores.count("second") == 40


def test_a_reward_of_evaluation_alone_says_so_and_has_no_curve_of_training():
    run = finished_run(eval_rewards=("unseen",))
    page = render(run)
    text = text_of(page)
    assert re.search(r"unseen \(not trained on\) rises from 10\.\d+ to 10\.\d+", text)
    assert "training never asked for it" in text
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", page)[:3]
    assert titles == ["In training", "In evaluation", "In evaluation"]
    assert "Weighted sum" not in text


def test_a_normalised_sum_is_named_but_has_neither_curve_nor_heading():
    page = render(finished_run(rewards=("brightness", "second"), normalize="zscore"))
    text = text_of(page)
    assert "1 × second (normalised over each iteration), what training maximises: normal" in text
    assert "Weighted sum" not in text
    assert page.count("<b>In training</b>") == 2


def test_every_heading_has_something_under_it():
    for normalize in ("none", "zscore"):
        page = render(finished_run(rewards=("brightness", "second"), normalize=normalize))
        sections = re.findall(r"<section.*?</section>", page, re.S)
        assert all(re.search("<img|<svg|<pre", section) for section in sections)


SCORES = np.random.default_rng(1).normal(-38.2, 12, 64)


def result_of(shift, weight=1.0, lower_is_better=False, before=SCORES):
    """Of a job with one reward, in kB, whose scores move by `shift`."""
    run = finished_run(rewards=("jpeg",), samples=len(before), weight=weight)
    scale = {"jpeg": Scale("kB", lower_is_better)}
    pair = [
        replace(run.before, scores={"jpeg": scores}, scales=scale)
        for scores in (before, before + shift + np.linspace(-0.1, 0.1, len(before)))
    ]
    run = replace(run, summary={**run.summary, **effects(run.spec, *pair)})
    (result,) = Result.all_of(run.summary)
    return result, replace(run, before=pair[0], after=pair[1])


@pytest.mark.parametrize(
    ("shift", "weight", "lower", "change", "outcome"),
    [
        (12.0, 1.0, False, "rises from −39 kB to −27 kB", "better"),
        (-12.0, 1.0, False, "falls from −39 kB to −51 kB", "worse"),
        (-12.0, -1.0, False, "falls from −39 kB to −51 kB", "better"),
        (12.0, -1.0, False, "rises from −39 kB to −27 kB", "worse"),
        # What training does not maximise is as good as its service says.
        (-12.0, 0.0, True, "falls from −39 kB to −51 kB", "better"),
        (-12.0, 0.0, False, "falls from −39 kB to −51 kB", "worse"),
        # A change that the interval is sure of, but that no one sees.
        (0.2, 1.0, False, "shows no clear change (−39 kB → −39 kB)", "same"),
        (-0.2, 1.0, False, "shows no clear change (−39 kB → −39 kB)", "same"),
    ],
)
def test_a_change_is_for_the_better_or_worse_as_the_job_has_it(
    shift, weight, lower, change, outcome
):
    result, run = result_of(shift, weight, lower)
    assert (result.ci95[0] > 0) == (shift > 0)
    assert (result.change, result.outcome) == (change, outcome)
    page = render(run)
    effect = re.search(r'<strong class="(\w+)">([^<]*)</strong>', page)
    assert effect.groups() == (outcome, result.effect)
    verdicts = re.findall(r'<span class="score (\w+)" title="jpeg">([^<]*) ?<', page)
    assert len(verdicts) == 64
    if outcome != "same":
        assert {verdict for verdict, _ in verdicts} == {outcome}
    marks = re.findall(r'<span class="mark" title="(\w+)">(.)</span>', page)
    assert set(marks) <= {("better", "▲"), ("worse", "▼")}


def test_a_score_that_is_shown_as_before_is_neither_better_nor_worse():
    result, _ = result_of(12.0)
    assert result.verdict(-38.4, -37.6) == "same"
    assert result.verdict(-38.4, -37.4) == "better"
    assert result.verdict(math.nan, -37.4) == "same", "an error"


def test_scores_and_axes_have_the_unit():
    _, run = result_of(12.0)
    text = text_of(render(run))
    assert "jpeg rises from −39 kB to −27 kB" in text
    assert text.count("score in kB") == 2
    assert text.count("iteration") > 5
    _, plain = result_of(12.0)
    plain.summary["rewards"]["jpeg"]["unit"] = ""
    assert "kB" not in text_of(render(plain))


@pytest.mark.parametrize(
    ("prompts", "count", "places"),
    [
        (10, 4, [0, 2, 5, 7]),
        (4, 4, [0, 1, 2, 3]),
        (3, 7, [0, 1, 2, 3, 4, 5, 6]),  # each prompt twice or more, in turn
        (100, 4, [0, 5, 10, 15]),  # of the 20 that 20 samples have room for
        (2, 100, list(range(20))),
    ],
)
def test_pictures_are_of_prompts_from_the_whole_list(prompts, count, places):
    assert spread_over([str(i % prompts) for i in range(20)], count) == places


def test_the_pictures_that_are_seen_first_are_spread_over_the_prompts():
    run = finished_run(samples=64)
    prompts = [f"a {digit}" for digit in range(30)]
    names = [prompts[i % 30] for i in range(64)]
    run = replace(
        run, before=replace(run.before, prompts=names), after=replace(run.after, prompts=names)
    )
    first, folded = render(run).split("<details>")[:2]
    shown = re.findall(r'<p class="prompt">(.*?)</p>', first)
    assert shown == [f"a {i * 30 // 16}" for i in range(16)]
    assert len(re.findall(r'<p class="prompt">(.*?)</p>', folded)) == 48


def test_scores_of_two_versions_are_warned_of():
    assert 'class="warning"' not in render(finished_run())
    text = text_of(render(finished_run(eval_rewards=("unseen",), versions=("1", "2<b>"))))
    for reward in ("brightness", "unseen"):
        assert f"Warning: {reward} scored as version 1 before training and as version 2&lt;" in text


def test_the_resolved_specification_is_in_it_whole():
    run = finished_run()
    page = render(run)
    block = re.search(r"<pre><code>(.*?)</code></pre>", page, re.S).group(1)
    for entity, character in (("lt", "<"), ("gt", ">"), ("#34", '"'), ("#39", "'"), ("amp", "&")):
        block = block.replace(f"&{entity};", character)
    assert yaml.safe_load(block) == run.spec.model_dump(mode="json")


def test_without_spread_the_effect_is_not_defined():
    run = finished_run()
    run.before.scores["brightness"][:] = 0.25
    run.summary["rewards"]["brightness"] = compare(
        run.before.scores["brightness"], run.after.scores["brightness"]
    )
    text = text_of(render(run))
    assert "effect size not defined (the scores before do not differ)" in text
    assert "brightness goes from 0.2500 to 0.6255" in text, "no interval, so no claim"


def test_scores_that_are_all_errors_are_reported_as_such():
    run = finished_run()
    run.after.scores["brightness"][:] = np.nan
    run.summary["rewards"]["brightness"] = compare(
        run.before.scores["brightness"], run.after.scores["brightness"]
    )
    text = text_of(render(run))
    assert "brightness has no image that got a score both before and after" in text
    assert "on 0 images" in text


def test_absent_and_broken_metrics_leave_their_charts_out():
    run = finished_run()
    for entry in run.metrics:
        del entry["grad_norm"]
        entry["clipfrac"] = float("nan")
    page = render(run)
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", page)
    assert titles == ["In training", "In evaluation", "approx_kl", "reward_wait_fraction"]
    run.metrics.clear()
    page = render(run)
    assert re.findall(r"<figcaption><b>([^<]*)</b>", page) == ["In evaluation"]


@pytest.mark.parametrize(
    "run",
    [
        finished_run(),
        finished_run(rewards=("brightness", "second_reward"), samples=3, iterations=1),
        finished_run(eval_rewards=("unseen",)),
        finished_run(versions=("1", "2")),
        finished_run(rewards=tuple("abcdef"), eval_rewards=tuple("ghi"), samples=3),
    ],
    ids=[
        "one reward",
        "two rewards, few samples, one iteration",
        "one of evaluation alone",
        "two versions",
        "nine rewards",
    ],
)
def test_both_files_are_written_and_the_slide_has_something_on_it(tmp_path, run):
    folder = RunFolder(tmp_path, fence=lambda: None)
    write_report(folder, run.spec, run.summary, run.before, run.after, run.metrics)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.png"}
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(run)
    with Image.open(tmp_path / "report.png") as slide:
        slide.load()
        assert (slide.format, slide.size) == ("PNG", (1920, 1080))
        pixels = np.asarray(slide.convert("RGB"))
    assert (pixels[:, 0] == 255).all(), "a white margin"
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_a_writer_that_was_replaced_leaves_nothing(tmp_path):
    class ReplacedError(Exception):
        pass

    def fence():
        raise ReplacedError

    run = finished_run()
    with pytest.raises(ReplacedError):
        write_report(
            RunFolder(tmp_path, fence), run.spec, run.summary, run.before, run.after, run.metrics
        )
    assert list(tmp_path.iterdir()) == []
