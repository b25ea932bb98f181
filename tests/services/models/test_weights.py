import hashlib
import pickle

import numpy as np
import PIL
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import save_file

from salon.errors import InvalidRequest
from services.models.weights import check_weights, fingerprint, is_file, load_state_dict, version_of

COMMIT = "32bd64288804d66eefd0ccbe215aa642df71cc41"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache as a download leaves it: one repository, one commit."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT / "nested"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot.parent / "config.json").write_text("{}")
    torch.save({"a": torch.ones(2)}, snapshot / "head.pth")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_a_file_gives_its_tensors(tmp_path, suffix):
    state = {"a": torch.randn(3), "b": torch.ones(2, dtype=torch.float16)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    loaded = load_state_dict(str(path))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert loaded["b"].dtype == torch.float16


def test_a_training_checkpoint_gives_its_state_dict(tmp_path):
    torch.save({"epoch": 7, "state_dict": {"a": torch.ones(1)}}, tmp_path / "checkpoint.pt")
    assert load_state_dict(str(tmp_path / "checkpoint.pt")) == {"a": torch.ones(1)}


class Harmful:
    def __reduce__(self):
        return print, ("unpickled",)


def scripted(path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


@pytest.mark.parametrize("suffix", [".bin", ".pth"])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: torch.save({"a": Harmful()}, path), "an archive of torch.save: .*print"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), "archive of .*torch.nn.modules"),
        (scripted, "a TorchScript archive, a program"),
        *(
            (
                lambda path, protocol=protocol, content=content: path.write_bytes(
                    pickle.dumps(content, protocol)
                ),
                "is a bare pickle|is no file of torch.save",
            )
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
            for content in (Harmful(), {"a": np.ones(3)}, {"a": 1}, [torch.ones(1)], "text", 7)
        ),
        (lambda path: path.write_bytes(bytes(range(256))), "is no file of torch.save"),
        (lambda path: path.write_bytes(b"\x80"), "is a bare pickle"),
    ],
)
def test_nothing_but_tensors_is_unpickled(tmp_path, capsys, suffix, write, words):
    path = tmp_path / f"harmful{suffix}"
    write(path)
    with pytest.raises(
        InvalidRequest, match=f"harmful{suffix}.* cannot be read: .*{words}"
    ) as told:
        load_state_dict(str(path))
    assert "safetensors.torch.save_file" in str(told.value)
    assert "weights_only" not in str(told.value) and "\n" not in str(told.value)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.pth", None, "no file .*: give the path of a file, or owner/name:file"),
        ("weights.onnx", b"", "end in none of .safetensors, .pth, .pt, .bin"),
        ("weights.safetensors", b"\x00", "cannot be read"),
        ("weights.pth", b"", "cannot be read"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=problem) as caught:
        load_state_dict(str(tmp_path / name))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_the_hub_comes_from_its_cache(hub):
    assert load_state_dict("owner/name:nested/head.pth").keys() == {"a"}
    with pytest.raises(InvalidRequest, match=r"'owner/name:absent.pth'.*HF_HOME"):
        load_state_dict("owner/name:absent.pth")
    with pytest.raises(InvalidRequest, match="no file 'owner/name': give"):
        load_state_dict("owner/name")


def test_a_source_of_the_hub_has_its_commit_as_fingerprint(hub):
    assert fingerprint("owner/name") == fingerprint("owner/name:nested/head.pth") == COMMIT[:12]


def test_a_file_has_its_digest_as_fingerprint(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    assert fingerprint(str(tmp_path / "a.pth")) == hashlib.sha256(b"weights").hexdigest()[:12]


def test_a_folders_fingerprint_changes_with_content_and_names_alone(tmp_path):
    def folder(name, **files):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / f"{file}.json").write_text(content)
        return fingerprint(str(tmp_path / name))

    whole = folder("a", config="1", other="2")
    assert whole == folder("b", other="2", config="1")
    assert whole != folder("c", config="1", other="3")
    assert whole != folder("d", config="2", other="1")
    (tmp_path / "a" / "README.md").write_text("prose")
    assert fingerprint(str(tmp_path / "a")) == whole
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="holds no weights"):
        fingerprint(str(tmp_path / "empty"))


def test_a_version_names_every_source_once(tmp_path, hub):
    (tmp_path / "head.pth").write_bytes(b"weights")
    head = str(tmp_path / "head.pth")
    digest = hashlib.sha256(b"weights").hexdigest()[:12]
    version = version_of("2", ["owner/name", head, "owner/name"], torch.float16)
    assert version == f"2+owner-name@{COMMIT[:12]}+head.pth@{digest}+float16"
    of_code = version_of("1", [head], torch.float32, ["transformers", "pillow"])
    releases = f"transformers-{transformers.__version__}+pillow-{PIL.__version__}"
    assert of_code == f"1+head.pth@{digest}+float32+{releases}"
    of_a_file = version_of("1", ["owner/name:nested/head.pth"], torch.float32)
    assert of_a_file == f"1+owner-name-nested-head.pth@{COMMIT[:12]}+float32"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_number_that_is_none_is_found_wherever_it_is(dtype, value):
    weight = torch.linspace(-2, 2, 1003).to(dtype)
    weight[0], weight[1] = torch.finfo(dtype).max, torch.finfo(dtype).min
    check_weights({"a": weight, "none": weight[:0]}, "it")
    for place in (0, 1, 500, 1001, 1002):
        spoilt = weight.clone()
        spoilt[place] = value
        with pytest.raises(InvalidRequest, match="in 1 weight, such as b of it"):
            check_weights({"a": weight, "b": spoilt}, "it")


def test_files_are_told_from_folders_and_hub_ids(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    assert is_file(str(tmp_path / "a.pt")) and is_file("owner/name:a.pt")
    assert not is_file(str(tmp_path)) and not is_file("owner/name")
