"""BERTScore: how well one text says what another says, token by token.

Zhang et al. 2020, "BERTScore: Evaluating Text Generation with BERT" (arXiv 1904.09675), as the
authors' package bert-score computes it for one pair of texts.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from bert_score.utils import get_bert_embedding, get_tokenizer, model2layers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, T5EncoderModel

from salon.errors import InvalidRequest
from services.models.pretrained import load_model, load_part
from services.models.weights import reason_of

LONGEST = 512
"""Tokens of a text that count, or fewer where the model reads fewer; the rest is cut off."""

_ENDS = 2
"""The first and the last token of every text."""
_TEXTS_PER_PASS = 64
_UNREAD: defaultdict[int, float] = defaultdict(float)
"""Of idf weights, which the package wants and these scores do without."""


class BertScore:
    """Recall of references by candidates, unrescaled and without idf weights.

    R = 1/|x| Σ_{x_i in x} max_{y_j in y} cos(x_i, y_j), the paper's R_BERT, where x are the token
    vectors of the reference and y those of the candidate at one layer of the model. As in the
    package, the first and last token ([CLS] and [SEP]) of the reference do not count, those of the
    candidate may be matched. Only the vectors are the package's: its matching takes padding of a
    shorter candidate for a token of cosine 0, so that scores would depend on what else is in the
    batch wherever the best cosine of a token is negative.
    """

    def __init__(self, model: str, layers: int | None, device: torch.device) -> None:
        """Load the text model, in float32 as the package does.

        Args:
            model: a folder, or an id on the hub.
            layers: which layer's vectors to compare; None: what the package's authors chose for
                that id by correlation with human judgement.
            device: where it runs.

        Raises:
            InvalidRequest: it cannot be loaded, lacks weights, has no such layer, or `layers` is
                None and the package has no choice for it.
        """
        config = load_part(AutoConfig, model)
        if layers is None and model not in model2layers:
            raise InvalidRequest(
                f"bert-score does not know which layer of {model!r} to compare: "
                "set bertscore_layers, such as the number of its last layer"
            )
        layer: int = model2layers[model] if layers is None else layers
        if not 1 <= layer <= config.num_hidden_layers:
            raise InvalidRequest(
                f"bertscore_layers {layer}: {model!r} has layers 1 to {config.num_hidden_layers}"
            )
        if "t5" in model and config.model_type not in ("t5", "mt5"):
            raise InvalidRequest(
                f"bert-score takes whatever has 't5' in its path for a T5, and {model!r} is a "
                f"{config.model_type}: give it another path"
            )
        # The package would fill with random numbers what is missing.
        kind = T5EncoderModel if "t5" in model else AutoModel
        whole = load_model(kind, model, torch.device("cpu"), torch.float32, without=("pooler.",))
        try:
            self._model = _first_layers(whole, layer).to(device)
            self._tokenizer = get_tokenizer(model)
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"bertscore_model {model!r} cannot be loaded: {reason_of(error)}; give a folder "
                "that save_pretrained wrote, or a hub id"
            ) from error
        # Without a length of its own, a tokenizer says 10^30, which overflows in transformers 5
        # (github.com/Tiiiger/bert_score/issues/205); DeBERTa's is such a one.
        tokenizer = self._tokenizer
        read = getattr(config, "max_position_embeddings", LONGEST)
        tokenizer.model_max_length = min(tokenizer.model_max_length, read, LONGEST)
        self._device = str(device)
        self.version = f"bert-score-{version('bert-score')}-layer-{layer}"
        """What its scores depend on beside the weights, as a part of a reward's version."""

    def recall(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        """The recall of each reference by its candidate, -1 to 1.

        A text that comes several times goes through the model once. An empty candidate recalls
        nothing: 0, as the package defines it.

        Args:
            candidates: what was said.
            references: what should have been said, one for each candidate, not empty.
        """
        # The package fails on an empty text under transformers 5.
        said = [index for index, candidate in enumerate(candidates) if candidate.strip()]
        texts = [*(candidates[index] for index in said), *(references[index] for index in said)]
        vectors = dict(self._vectors(texts))
        recalls = torch.zeros(len(candidates))
        for index in said:
            recalls[index] = _recall(vectors[candidates[index]], vectors[references[index]])
        # Rounding may carry the cosine of equal vectors past 1.
        values: list[float] = recalls.clamp(-1, 1).tolist()
        return values

    @torch.inference_mode()
    def _vectors(self, texts: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Each text once, with float32 [tokens, width] on the CPU, rows of length 1."""
        different = sorted(set(texts), key=lambda text: (len(text), text))
        for start in range(0, len(different), _TEXTS_PER_PASS):
            part = different[start : start + _TEXTS_PER_PASS]
            padded, masks, _ = get_bert_embedding(
                part, self._model, self._tokenizer, _UNREAD, device=self._device
            )
            rows = functional.normalize(padded, dim=-1).cpu()
            for text, vectors, mask in zip(part, rows, masks.cpu(), strict=True):
                yield text, vectors[mask.bool()]


def _first_layers(model: Any, layers: int) -> Any:
    """The encoder of `model` without what comes behind that layer.

    As bert_score.utils.get_model has it, which takes no model that is loaded already.

    Raises:
        ValueError: it is of no kind that bert-score knows.
    """
    if hasattr(model, "decoder") and hasattr(model, "encoder"):
        model = model.encoder
    if hasattr(model, "n_layers"):  # XLM
        model.n_layers = layers
        return model
    stack = model  # of XLNet
    if not hasattr(model, "layer"):
        stack = getattr(model, "encoder", getattr(model, "transformer", model))
    if hasattr(stack, "albert_layer_groups"):  # the same layers over and over
        stack.config.num_hidden_layers = layers
        return model
    for name in ("layer", "block", "layers"):  # of BERT, T5 and BART
        if isinstance(found := getattr(stack, name, None), nn.ModuleList):
            setattr(stack, name, found[:layers])
            return model
    raise ValueError(f"bert-score does not know a {type(model).__name__}")


def _recall(said: Tensor, wanted: Tensor) -> Tensor:
    """The mean over the inner rows of `wanted` of the greatest cosine with a row of `said`."""
    if min(len(said), len(wanted)) <= _ENDS:
        return torch.zeros(())
    return (wanted[1:-1] @ said.T).amax(dim=1).mean()
