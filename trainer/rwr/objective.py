"""The denoising loss: samples are noised, and the noise is to be found again."""

from torch import Tensor


def add_noise(samples: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε, equation 4 of Ho et al. 2020 (arXiv 2006.11239).

    Args:
        samples: [N, C, h, w] x_0.
        noise: [N, C, h, w] ε, standard normal.
        alphas_cumprod: [N] ᾱ_t at each row's timestep.

    Returns:
        [N, C, h, w].
    """
    signal = _per_row(alphas_cumprod)
    return signal.sqrt() * samples + (1 - signal).sqrt() * noise


def regression_target(
    samples: Tensor, noise: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """What the model should answer to the noised sample, in the terms it was trained to answer in.

    For `epsilon` the noise itself (Ho et al. 2020, arXiv 2006.11239, equation 14), for
    `v_prediction` √ᾱ_t ε - √(1 - ᾱ_t) x_0 (Salimans & Ho 2022, arXiv 2202.00512, section 4), for
    `sample` x_0.

    Args:
        samples: [N, C, h, w] x_0.
        noise: [N, C, h, w] ε.
        alphas_cumprod: [N] ᾱ_t at each row's timestep.
        prediction_type: of the model's scheduler, one of the three above.

    Returns:
        [N, C, h, w].
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return samples
    signal = _per_row(alphas_cumprod)
    return signal.sqrt() * noise - (1 - signal).sqrt() * samples


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """[N] mean over a row's dimensions of (prediction - target)²; arguments [N, C, h, w].

    Equation 1 of Black et al. 2023 without its weight of each timestep (equation 14 of Ho et al.
    2020), and the mean where a norm would have a sum, as in the authors' code.
    """
    return ((prediction - target) ** 2).flatten(1).mean(1)


def _per_row(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
