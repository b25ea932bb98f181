"""The JPEG reward behind mosec: a msgpack body with the raw pixels."""

import sys
from typing import Any

import numpy as np
from mosec import Server, Worker
from mosec.mixin import MsgpackMixin

from salon.serving import Sample
from services.rewards.jpeg import JpegCompressibility


class JpegWorker(MsgpackMixin, Worker):  # type: ignore[misc]
    """Scores the images of one request."""

    def __init__(self) -> None:
        super().__init__()
        self._reward = JpegCompressibility()

    def forward(self, data: dict[str, Any]) -> list[float]:
        """`data`: uint8 pixels [N, H, W, C] as bytes, and their shape."""
        images = np.frombuffer(data["pixels"], np.uint8).reshape(data["shape"])
        return self._reward.score([Sample(image, "", {}) for image in images])


if __name__ == "__main__":
    workers = int(sys.argv.pop(1))  # mosec reads the rest
    server = Server()
    server.append_worker(JpegWorker, num=workers)
    server.run()
