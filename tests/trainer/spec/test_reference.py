"""A reference is a path out of a record: whatever it names, an image is read or a word is said."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from salon.errors import InvalidRequest
from trainer.spec import reference
from trainer.spec.reference import read_reference


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 3, 3), 7, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    assert read_reference(str(tmp_path / "a.png")).tolist() == [[[7, 7, 7]] * 3] * 2


def test_of_what_is_no_image_no_byte_is_told(tmp_path):
    secret = "hunter2-and-more"
    path = tmp_path / "passwords"
    path.write_text(secret)
    (tmp_path / "link.png").symlink_to(path)
    for named in (path, tmp_path / "link.png"):
        with pytest.raises(
            InvalidRequest, match="its 16 bytes are no PNG, JPEG or WebP"
        ) as refused:
            read_reference(str(named))
        assert not any(secret[i : i + 3] in str(refused.value) for i in range(len(secret) - 2))


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/stdin", "/proc/self/mem", "/"])
def test_what_is_no_file_is_not_read(path):
    with pytest.raises(InvalidRequest, match=f"reference {path}"):
        read_reference(path)


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match="no regular file"):
        read_reference(str(tmp_path / "pipe"))


def test_a_file_without_end_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "MAX_BYTES", 100)
    (tmp_path / "large.png").write_bytes(png() + b"x" * 100)
    with pytest.raises(InvalidRequest, match="more than 100 bytes"):
        read_reference(str(tmp_path / "large.png"))


def test_a_path_that_is_none_is_named():
    with pytest.raises(InvalidRequest, match="cannot read reference"):
        read_reference("a\0b")
    with pytest.raises(InvalidRequest, match=r"reference /nowhere\.png: No such file"):
        read_reference("/nowhere.png")
