from pathlib import Path

import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from salon.errors import InvalidRequest
from salon.settings import Settings
from salon.stack.local_services import local_services
from tests.fixtures.rows import texts
from trainer.ddpo.config import DDPOConfig
from trainer.rwr.config import RWRConfig
from trainer.spec.file import load_spec
from trainer.spec.job_spec import read_record

JOBS = Path(__file__).parents[3] / "jobs"

MINIMAL = {
    "name": "tiny",
    "model": "some/hub-id",
    "prompts": ["a cat", "a dog"],
    "rewards": [{"name": "jpeg_compressibility"}],
    "iterations": 3,
    "algorithm": {"name": "ddpo"},
    "evaluation": {"prompts": ["a bird"]},
}


@pytest.fixture
def write(tmp_path):
    def write_spec(**changes):
        path = tmp_path / "job.yaml"
        spec = {key: value for key, value in (MINIMAL | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(spec))
        return path

    return write_spec


def test_the_defaults_are_the_papers(write):
    algorithm = load_spec(write(), []).algorithm
    assert (algorithm.sampling_steps, algorithm.guidance_scale, algorithm.eta) == (50, 5.0, 1.0)
    assert (algorithm.samples_per_iteration, algorithm.updates_per_iteration) == (256, 4)
    assert (algorithm.learning_rate, algorithm.weight_decay) == (1e-5, 1e-4)
    assert (algorithm.clip_range, algorithm.inner_epochs, algorithm.max_grad_norm) == (1e-4, 1, 1.0)


def test_the_name_decides_which_algorithm(write):
    assert isinstance(load_spec(write(), []).algorithm, DDPOConfig)
    algorithm = load_spec(write(algorithm={"name": "rwr", "weighting": "sparse"}), []).algorithm
    assert isinstance(algorithm, RWRConfig)
    assert (algorithm.percentile, algorithm.epochs) == (0.9, 50)


def test_overrides_are_typed_and_reach_into_sections(write):
    overrides = ["seed=7", "algorithm.learning_rate=3e-4", "algorithm.lora.rank=8"]
    spec = load_spec(write(), [*overrides, "rewards.0.weight=2", "prompts=[a=b]"])
    assert (spec.seed, spec.algorithm.learning_rate, spec.algorithm.lora.rank) == (7, 3e-4, 8)
    assert (spec.rewards[0].weight, texts(spec.prompts)) == (2, ["a=b"])


def test_rewards_are_raw_unless_the_spec_says_otherwise(write):
    (reward,) = load_spec(write(), []).rewards
    assert (reward.weight, reward.normalize) == (1.0, "none")
    assert load_spec(write(), []).eval_rewards == []


def test_a_spec_resolved_once_is_the_same_read_again(write, tmp_path):
    spec = load_spec(write(), ["seed=3"])
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    assert load_spec(path, []) == spec


def test_a_prompt_file_becomes_its_lines(write, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# animals\na cat\n\n  a dog \n", encoding="utf-8")
    spec = load_spec(write(prompts=str(prompts)), [])
    assert texts(spec.prompts) == ["a cat", "a dog"]


def test_a_local_model_becomes_absolute(write, tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_spec(write(model="models/mine"), []).model == str(tmp_path / "models" / "mine")


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        (
            {},
            ["algorithm.learning_rat=1"],
            "learning_rat: unknown key; did you mean algorithm.learning_rate",
        ),
        ({}, ["sead=1"], "sead: unknown key; did you mean seed"),
        (
            {},
            ["algorithm.lora.rnk=1"],
            "algorithm.lora.rnk: unknown key; did you mean algorithm.lora.rank",
        ),
        ({"rewards": [{"name": "a", "wieght": 2}]}, [], "rewards.0.wieght: unknown key.*weight"),
        ({}, ["iterations=many"], "iterations: .*valid integer.*'many'"),
        ({}, ["iterations=0"], r"iterations: .*greater than or equal to 1 \(got 0\)"),
        ({}, ["algorithm.eta=.nan"], "algorithm.eta: "),
        ({}, ["algorithm.name=sac"], "algorithm.name: no algorithm 'sac'; known: ddpo, rwr"),
        ({}, ["algorithm.name=ddop"], "algorithm.name: no algorithm 'ddop'; did you mean ddpo"),
        ({"algorithm": {}}, [], "algorithm.name: Field required; known: ddpo, rwr"),
        ({"algorithm": "rwr"}, [], r"algorithm: .*valid dictionary.*\(got 'rwr'\)"),
        (
            {"algorithm": {"name": "rwr"}},
            ["algorithm.percentil=1"],
            "algorithm.percentil: unknown key; did you mean algorithm.percentile",
        ),
        (
            {"algorithm": {"name": "rwr"}},
            ["algorithm.clip_range=1"],
            "algorithm.clip_range: unknown key; it is one of ddpo, and this is a job of rwr$",
        ),
        (
            {"algorithm": {"name": "rwr"}},
            ["algorithm.percentile=0.5"],
            r"job.yaml: algorithm: percentile \(0.5\) belongs to weighting: sparse",
        ),
        ({}, ["on_reward_error=zero"], "on_reward_error: .*'fail' or 'drop'"),
        ({}, ["rewards.1.weight=2"], r"'rewards.1.weight=2' cannot be applied: .*out of range"),
        ({}, ["rewards.first.weight=2"], "cannot be applied: Index 'first' .* is not an int"),
        ({}, ["rewards.0.wait=2"], "rewards.0.wait: unknown key; did you mean rewards.0.weight"),
        ({}, ["rewards.0.name.weight=2"], "rewards.0.name is 'jpeg_compressibility', which has no"),
        ({}, ["algorithm.=2"], "'algorithm.=2' is not of the form dotted.key=value"),
        ({}, ["prompts=[a cat"], "its value is no YAML: .*put quotes around a text"),
        ({"prompts": ["a cat", 7]}, [], r"prompts.1: .*valid string \(got 7\); put quotes around"),
        (
            {"prompts": {"a": 1}},
            [],
            r"prompts: .*list \(got {'a': 1}\); e.g. prompts: \[a red ball",
        ),
        ({"prompts": 7}, [], r"prompts: .*list \(got 7\); e.g. prompts: \["),
        ({"prompts": ["a", ["b"]]}, [], r"prompts.1: .*\(got \['b'\]\); e.g. prompts: \["),
        ({"prompts": ["a", None]}, [], r"prompts.1: .*\(got None\); e.g. prompts: \["),
        ({"evaluation": {"prompts": {"a": 1}}}, [], r"evaluation.prompts: .*e.g. evaluation: {pro"),
        ({"evaluation": ["a bird"]}, [], r"evaluation: .*\(got \['a bird'\]\); e.g. evaluation: {"),
        ({"rewards": "jpeg"}, [], r"rewards: .*list \(got 'jpeg'\); e.g. rewards: \[{name: jpeg_"),
        ({"rewards": {"l2": 1}}, [], r"rewards: .*list \(got {'l2': 1}\); e.g. rewards: \["),
        ({"rewards": [3]}, [], r"rewards.0: .*\(got 3\); e.g. rewards: \[{name: jpeg_"),
        ({"rewards": [{"name": 3}]}, [], r"rewards.0.name: .*\(got 3\); put quotes .*e.g. rewards"),
        ({"rewards": [{"weight": 3}]}, [], r"rewards.0.name: Field required; e.g. rewards: \["),
        (
            {"rewards": [{"name": "a", "weight": "much"}]},
            [],
            r"rewards.0.weight: .*number.* \(got 'much'\); e.g. rewards: \[{.*weight: 0.5}",
        ),
        (
            {"rewards": [{"name": "a", "weight": [1]}]},
            [],
            r"rewards.0.weight: .*\(got \[1\]\); e.g",
        ),
        (
            {"rewards": [{"name": "a", "weight": None}]},
            [],
            r"rewards.0.weight: .*\(got None\); e.g",
        ),
        (
            {"rewards": [{"name": "a", "weight": True}]},
            [],
            r"weight: a number is wanted \(got True",
        ),
        ({"iterations": True}, [], r"iterations: a number is wanted \(got True"),
        ({}, ["algorithm.staleness=true"], r"staleness: a number is wanted \(got True"),
        ({}, ["algorithm.learning_rate=true"], r"learning_rate: a number is wanted \(got True"),
        (
            {"stop_when": [{"metric": "eval/kl", "above": True}]},
            [],
            r"stop_when.0.above: a number is wanted \(got True",
        ),
        (
            {},
            [f"algorithm.inner_epochs={10**39}"],
            r"inner_epochs: at most 10000000 is meant \(got 1",
        ),
        ({}, [f"keep_checkpoints={10**39}"], "keep_checkpoints: at most 10000000 is meant"),
        ({}, ["evaluation.every=10000001"], "evaluation.every: at most 10000000 is meant"),
        ({}, ["samples_per_iteration=32"], r"did you mean algorithm\.samples_per_iteration\?"),
        ({}, ["learning_rat=1"], r"did you mean algorithm\.learning_rate\?"),
        ({}, ["algorithm.learning_rat=1"], r"did you mean algorithm\.learning_rate\?"),
        ({}, ["algorithm.rank=1"], r"did you mean algorithm\.lora\.rank\?"),
        ({}, ["evaluation.seed=1"], r"did you mean seed\?"),
        ({}, ["rewards.0.wieght=1"], r"did you mean rewards\.0\.weight\?"),
        ({}, ["colour=1"], "unknown key; known: algorithm, allow_stand_ins, "),
        ({"rewards": [""]}, [], r"rewards.0.name: '' is no name of a reward: it is up to 128"),
        ({"rewards": [" "]}, [], r"rewards.0.name: ' ' is no name"),
        ({"rewards": ["a\0b"]}, [], r"rewards.0.name: 'a\\x00b' is no name"),
        ({"eval_rewards": ["../../.."]}, [], r"eval_rewards.0: '../../..' is no name"),
        ({"eval_rewards": ["l2\n"]}, [], r"eval_rewards.0: 'l2\\n' is no name"),
        ({"eval_rewards": "l2"}, [], r"eval_rewards: .*\(got 'l2'\); e.g. eval_rewards: \[clip_"),
        ({"algorithm": "rwr"}, [], r"algorithm: .*\(got 'rwr'\); e.g. algorithm: {name: ddpo}"),
        ({"model": "tiny-sd"}, [], "no folder 'tiny-sd' .*a hub id is owner/name"),
        ({}, ["reward_deadline_seconds=.inf"], "reward_deadline_seconds: .*finite"),
        ({}, ["seed"], "'seed' is not of the form dotted.key=value"),
        ({"iterations": None}, [], "iterations: Field required"),
        ({"prompts": []}, [], "prompts: "),
        ({"prompts": "nowhere.txt"}, [], "no prompt file 'nowhere.txt'"),
        ({"rewards": []}, [], "rewards: "),
        ({"rewards": [{"name": "a"}, {"name": "a"}]}, [], "each may be listed once"),
        ({"eval_rewards": ["jpeg_compressibility"]}, [], "each may be listed once.*evaluated, too"),
        ({"eval_rewards": ["a", "a"]}, [], "each may be listed once"),
        ({"eval_rewards": [{"name": "a", "weight": 2}]}, [], r"eval_rewards\.0: .*valid string"),
        (
            {"rewards": [{"name": "a", "normalize": "batch"}]},
            [],
            "normalize: .*'zscore' or 'group'",
        ),
        (
            {"rewards": [{"name": "a", "normalize": "group"}, {"name": "b"}]},
            [],
            "group is for all rewards or none, got .*'b': 'none'",
        ),
        (
            {"rewards": [{"name": "a", "normalize": "group"}], "prompts": ["p"] * 129},
            [],
            "samples_per_iteration is 256 for 129 prompts",
        ),
        (
            {"rewards": [{"name": "a", "normalize": "group"}]},
            ["algorithm.advantages=group"],
            "within their prompt already",
        ),
        (
            {"prompts": ["p"] * 129},
            ["algorithm.advantages=group"],
            "advantages: group compares the samples of one prompt, .* 256 for 129 prompts",
        ),
        (
            {"evaluation": {"prompts": ["a dog", "an owl"]}},
            [],
            "training prompts too, e.g. 'a dog'",
        ),
        ({}, ["algorithm.samples_per_iteration=10"], "must be a multiple of"),
        (
            {"num_processes": 33, "algorithm": {"name": "ddpo"}},
            [],
            "num_processes is 33, but an iteration has only 32 batches of 8 samples",
        ),
    ],
)
def test_what_is_wrong_is_named(write, changes, overrides, message):
    with pytest.raises(InvalidRequest, match=message):
        load_spec(write(**changes), overrides)


@pytest.mark.parametrize(
    "key",
    [
        "model",
        "name",
        "prompts",
        "algorithm",
        "algorithm.name",
        "evaluation.keep_best",
        "evaluation.diversity_model",
        "eval_rewards.0",
        "push_to_hub",
        "rewards.0.name",
        "rewards.0.reference",
    ],
)
@pytest.mark.parametrize(
    "text", ["/" + "q" * 100_000, "a 'b\n" * 25_000, "o" * 90 + "/" + "é" * 9000]
)
def test_of_a_very_long_text_the_beginning_is_told(write, key, text):
    path = write(eval_rewards=["l2"])
    values = yaml.safe_load(path.read_text())
    *sections, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    section = values
    for part in sections:
        section = section[part]
    section[last] = text
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    with pytest.raises(InvalidRequest) as raised:
        load_spec(path, [])
    assert repr(text)[1:90] in str(raised.value)
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize(
    "override", ["q" * 100_000, "q" * 100_000 + "=1", "seed.a=" + "q" * 100_000]
)
def test_of_a_very_long_override_too(write, override):
    with pytest.raises(InvalidRequest) as raised:
        load_spec(write(), [override])
    assert len(str(raised.value)) < 1500


def test_all_that_is_wrong_is_named_at_once(write):
    with pytest.raises(InvalidRequest) as raised:
        load_spec(write(), ["sead=1", "iterations=0", "algorithm.eta=2"])
    assert all(word in str(raised.value) for word in ("sead", "iterations", "algorithm.eta"))
    assert len(str(raised.value).splitlines()) == 4  # the file, and nothing but the three


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [1\n", "just words", "x: ${nowhere}\n"])
def test_a_file_that_is_no_spec_is_refused_in_words(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=str(path)):
        load_spec(path, [])


def test_a_missing_file_is_named():
    with pytest.raises(InvalidRequest, match=r"nowhere\.yaml"):
        load_spec(Path("nowhere.yaml"), [])


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_jobs_that_are_ready_to_submit_are_valid_and_are_served_here(path, monkeypatch):
    monkeypatch.chdir(JOBS.parent)
    spec = load_spec(path, [])
    assert Path(spec.model).is_dir() == path.stem.endswith("-tiny")
    names = [reward.name for reward in spec.rewards] + spec.eval_rewards
    assert local_services(Settings(), names)
    spec.check_inputs(Settings())


def test_a_reference_becomes_absolute(write, tmp_path, monkeypatch):
    Image.new("RGB", (2, 2)).save(tmp_path / "target.png")
    monkeypatch.chdir(tmp_path)
    spec = load_spec(write(rewards=[{"name": "l2", "reference": "target.png"}]), [])
    assert spec.rewards[0].reference == str(tmp_path / "target.png")
    spec.check_inputs(Settings())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working folder that is not the spec's."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("place", ["beside", "working"])
def test_what_a_spec_names_is_looked_for_beside_it_and_in_the_working_folder(
    write, tmp_path, elsewhere, place
):
    folder = tmp_path if place == "beside" else elsewhere
    for name in ("mine/model", "mine/clip"):
        (folder / name).mkdir(parents=True)
    (folder / "train.txt").write_text("a fox\n")
    (folder / "held-out.txt").write_text("an owl\n")
    Image.new("RGB", (2, 2)).save(folder / "target.png")
    spec = load_spec(
        write(
            model="mine/model",
            prompts="train.txt",
            rewards=[{"name": "l2", "reference": "target.png"}],
            evaluation={"prompts": "held-out.txt", "diversity_model": "mine/clip"},
        ),
        [],
    )
    assert spec.model == str(folder / "mine" / "model")
    assert spec.evaluation.diversity_model == str(folder / "mine" / "clip")
    assert texts(spec.prompts + spec.evaluation.prompts) == ["a fox", "an owl"]
    assert spec.rewards[0].reference == str(folder / "target.png")


def test_of_two_places_a_spec_means_its_own_and_an_override_the_working_folder(
    write, tmp_path, elsewhere
):
    (tmp_path / "own.txt").write_text("of the spec\n")
    (elsewhere / "own.txt").write_text("of the shell\n")
    spec = load_spec(write(prompts="own.txt"), [])
    assert texts(spec.prompts) == ["of the spec"]
    spec = load_spec(write(), ["prompts=own.txt"])
    assert texts(spec.prompts) == ["of the shell"]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "models/mine"},
        {"prompts": "own.txt"},
        {"evaluation": {"prompts": ["a bird"], "diversity_model": "./clip"}},
        {"rewards": [{"name": "l2", "reference": "own.png"}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_nowhere_is_named_with_both_places(write, tmp_path, elsewhere, changes):
    (elsewhere / "models" / "mine2").mkdir(parents=True)
    with pytest.raises(InvalidRequest) as raised:
        load_spec(write(**changes), [])
    path = {"model": "models/mine", "prompts": "own.txt", "evaluation": "clip"}
    name = path.get(next(iter(changes)), "own.png")
    assert str(tmp_path / name) in str(raised.value)
    assert str(elsewhere / name) in str(raised.value)


def test_a_folder_called_as_an_owner_on_the_hub_says_nothing_of_a_model(write, tmp_path):
    (tmp_path / "CompVis" / "sd14-mine").mkdir(parents=True)
    model = "CompVis/stable-diffusion-v1-4"
    assert load_spec(write(model=model), []).model == model
    (tmp_path / "CompVis" / "stable-difusion-v1-4").mkdir()
    with pytest.raises(
        InvalidRequest, match=r"though there is .*/CompVis/stable-difusion-v1-4; if"
    ):
        load_spec(write(model=model), [])


def test_an_owner_that_is_a_folder_of_models_here_is_no_owner_on_the_hub(
    write, tmp_path, monkeypatch
):
    models = tmp_path / "here" / "models"
    for name, file in (("clip-digits", "config.json"), ("sd-digits", "model_index.json")):
        (models / name).mkdir(parents=True)
        (models / name / file).write_text("{}")
    (models / "notes").mkdir()
    told = (
        rf"model: no folder 'models/q' .*though there is {models}/\S+-digits and {models}/\S+; if"
    )
    monkeypatch.chdir(tmp_path)
    assert load_spec(write(model="models/q"), []).model == "models/q"
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InvalidRequest, match=told) as raised:
        load_spec(write(model="models/q"), [])
    assert "notes" not in str(raised.value)
    with pytest.raises(InvalidRequest, match=r"evaluation.diversity_model: no folder 'models/q'"):
        load_spec(write(), ["evaluation.diversity_model=models/q"])


def test_what_is_not_in_the_home_folder_is_looked_for_there_alone(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(InvalidRequest, match=rf"looked for {tmp_path}/home/own\.txt\)"):
        load_spec(write(prompts="~/own.txt"), [])
    with pytest.raises(InvalidRequest, match=r"looked for ~nobody-of-this-name/own\.txt\)"):
        load_spec(write(prompts="~nobody-of-this-name/own.txt"), [])


def test_a_reward_may_be_its_name_alone(write):
    path = write(rewards=["jpeg_compressibility", {"name": "aesthetic", "weight": 0.5}])
    spec = load_spec(path, ["rewards.0.weight=2"])
    assert [(reward.name, reward.weight) for reward in spec.rewards] == [
        ("jpeg_compressibility", 2),
        ("aesthetic", 0.5),
    ]
    (reward,) = load_spec(write(), ["rewards=[aesthetic]"]).rewards
    assert (reward.name, reward.weight) == ("aesthetic", 1)


@pytest.mark.parametrize(
    "prompt",
    [
        "a shirt that says ${name}",
        "a shirt ${oc.env:SECRET}",
        "${oc.decode:${oc.env:SECRET}}",
        "a ${oc.env:NOT_SET,default} b",
        "$SECRET and %SECRET% and {{ SECRET }}",
    ],
)
def test_a_prompt_is_the_text_it_is(write, monkeypatch, prompt):
    monkeypatch.setenv("SECRET", "hf_secret")
    assert texts(load_spec(write(prompts=[prompt]), []).prompts) == [prompt]
    quoted = yaml.safe_dump(prompt, default_style='"', width=1000).strip()
    assert texts(load_spec(write(), [f"prompts=[{quoted}]"]).prompts) == [prompt]
    held_out = load_spec(write(), [f"evaluation.prompts.0={prompt}"]).evaluation.prompts
    assert texts(held_out) == [prompt]


def test_no_key_reads_the_environment(write, monkeypatch):
    monkeypatch.setenv("SECRET", "hf_secret")
    with pytest.raises(InvalidRequest) as raised:
        load_spec(write(), ["name=${oc.env:SECRET}", "model=${oc.env:SECRET}"])
    assert "hf_secret" not in str(raised.value)
    assert "${oc.env:SECRET}" in str(raised.value)


@pytest.mark.parametrize("text", ["no", "12:30", "2024-01-01", "007", "1_000", "on", "=", "<<x"])
def test_a_prompt_without_quotes_stays_a_text(write, text):
    path = write()
    path.write_text(path.read_text().replace("- a cat", f"- {text}"))
    assert texts(load_spec(path, []).prompts) == [text, "a dog"]


def test_overrides_make_sections_and_take_null_and_lists(write):
    spec = load_spec(
        write(algorithm={"name": "ddpo", "lora": {"rank": 2}, "eta": 0.5}),
        [
            "algorithm={eta: 1, lora: {alpha: 8}}",
            "eval_rewards=[clip_score]",
            "evaluation.every=2",
            "rewards[0].weight=1e-4",
            "prompts.1=a #1 dad",
        ],
    )
    assert (spec.algorithm.eta, spec.algorithm.lora.rank, spec.algorithm.lora.alpha) == (1, 2, 8)
    assert (spec.eval_rewards, spec.evaluation.every) == (["clip_score"], 2)
    assert (spec.rewards[0].weight, texts(spec.prompts)) == (1e-4, ["a cat", "a #1 dad"])
    assert load_spec(write(), ["algorithm.lora.rank=2", "algorithm.lora=null"]).algorithm == (
        load_spec(write(), []).algorithm
    )


BOMB = "\n".join(
    ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "duplicate key 'seed', in line 2"),
        ("1: a\n", "a key must be a text, in line 1"),
        ("? [a]\n: b\n", "a key must be a text, in line 1"),
        (BOMB, "more than 1000000 values"),
        ("a: &a [*a]\n", "an alias stands for what it is a part of, in line 1"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("prompts:\n- a cat\u2028on a mat\n", r"line 2 has the character U\+2028.*double quotes"),
    ],
)
def test_a_spec_is_data_of_bounded_size(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=message):
        load_spec(path, [])


def test_a_spec_of_a_size_that_none_has_is_not_read(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"#" * (16 * 1024**2 + 1))
    with pytest.raises(InvalidRequest, match="more than 16 MiB: put its prompts into a text file"):
        load_spec(path, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read reference target.png: No such file; looked for /"),
        (b"GIF89a", "rewards.0.reference: reference .*target.png.*are no PNG, JPEG or WebP file"),
        (b"\x89PNG\r\n\x1a\n", "reference .*target.png: "),
    ],
)
def test_a_reference_that_is_no_image_is_named(write, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("target.png").write_bytes(content)
    with pytest.raises(InvalidRequest, match=message):
        load_spec(write(rewards=[{"name": "l2", "reference": "target.png"}]), [])


@pytest.mark.parametrize(
    ("rewards", "eval_rewards", "message"),
    [
        (["style"], [], "style needs an image to compare with.*`reference: path/to/image.png`"),
        (["aesthetic"], ["l2"], "l2 needs an image to compare with.*`weight: 0`"),
        (
            ["vqa_satisfaction"],
            [],
            "vqa_satisfaction needs metadata with every sample.*take it out",
        ),
        (["aesthetic"], ["discriminator"], "discriminator needs an instance.*discriminator.md"),
    ],
)
def test_a_reward_that_needs_what_a_job_does_not_send_is_refused(
    write, rewards, eval_rewards, message
):
    spec = load_spec(write(rewards=[{"name": name} for name in rewards]), [])
    spec = spec.model_copy(update={"eval_rewards": eval_rewards})
    with pytest.raises(InvalidRequest, match=message):
        spec.check_inputs(Settings())


def test_of_very_many_things_wrong_the_first_are_told(write):
    with pytest.raises(InvalidRequest) as raised:
        load_spec(write(prompts=list(range(1000))), [])
    lines = str(raised.value).splitlines()
    assert len(lines) == 22
    assert lines[20].startswith("prompts.19: ") and lines[21] == "and 980 more"


def test_what_an_own_reward_needs_is_not_guessed_from_its_name(write):
    spec = load_spec(write(rewards=[{"name": "preference"}, {"name": "mine"}]), [])
    spec.check_inputs(Settings(reward_targets={"preference": "gpu:1"}))


def test_a_reference_that_nothing_looks_at_is_refused(write, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "target.png")
    rewards = [{"name": "aesthetic", "reference": str(tmp_path / "target.png")}]
    with pytest.raises(InvalidRequest, match="aesthetic compares with no image"):
        load_spec(write(rewards=rewards), []).check_inputs(Settings())


@pytest.mark.parametrize("source", ["canary:run", "animals", "prompts.txt", "${oc.env:SECRET}"])
@pytest.mark.parametrize("place", ["prompts", "evaluation"])
def test_a_record_is_data_and_makes_nobody_import_or_read(tmp_path, monkeypatch, source, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "canary.py").write_text("open('ran', 'w').close()\ndef run(): return ['x']\n")
    (tmp_path / "prompts.txt").write_text("a secret line\n")
    changed = {"prompts": source} if place == "prompts" else {"evaluation": {"prompts": source}}
    with pytest.raises(ValidationError, match=f"{place}.*\\n.*valid list"):
        read_record(MINIMAL | changed)
    assert not (tmp_path / "ran").exists()
    stored = read_record(MINIMAL | {"prompts": [source]})
    assert texts(stored.prompts) == [source]
