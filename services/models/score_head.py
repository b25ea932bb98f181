"""The head that turns an embedding into a score: five linear layers, nothing between them.

LAION's improved aesthetic predictor has it (MLP in github.com/christophschuhmann/
improved-aesthetic-predictor, simple_inference.py) and ImageReward took it over (MLP in
github.com/THUDM/ImageReward, ImageReward/ImageReward.py). Both keep dropouts at 1, 3 and 5 of the
sequence, which do nothing in evaluation and have no weights.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from salon.errors import InvalidRequest
from services.models.weights import check_weights

WIDTHS = (1024, 128, 64, 16, 1)
"""Of the published heads, after the embedding: 768 numbers for both."""

_LINEAR = (0, 2, 4, 6, 7)
_LAYOUT = f"layers.N.weight and layers.N.bias for N = {', '.join(map(str, _LINEAR))}"


class ScoreHead(nn.Module):
    """768-1024-128-64-16-1 where it is published; no activations; layers named as published."""

    def __init__(self, width: int, widths: Sequence[int] = WIDTHS) -> None:
        """Build it untrained.

        Args:
            width: D, the length of the embedding.
            widths: what each of the five layers gives; the last gives the score.
        """
        super().__init__()
        self.width = width
        sizes = (width, *widths)
        first, second, third, fourth, last = (
            nn.Linear(wide, narrow) for wide, narrow in pairwise(sizes)
        )
        dropout = nn.Identity
        self.layers = nn.Sequential(
            first, dropout(), second, dropout(), third, dropout(), fourth, last
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """float32 [N], from float32 [N, D]."""
        scores: Tensor = self.layers(embeddings.float())
        return scores.squeeze(-1)


def read_score_head(state: Mapping[str, Tensor], source: str) -> ScoreHead:
    """A head in float32 from a state dict in the published layout, its widths read off the weights.

    Args:
        state: layers.N.weight and layers.N.bias for N = 0, 2, 4, 6, 7.
        source: where it is from, for errors.

    Raises:
        InvalidRequest: names or shapes are others.
    """
    expected = {f"layers.{n}.{part}" for n in _LINEAR for part in ("weight", "bias")}
    if state.keys() != expected:
        odd = sorted(state.keys() ^ expected)[0]
        raise InvalidRequest(
            f"head {source!r} is not in the published layout, {_LAYOUT}: "
            f"it {'has also' if odd in state else 'lacks'} {odd}"
        )
    weights = [state[f"layers.{n}.weight"] for n in _LINEAR]
    if any(weight.ndim != 2 for weight in weights):
        raise InvalidRequest(f"head {source!r} has a weight that is no matrix")
    head = ScoreHead(weights[0].shape[1], [weight.shape[0] for weight in weights])
    for name, parameter in head.state_dict().items():
        if state[name].shape != parameter.shape:
            raise InvalidRequest(
                f"head {source!r} has {name} of shape {tuple(state[name].shape)}, where "
                f"{tuple(parameter.shape)} follows from the layer before"
            )
    if weights[-1].shape[0] != 1:
        raise InvalidRequest(f"head {source!r} gives {weights[-1].shape[0]} numbers, not one score")
    check_weights(state, source)
    head.load_state_dict(dict(state))
    return head
