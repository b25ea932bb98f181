"""The studies' specs, their sums, and that runs which are done are not run again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fidelity.studies import STUDIES, TASKS, VARIANTS, Run, runs_of
from benchmarks.fidelity.summary import draw, read, summarise
from benchmarks.fidelity.training import write

REPOSITORY = Path(__file__).parents[2]
QUERIES = 3840


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def result(run, trained, held_out=(1.0, 1.5)):
    """What a run writes down: evaluations before and after."""

    def points(means, **more):
        return [
            {"queries": run.queries * index, "mean": mean, "std": 0.5, **more}
            for index, mean in enumerate(means)
        ]

    evaluations = {
        "trained": points(trained),
        "held out": points(held_out, kl=0.5, clip_score=run.seed),
    }
    return {"run": vars(run), "evaluations": evaluations, "samples": 4, "seconds": 1.0}


@pytest.mark.parametrize("study", STUDIES)
def test_all_runs_of_a_study_spend_the_same_queries(study):
    specs = [run.spec() for run in runs_of(study, 1, QUERIES)]
    spent = {spec.iterations * spec.algorithm.samples_per_iteration for spec in specs}
    assert spent == {QUERIES}


@pytest.mark.parametrize("study", STUDIES)
def test_every_run_of_a_study_has_a_file_of_its_own(study):
    runs = runs_of(study, 2, QUERIES)
    assert len({run.key for run in runs}) == len(runs)
    assert all(run.key.isascii() for run in runs)


def test_variants_differ_from_the_tiny_job_in_what_they_say_alone():
    specs = {run.variant: run.spec() for run in runs_of("algorithms", 1, QUERIES)[:5]}
    score, importance = specs["DDPO-SF"].algorithm, specs["DDPO-IS"].algorithm
    changes = {"updates_per_iteration": 1, "estimator": "score_function"}
    assert score == importance.model_copy(update=changes)
    assert specs["RWR"].algorithm.weighting == "softmax"
    assert specs["RWR-sparse"].algorithm.weighting == "sparse"
    changes = {"inverse_temperature": 0.0}
    assert specs["unweighted"].algorithm == specs["RWR"].algorithm.model_copy(update=changes)
    assert {spec.algorithm.sampling_steps for spec in specs.values()} == {importance.sampling_steps}
    assert specs["RWR-sparse"].algorithm.learning_rate == specs["RWR"].algorithm.learning_rate


@pytest.mark.parametrize("task", TASKS)
def test_all_algorithms_sample_a_task_alike(task):
    runs = [run for run in runs_of("algorithms", 1, QUERIES) if run.task == task]
    configs = [run.spec().algorithm for run in runs]
    assert len(configs) == 5
    assert len({(config.sampling_steps, config.guidance_scale) for config in configs}) == 1


def test_queries_that_are_no_whole_number_of_iterations_are_refused():
    with pytest.raises(ValueError, match="100 queries are no whole number of iterations of 64"):
        runs_of("guidance", 1, 100)[0].spec()


def test_studies_share_the_runs_of_a_variant():
    runs = {run for study in STUDIES for run in runs_of(study, 1, QUERIES)}
    assert len({run.key for run in runs}) == len(runs)
    assert len(runs) < sum(len(runs_of(study, 1, QUERIES)) for study in STUDIES)
    assert {run.variant for run in runs} == set(VARIANTS)


def test_the_interval_is_students_over_seeds():
    runs = [run for run in runs_of("algorithms", 4, 1280) if run.task == "aesthetic"]
    runs = [run for run in runs if run.variant == "RWR"]
    after = [2.0, 4.0, 4.0, 6.0]
    results = [result(run, [1.0, mean]) for run, mean in zip(runs, after, strict=True)]
    curve = summarise(STUDIES["algorithms"], results)["aesthetic"]["RWR"]
    assert (curve["queries"], curve["seeds"]) == ([0, 1280], 4)
    assert curve["trained"]["mean"] == [1.0, 4.0]
    assert curve["held out"]["mean"] == [1.0, 1.5]
    assert (curve["kl"], curve["clip_score"]) == ([0.5, 0.5], [1.5, 1.5])  # seeds 0 to 3
    # t at 0.975 and 3 degrees of freedom is 3.182446; s = sqrt(8 / 3), over sqrt(4).
    assert curve["trained"]["half"] == pytest.approx([0.0, 3.182446 * (8 / 3) ** 0.5 / 2], rel=1e-6)


def test_runs_that_are_done_are_not_run_again(tmp_path):
    made = {}
    for index, run in enumerate(runs_of("advantages", 1, 1280)):
        write(tmp_path / "runs" / f"{run.key}.json", result(run, [1.0, 2.0 + index]))
        made.setdefault(run.task, []).append(2.0 + index)
    write(tmp_path / "runs" / "other.json", result(Run("alignment", "RWR", 0, 1280), [1.0, 9.0]))
    command = [sys.executable, "-m", "benchmarks.fidelity", "advantages", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--queries", "1280", "--results", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.casefold()  # one seed has no interval
    curves = json.loads(done.stdout.splitlines()[-1])["curves"]
    after = {
        task: [line["trained"]["mean"][-1] for line in lines.values()]
        for task, lines in curves.items()
    }
    assert after == made
    assert (tmp_path / "advantages.png").stat().st_size > 1000


def test_a_figure_has_a_panel_for_each_task(tmp_path):
    study = STUDIES["generalisation"]
    for run in runs_of("generalisation", 2, 1280):
        write(tmp_path / f"{run.key}.json", result(run, [1.0, 2.0]))
    curves = summarise(study, read(tmp_path, study, seeds=2))
    assert list(curves) == list(TASKS)
    assert {lines["DDPO-IS"]["seeds"] for lines in curves.values()} == {2}
    draw(study, curves, tmp_path / "generalisation.png")
    assert (tmp_path / "generalisation.png").read_bytes().startswith(b"\x89PNG")
