import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from salon import RewardClient
from salon.serving import Sample
from services.rewards.jpeg import JpegCompressibility, JpegIncompressibility
from tests.fixtures.service import REPOSITORY
from tests.salon.files import noise

LARGE = JpegIncompressibility.name


def test_the_score_is_the_size_of_the_file_that_pillow_writes(tmp_path, photo):
    path = tmp_path / "photo.jpg"
    Image.open(photo).save(path, quality=95)
    with Image.open(path) as written:
        assert JpegImagePlugin.get_sampling(written) == 2  # 4:2:0, Pillow's default
    sample = Sample(np.asarray(Image.open(photo)), "", {})
    assert JpegCompressibility().score([sample]) == [-path.stat().st_size / 1000]
    assert JpegIncompressibility().score([sample]) == [path.stat().st_size / 1000]


def test_gray_images_are_scored_as_gray_files(tmp_path):
    pixels = noise(32, 32, channels=1)
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "gray.jpg", quality=95)
    [score] = JpegIncompressibility().score([Sample(pixels, "", {})])
    assert score == (tmp_path / "gray.jpg").stat().st_size / 1000


def test_flat_images_beat_noise(jpeg_service):
    flat, noisy = np.zeros((64, 64, 3), np.uint8), noise(64, 64)
    with RewardClient(jpeg_service.target) as client:
        small = [outcome.score for outcome in client.score([flat, noisy])]
        large = [outcome.score for outcome in client.score([flat, noisy], reward=LARGE)]
    assert small[0] > small[1]
    assert large == [-score for score in small]


def test_the_version_names_the_encoder():
    from PIL import features

    version = JpegCompressibility.version
    assert f"pillow-{Image.__version__}" in version
    assert features.version("libjpeg_turbo") in version


@pytest.mark.parametrize("module", ["services.rewards.jpeg", "services.server.grpc_server"])
def test_the_service_needs_no_torch(module):
    program = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_threads_that_have_ended_leave_no_files_open():
    program = """
import os, threading
import numpy as np
from services.rewards.jpeg import jpeg_kilobytes

image = np.zeros((8, 8, 3), np.uint8)
jpeg_kilobytes(image)
before = os.listdir("/proc/self/fd")
for _ in range(3):
    thread = threading.Thread(target=jpeg_kilobytes, args=(image,))
    thread.start()
    thread.join()
assert len(os.listdir("/proc/self/fd")) == len(before)
"""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stderr == ""
