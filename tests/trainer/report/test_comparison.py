"""One page about several runs, from the command that writes it."""

import html
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.fixtures.finished_run import HOSTILE, finished_run
from trainer.__main__ import app
from trainer.runtime.run_folder import RunFolder
from trainer.spec.dotted import dotted


def leave(path, **options):
    """The folder that `finished_run(**options)` would have left, and its summary."""
    run = finished_run(**options)
    folder = RunFolder(path, fence=lambda: None)
    folder.write_text("spec.yaml", yaml.safe_dump(run.spec.model_dump(mode="json")))
    folder.write_text("summary.json", json.dumps(run.summary))
    folder.write_text("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in run.metrics))
    run.before.save(folder, "evaluation/000000.safetensors")
    run.after.save(folder, f"evaluation/{run.summary['iterations']:06d}.safetensors")
    return path, run.summary


def compare(*folders, out):
    return CliRunner().invoke(app, ["compare", *map(str, folders), "--out", str(out)])


@pytest.fixture
def page(tmp_path):
    """Of two seeds, one of which trained for fewer iterations."""
    first, one = leave(tmp_path / "first", seed=3, iterations=6, unit="kB")
    second, two = leave(tmp_path / "second", seed=4, iterations=4, unit="kB")
    done = compare(first, second, out=tmp_path / "page.html")
    assert (done.exit_code, done.output) == (0, "")
    return (tmp_path / "page.html").read_text(encoding="utf-8"), one, two


def cells(page, table):
    """The text of a table's cells, row by row."""
    body = re.findall(r"<table>(.*?)</table>", page, re.S)[table]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    return [
        [" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in re.split(r"</t[hd]>", row)[:-1]]
        for row in rows
    ]


def test_the_unit_is_that_of_whichever_run_was_told_one(tmp_path):
    older, _ = leave(tmp_path / "older", seed=3, unit="")
    newer, _ = leave(tmp_path / "newer", seed=4, unit="kB")
    assert compare(older, newer, out=tmp_path / "page.html").exit_code == 0
    levels = [row[1] for row in cells((tmp_path / "page.html").read_text(), 1)[1:]]
    assert levels
    assert all(level.endswith(" kB") for level in levels)


def test_what_differs_is_told_and_what_does_not_is_folded(page):
    text, _, _ = page
    assert cells(text, 0) == [
        ["run", "iterations", "seed"],
        ["first", "6", "3"],
        ["second", "4", "4"],
    ]
    common = yaml.safe_load(
        html.unescape(re.search(r"<pre><code>(.*?)</code></pre>", text, re.S)[1])
    )
    assert common["algorithm.sampling_steps"] == 2
    assert "seed" not in common


def test_each_run_has_its_row_and_all_of_them_their_mean(page):
    text, one, two = page
    _, first, second, together = cells(text, 1)
    entries = [summary["rewards"]["brightness"] for summary in (one, two)]
    for row, entry in zip((first, second), entries, strict=True):
        low, high = entry["ci95"]
        assert row[3] == f"+{entry['effect_size']:,.2f} [{low:,.2f}, {high:,.2f}] ▲"
        assert row[4] == "19"
    means = [entry["after"]["mean"] for entry in entries]
    spread = np.std(means, ddof=1)
    assert together[0] == "mean ± std over 2 runs"
    assert re.fullmatch(r"[\d.]+ ± [\d.]+ kB", together[2])
    assert [float(n) for n in together[2].removesuffix(" kB").split(" ± ")] == pytest.approx(
        [np.mean(means), spread], abs=1e-5
    )
    effects = [entry["effect_size"] for entry in entries]
    assert together[3] == f"+{np.mean(effects):,.2f} ± {np.std(effects, ddof=1):,.2f}"


def test_each_run_has_its_line_and_the_mean_is_of_all_of_them(page):
    text, _, _ = page
    assert re.findall(r'<path class="strand"[^>]*><title>(\w+)</title>', text) == [
        "first",
        "second",
    ]
    legend = re.findall(r'<ul class="legend">(.*?)</ul>', text, re.S)[0]
    hues = re.findall(r'<path class="strand" style="(.*?)"', text)[:2]
    assert re.findall(r'<li style="(.*?)">(\w+)</li>', legend) == [
        *zip(hues, ["first", "second"], strict=True)
    ]
    assert len(set(hues)) == 2
    points = re.search(r'data-points="([^"]*)"', text)[1]
    said = [point[2] for point in json.loads(html.unescape(points))]
    assert [line.split(":")[0] for line in said] == [f"iteration {i}" for i in (1, 2, 3, 4)]
    assert "score in kB" in text


def test_each_run_has_pictures_and_nothing_points_outside(page):
    text, _, _ = page
    assert text.count("data:image/png;base64,") == 2 * 2 * 8
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", text)
    assert "default-src 'none'" in text


def test_what_a_run_says_is_text(tmp_path):
    folder, _ = leave(tmp_path / "run")
    spec = yaml.safe_load((folder / "spec.yaml").read_text())
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec | {"name": HOSTILE}))
    done = compare(folder, out=tmp_path / "page.html")
    assert done.exit_code == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert text.count("<script") == 1


def test_one_run_has_no_spread_over_runs_and_an_effect_that_is_not_defined_is_left_out(tmp_path):
    first, _ = leave(tmp_path / "first")
    second, summary = leave(tmp_path / "second")
    summary["rewards"]["brightness"] |= {
        "effect_size": None,
        "ci95": None,
        "undefined": "the scores before do not differ",
    }
    (second / "summary.json").write_text(json.dumps(summary))
    out = tmp_path / "page.html"
    assert compare(first, out=out).exit_code == 0
    assert "±" not in cells(out.read_text(encoding="utf-8"), 0)[-1][2]
    assert compare(first, second, out=out).exit_code == 0
    *_, row, together = cells(out.read_text(encoding="utf-8"), 0)
    assert row[3] == "not defined (the scores before do not differ)"
    assert together[3].endswith("(1 of 2 runs)")


def test_a_run_of_an_older_release_can_be_read(tmp_path):
    folder, summary = leave(tmp_path / "run")
    for key in ("unit", "better", "undefined"):
        del summary["rewards"]["brightness"][key]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert compare(folder, out=tmp_path / "page.html").exit_code == 0


def spoil(path, text):
    path.write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "is no run folder: it has no spec.yaml"),
        (lambda run: (run / "summary.json").unlink(), "has no summary.json, which a run writes"),
        (lambda run: spoil(run / "summary.json", "{"), "cannot be read as a run folder (JSON"),
        (lambda run: spoil(run / "summary.json", "[]"), "cannot be read as a run folder (Type"),
        (lambda run: spoil(run / "spec.yaml", "- a"), "spec.yaml is no mapping"),
        (
            lambda run: spoil(run / "evaluation" / "000006.safetensors", "half"),
            "a file in evaluation/ is damaged",
        ),
        (lambda run: shutil.rmtree(run / "evaluation"), "000000.safetensors"),
        (lambda run: leave(run, rewards=("other",)), "different rewards: good has brightness"),
    ],
)
def test_what_cannot_be_compared_is_an_error_of_one_line(tmp_path, change, message):
    good, _ = leave(tmp_path / "good")
    bad, _ = leave(tmp_path / "bad")
    change(bad)
    done = compare(good, bad, out=tmp_path / "page.html")
    assert done.exit_code == 1
    assert message in done.output
    assert done.output.count("\n") == 1
    assert "bad" in done.output
    assert not (tmp_path / "page.html").exists()


def test_a_folder_named_twice_and_a_page_that_cannot_be_written_are_told(tmp_path):
    folder, _ = leave(tmp_path / "run")
    done = compare(folder, tmp_path / "x" / ".." / "run", out=tmp_path / "page.html")
    assert (done.exit_code, done.output) == (1, "compare: a run folder is named twice\n")
    out = tmp_path / "nowhere" / "page.html"
    done = compare(folder, out=out)
    assert (done.exit_code, done.output) == (
        1,
        f"cannot write {out}: No such file or directory\n",
    )


def test_dotted_keys_are_those_of_overrides():
    spec = {"a": 1, "rewards": [{"name": "r", "weight": 2}], "b": {"c": {"d": [1, 2]}}, "e": []}
    assert dotted(spec) == {
        "a": 1,
        "rewards.0.name": "r",
        "rewards.0.weight": 2,
        "b.c.d": [1, 2],
        "e": [],
    }


def test_prompts_that_carry_more_are_one_value_of_a_comparison(tmp_path):
    folders = []
    for name, answer in (("one", "cat"), ("two", "dog")):
        folder, _ = leave(tmp_path / name)
        spec = yaml.safe_load((folder / "spec.yaml").read_text())
        spec["prompts"] = [{"prompt": "a beast", "metadata": {"answers": [answer]}}, "a hat"]
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
        folders.append(folder)
    assert compare(*folders, out=tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    assert "2, e.g. a beast" in page
    assert "prompts.0" not in page
