"""Rows: what a prompt may carry, wherever prompts come from, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from salon.errors import InvalidRequest
from salon.settings import Settings
from salon.wire.structs import to_struct
from trainer.spec.file import load_spec
from trainer.spec.job_spec import read_record
from trainer.spec.prompts import sources
from trainer.spec.prompts.rows import Row

ASKED = {"questions": ["What is it?"], "answers": ["cat"]}
ROWS = ["a hat", {"prompt": "a cat", "metadata": ASKED}]
SPEC = {
    "name": "tiny",
    "model": "some/hub-id",
    "prompts": ROWS,
    "rewards": [{"name": "mine"}],
    "iterations": 1,
    "algorithm": {"name": "ddpo"},
    "evaluation": {"prompts": [{"prompt": "a robot", "metadata": ASKED}]},
}
ELSEWHERE = Settings(reward_targets={"mine": "gpu:1"})


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load(here):
    def load(*overrides, **changes):
        Path("job.yaml").write_text(yaml.safe_dump(SPEC | changes))
        return load_spec(Path("job.yaml"), overrides)

    return load


def dumped(spec):
    return spec.model_dump(mode="json")["prompts"]


def test_a_text_is_a_row_of_that_prompt_and_is_written_as_one_again(load, here):
    spec = load()
    hat, cat = spec.prompts
    assert (hat.prompt, hat.metadata, hat.reference, hat.is_bare) == ("a hat", {}, None, True)
    assert (cat.prompt, cat.metadata, cat.is_bare) == ("a cat", ASKED, False)
    assert dumped(spec) == ROWS
    assert dumped(load(prompts=[{"prompt": "a hat", "metadata": {}}])) == ["a hat"]


def test_a_job_with_rows_reads_back_from_its_record_and_from_its_file(load, here):
    spec = load()
    record = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert read_record(record) == spec
    (here / "spec.yaml").write_text(yaml.safe_dump(record))
    assert load_spec(here / "spec.yaml", []) == spec


def test_a_record_of_before_there_were_rows_is_what_it_was():
    prompts = ["a hat", '{"prompt": "braces"}', "no", "12:30"]
    record = read_record(SPEC | {"prompts": prompts, "evaluation": {"prompts": ["a robot"]}})
    assert all(row.is_bare for row in record.prompts)
    assert [row.key for row in record.prompts] == prompts
    values = record.model_dump(mode="json")
    assert (values["prompts"], values["evaluation"]["prompts"]) == (prompts, ["a robot"])


def test_rows_have_one_key_where_no_reward_can_tell_them_apart():
    def key(**carried):
        return Row(prompt="a cat", **carried).key

    assert key() == "a cat"
    assert key(metadata={"b": 1, "a": [2]}) == '{"metadata":{"a":[2],"b":1},"prompt":"a cat"}'
    assert key(metadata={"a": 1}) == key(metadata={"a": 1.0})
    keys = [key(metadata={"a": 1}), key(metadata={"a": 2}), key(reference="x.png"), key()]
    assert len(set(keys)) == 4


def test_an_override_reaches_into_a_row(load):
    spec = load("prompts.1.metadata.answers=[dog]", "prompts.1.metadata.more=1e-3")
    assert spec.prompts[1].metadata == {**ASKED, "answers": ["dog"], "more": 1e-3}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"metadata": ASKED}, r"prompts\.1\.prompt: Field required"),
        ({"prompt": 7}, r"prompts\.1\.prompt: .*\(got 7\); put quotes"),
        (
            {"prompt": "a", "metdata": {}},
            r"prompts\.1\.metdata: unknown key; did you mean prompts\.1\.metadata",
        ),
        ({"prompt": "a", "metadata": ["q"]}, r"prompts\.1\.metadata: .*\(got \['q'\]\); e\.g\. "),
        ({"prompt": "a", "metadata": {"a": float("nan")}}, r"prompts\.1\.metadata: .*not JSON"),
        (
            {"prompt": "a", "metadata": {"a": [{"b": 2**70 + 1}]}},
            r"prompts\.1\.metadata: a\[0\]\.b: the integer .*pass it as a text",
        ),
        ({"prompt": "a", "reference": 1}, r"prompts\.1\.reference: .*\(got 1\)"),
        (
            {"prompt": "a", "reference": "gone.png"},
            r"prompts\.1\.reference: cannot read reference gone\.png: No such file; looked for /",
        ),
        ({"prompt": "a", "reference": "job.yaml"}, r"prompts\.1\.reference: .*are no PNG, JPEG"),
        (["a"], r"prompts\.1: "),
    ],
)
def test_what_is_wrong_with_a_row_is_named(load, row, message):
    with pytest.raises(InvalidRequest, match=message):
        load(prompts=["a hat", row])


def test_an_evaluation_of_other_questions_about_a_training_prompt_is_not_held_out(load):
    other = {"prompt": "a cat", "metadata": {"questions": ["Why?"], "answers": ["so"]}}
    with pytest.raises(InvalidRequest, match=r"training prompts too, e\.g\. 'a cat'"):
        load(evaluation={"prompts": [other]})


def test_a_jsonl_file_has_a_row_or_a_text_a_line(load, here):
    lines = [json.dumps(ROWS[1]), "", '"a hat"', '{"prompt": "a café ☕"}']
    (here / "own.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert dumped(load(prompts="own.jsonl")) == [ROWS[1], "a hat", "a café ☕"]
    assert dumped(load("prompts=./own.jsonl")) == [ROWS[1], "a hat", "a café ☕"]


def test_a_line_of_a_text_file_is_a_prompt_whatever_it_looks_like(load, here):
    (here / "own.txt").write_text(json.dumps(ROWS[1]) + "\n")
    assert dumped(load(prompts="own.txt")) == [json.dumps(ROWS[1])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'prompt': 'a'}", r"own\.jsonl', line 2 is no row in JSON, such as {\"prompt\""),
        ("# a comment", "line 2 is no row in JSON"),
        ('{"prompt": "a", "prompt": "b"}', "line 2 is no row in JSON.*duplicate key 'prompt'"),
        ('{"prompt": "a", "metadata": {"a": NaN}}', r"prompts\.1\.metadata: .*not JSON"),
        ('{"prompt": "\\ud800"}', r"prompts\.1\.prompt: .*half of a character"),
        ("[" * 100_000, "line 2 is no row in JSON"),
        ("7", r"prompts\.1: .*\(got 7\)"),
        ('{"metadata": {}}', r"prompts\.1\.prompt: Field required"),
        (
            '{"prompt": "a", "reference": "gone.png"}',
            r"own\.jsonl, row 1: cannot read reference gone\.png: No such file; looked for /",
        ),
    ],
)
def test_what_is_wrong_in_a_jsonl_file_is_named(load, here, line, message):
    (here / "own.jsonl").write_text(f'"a hat"\n{line}\n')
    with pytest.raises(InvalidRequest, match=message):
        load(prompts="own.jsonl")


def test_a_jsonl_file_that_is_no_text_or_too_large_is_named(load, here, monkeypatch):
    (here / "own.jsonl").write_bytes('"un café"\n'.encode("latin-1"))
    with pytest.raises(InvalidRequest, match=r"line 1 is no row in JSON.*utf-8"):
        load(prompts="own.jsonl")
    monkeypatch.setattr(sources, "MAX_JSONL_BYTES", 1024**2)
    (here / "own.jsonl").write_bytes(b" " * (1024**2 + 1))
    with pytest.raises(InvalidRequest, match="has more than 1 MiB"):
        load(prompts="own.jsonl")


def test_a_function_gives_rows(load, here):
    (here / "own_rows.py").write_text(f"def rows():\n    return {ROWS!r}\n")
    assert dumped(load(prompts="own_rows:rows")) == ROWS


@pytest.mark.parametrize("given", ["list", "override", "jsonl", "function"])
def test_a_reference_is_found_where_the_job_is_submitted(load, here, given):
    target = here / "deep" / "target.png"
    target.parent.mkdir()
    Image.new("RGB", (2, 2)).save(target)
    row = {"prompt": "a cat", "reference": "deep/target.png"}
    beside = {"prompt": "a cat", "reference": "target.png"}
    (here / "deep" / "own.jsonl").write_text(json.dumps(beside))
    (here / "own_pictures.py").write_text(f"def rows():\n    return [{row!r}]\n")
    spec = {
        "list": lambda: load(prompts=[row]),
        "override": lambda: load("prompts.0.reference=deep/target.png", prompts=[{"prompt": "a"}]),
        "jsonl": lambda: load(prompts="deep/own.jsonl"),
        "function": lambda: load(prompts="own_pictures:rows"),
    }[given]()
    assert spec.prompts[0].reference == str(target)


def test_the_reference_of_an_evaluation_row_is_found_too(load, here):
    Image.new("RGB", (2, 2)).save(here / "target.png")
    spec = load(evaluation={"prompts": [{"prompt": "a robot", "reference": "target.png"}]})
    assert spec.evaluation.prompts[0].reference == str(here / "target.png")


def test_a_record_may_be_read_where_its_references_are_not():
    record = SPEC | {"prompts": [{"prompt": "a", "reference": "/nowhere/target.png"}]}
    assert read_record(record).prompts[0].reference == "/nowhere/target.png"
    with pytest.raises(InvalidRequest, match=r"prompts\.0\.reference: .*/nowhere/target\.png"):
        read_record(record).check_references()


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "metadata": {"a": 2**70 + 1}}, 7, {"prompt": None}]
)
def test_a_damaged_row_of_a_record_is_an_error(row):
    with pytest.raises(ValidationError):
        read_record(SPEC | {"prompts": [row]})


def filled(size):
    """Metadata that take this many bytes as serialized."""
    text = "x" * (size - 100)
    missing = size - to_struct({"a": text}).ByteSize()
    return {"a": text + "x" * missing}


def test_a_row_that_no_service_takes_is_named_where_it_is_submitted(load):
    fits = [{"prompt": "a" * 16384, "metadata": filled(65536)}]
    load(prompts=fits).check_inputs(Settings())
    for row, message in (
        ({"prompt": "é" * 8193}, r"prompts\.1 \('éé.*\): its prompt takes 16,386 .* accept 16,384"),
        (
            {"prompt": "b", "metadata": filled(65537)},
            r"prompts\.1 \('b'\): its metadata takes 65,537 bytes, and services accept 65,536",
        ),
    ):
        spec = load(prompts=[*fits, row])
        with pytest.raises(InvalidRequest, match=message):
            spec.check_inputs(Settings())
        spec.check_inputs(ELSEWHERE)  # which may take more, and says so itself


def test_a_reward_that_needs_metadata_trains_where_every_row_has_them(load):
    full = [ROWS[1]]
    held_out = {"prompts": [{"prompt": "a robot", "metadata": ASKED}]}
    reward = [{"name": "vqa_satisfaction"}]
    load(rewards=reward, prompts=full).check_inputs(Settings())
    spec = load(rewards=reward, prompts=[*full, "a bird"])
    with pytest.raises(
        InvalidRequest, match=r"needs metadata .*, which prompts\.1 \('a bird'\) la"
    ):
        spec.check_inputs(Settings())
    spec = load(rewards=reward, prompts=full, evaluation={"prompts": ["a robot"]})
    with pytest.raises(InvalidRequest, match=r"which evaluation\.prompts\.0 \('a robot'\) lacks"):
        spec.check_inputs(Settings())
    # What only evaluates never sees a row of training.
    spec = load(eval_rewards=["vqa_satisfaction"], prompts=["a bird"], evaluation=held_out)
    spec.check_inputs(Settings())


def test_a_reward_that_compares_does_so_where_every_row_has_a_reference(load, here):
    Image.new("RGB", (2, 2)).save(here / "t.png")
    row = {"prompt": "a cat", "reference": "t.png"}
    held_out = {"prompts": [{"prompt": "a robot", "reference": "t.png"}]}
    load(rewards=["l2"], prompts=[row], evaluation=held_out).check_inputs(Settings())
    load(eval_rewards=["l2"], evaluation=held_out).check_inputs(Settings())
    named = [{"name": "l2", "reference": "t.png"}]
    load(rewards=named, prompts=[row, "a hat"]).check_inputs(Settings())
    spec = load(rewards=["l2"], prompts=[row, "a hat"], evaluation=held_out)
    with pytest.raises(InvalidRequest, match=r"a reference, which prompts\.1 \('a hat'\) lacks"):
        spec.check_inputs(Settings())


def test_a_bare_row_is_its_text_and_a_row_with_more_is_not():
    assert Row(prompt="a cat") == "a cat" == Row(prompt="a cat")
    assert Row(prompt="a cat") != "a dog"
    more = Row(prompt="a cat", metadata={"id": 1})
    assert more not in ("a cat", more.key)
    assert more == Row(prompt="a cat", metadata={"id": 1.0})
    assert len({Row(prompt="a cat"), "a cat", more, Row(prompt="a cat", metadata={"id": 1.0})}) == 2


def test_rows_are_equal_where_rewards_cannot_tell_them_apart_and_nowhere_else():
    assert Row(prompt="a", metadata={"x": True}) != Row(prompt="a", metadata={"x": 1})
    assert Row(prompt="a", metadata={"x": 1.0, "y": 2}) == Row(
        prompt="a", metadata={"y": 2, "x": 1}
    )
