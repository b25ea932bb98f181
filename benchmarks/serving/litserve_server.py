"""The JPEG reward behind LitServe: a multipart form, or JSON."""

import base64
import json
import sys
from collections.abc import Sequence

import litserve
import numpy as np
from numpy.typing import NDArray
from starlette.datastructures import FormData, UploadFile

from salon.serving import Sample
from services.rewards.jpeg import JpegCompressibility


class JpegApi(litserve.LitAPI):  # type: ignore[misc]
    """Scores the images of one request."""

    def setup(self, device: str) -> None:
        """Load the reward, in the worker process."""
        del device
        self._reward = JpegCompressibility()

    # LitServe reads a form only where `request` has no type.
    def decode_request(self, request) -> Sequence[NDArray[np.uint8]]:  # type: ignore[no-untyped-def]
        """Images uint8 [H, W, C].

        Args:
            request: a form with their shape [H, W, C] in JSON and a file of pixels for each; or
                the pixels of all in base64, and their shape [N, H, W, C].
        """
        if isinstance(request, FormData):
            shape = json.loads(str(request["shape"]))
            files = [file for file in request.getlist("image") if isinstance(file, UploadFile)]
            return [np.frombuffer(file.file.read(), np.uint8).reshape(shape) for file in files]
        pixels = base64.b64decode(request["pixels"])
        return list(np.frombuffer(pixels, np.uint8).reshape(request["shape"]))

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[float]:
        """One score for each image."""
        return self._reward.score([Sample(image, "", {}) for image in images])

    def encode_response(self, scores: list[float]) -> dict[str, list[float]]:
        """Scores as JSON."""
        return {"scores": scores}


if __name__ == "__main__":
    workers = int(sys.argv[1])
    server = litserve.LitServer(JpegApi(), accelerator="cpu", workers_per_device=workers)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )
