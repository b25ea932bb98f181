"""The studies' specs, their sums, and that runs which are done are not run again."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.fidelity.studies import STUDIES, TASKS, runs_of
from benchmarks.fidelity.summary import draw, read, summarise
from benchmarks.fidelity.training import write

REPOSITORY = Path(__file__).parents[2]
QUERIES = 3840


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def result(run, means):
    points = [
        {"queries": run.queries * index, "mean": mean, "std": 0.5}
        for index, mean in enumerate(means)
    ]
    return {"run": vars(run), "evaluations": {"held out": points}, "samples": 4, "seconds": 1.0}


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
    specs = {run.variant: run.spec() for run in runs_of("algorithms", 1, QUERIES)[:4]}
    score, importance = specs["DDPO-SF"].algorithm, specs["DDPO-IS"].algorithm
    changes = {"updates_per_iteration": 1, "estimator": "score_function"}
    assert score == importance.model_copy(update=changes)
    assert specs["RWR"].algorithm.weighting == "softmax"
    assert specs["RWR-sparse"].algorithm.weighting == "sparse"
    assert specs["RWR-sparse"].algorithm.weighting == "sparse"
    assert {spec.algorithm.sampling_steps for spec in specs.values()} == {importance.sampling_steps}
    assert specs["RWR-sparse"].algorithm.learning_rate == specs["RWR"].algorithm.learning_rate


@pytest.mark.parametrize("task", TASKS)
def test_all_algorithms_sample_a_task_alike(task):
    runs = [run for run in runs_of("algorithms", 1, QUERIES) if run.task == task]
    configs = [run.spec().algorithm for run in runs]
    assert len(configs) == 4
    assert len({(config.sampling_steps, config.guidance_scale) for config in configs}) == 1


def test_queries_that_are_no_whole_number_of_iterations_are_refused():
    with pytest.raises(ValueError, match="100 queries are no whole number of iterations of 64"):
        runs_of("guidance", 1, 100)[0].spec()


def test_the_interval_is_students_over_seeds():
    runs = [run for run in runs_of("algorithms", 4, 768) if run.task == "aesthetic"]
    runs = [run for run in runs if run.variant == "RWR"]
    after = [2.0, 4.0, 4.0, 6.0]
    curves = summarise([result(run, [1.0, mean]) for run, mean in zip(runs, after, strict=True)])
    curve = curves["aesthetic"]["RWR"]
    assert (curve["queries"], curve["mean"], curve["seeds"]) == ([0, 768], [1.0, 4.0], 4)
    # t at 0.975 and 3 degrees of freedom is 3.182446; s = sqrt(8 / 3), over sqrt(4).
    assert curve["half"] == pytest.approx([0.0, 3.182446 * (8 / 3) ** 0.5 / 2], rel=1e-6)


def test_runs_that_are_done_are_not_run_again(tmp_path):
    made = defaultdict(list)
    for index, run in enumerate(runs_of("advantages", 1, 768)):
        write(tmp_path / "advantages" / f"{run.key}.json", result(run, [1.0, 2.0 + index]))
        made[run.task].append(2.0 + index)
    command = [sys.executable, "-m", "benchmarks.fidelity", "advantages", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--queries", "768", "--results", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    curves = json.loads(done.stdout.splitlines()[-1])["curves"]
    after = {task: [line["mean"][-1] for line in lines.values()] for task, lines in curves.items()}
    assert {task: sorted(means) for task, means in after.items()} == made
    assert (tmp_path / "advantages.png").stat().st_size > 1000


def test_a_figure_has_a_panel_for_each_task(tmp_path):
    runs = runs_of("guidance", 2, 768)
    for run in runs:
        write(tmp_path / f"{run.key}.json", result(run, [1.0, 2.0]))
    draw(summarise(read(tmp_path)), tmp_path / "guidance.png")
    assert (tmp_path / "guidance.png").read_bytes().startswith(b"\x89PNG")
