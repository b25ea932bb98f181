"""How long the tiny generator is trained, and what that took."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Steps of each training and the images in each of its batches."""

    autoencoder_steps: int = 1200
    autoencoder_batch: int = 32
    examples: int = 40960
    text_encoder_steps: int = 300
    denoiser_steps: int = 4500
    denoiser_batch: int = 64
    classifier_steps: int = 600
    classifier_batch: int = 128


@dataclass(frozen=True)
class Training:
    """What one run of the recipe took, and where."""

    autoencoder_seconds: float
    denoiser_seconds: float
    threads: int
    machine: str
    torch: str
