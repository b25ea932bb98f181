import pytest
import torch
import transformers
from bert_score.utils import get_model
from transformers import AutoModel

from salon.errors import InvalidRequest
from services.models.bertscore import BertScore, _first_layers
from tests.fixtures.text_models import MINILM_LAYERS, greedy_recall, minilm, tiny_deberta

CPU = torch.device("cpu")
PAIRS = [
    ("a red three", "The image contains a red three on a blue background"),
    ("The image contains a red three", "The image contains a red three"),
    ("two dogs are washing the dishes in a kitchen", "The image contains a wolf"),
    ("a", "The image contains an owl playing chess with a very small ant"),
]


@pytest.fixture(scope="module")
def scorer():
    return BertScore(str(minilm()), MINILM_LAYERS, CPU)


@pytest.fixture(scope="module")
def deberta(tmp_path_factory):
    return tiny_deberta(tmp_path_factory.mktemp("deberta"))


def test_recall_is_greedy_matching_of_hidden_states(scorer):
    expected = [greedy_recall(minilm(), MINILM_LAYERS, *pair) for pair in PAIRS]
    assert scorer.recall(*zip(*PAIRS, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_a_token_that_nothing_resembles_is_not_matched_with_padding(scorer):
    """Some token's best cosine is negative, and the other candidate is longer."""
    odd = ("there what", "The image contains a blue wolf riding a bike")
    longer = ("there what what what what blue is there", "The image contains an owl")
    expected = [greedy_recall(minilm(), MINILM_LAYERS, *pair) for pair in (odd, longer)]
    assert scorer.recall(*zip(odd, longer, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_a_shallower_layer_is_that_layer():
    expected = [greedy_recall(minilm(), 3, *pair) for pair in PAIRS]
    shallow = BertScore(str(minilm()), 3, CPU)
    assert shallow.recall(*zip(*PAIRS, strict=True)) == pytest.approx(expected, abs=1e-5)


def tiny_config(kind):
    small = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "vocab_size": 40}
    return {
        "bert": lambda: transformers.BertConfig(**small, **heads),
        "albert": lambda: transformers.AlbertConfig(**small, **heads, embedding_size=8),
        "xlnet": lambda: transformers.XLNetConfig(
            vocab_size=40, d_model=16, n_layer=3, n_head=2, d_inner=32
        ),
        "xlm": lambda: transformers.XLMConfig(vocab_size=40, emb_dim=16, n_layers=3, n_heads=2),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=40, dim=16, n_layers=3, n_heads=2, hidden_dim=32
        ),
        "bart": lambda: transformers.BartConfig(
            vocab_size=40, d_model=16, encoder_layers=3, decoder_layers=1, encoder_ffn_dim=32
        ),
        "t5": lambda: transformers.T5Config(
            vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["bert", "albert", "xlnet", "xlm", "distilbert", "bart", "t5"])
def test_a_model_is_cut_as_bert_score_cuts_it(tmp_path, kind):
    loader = transformers.T5EncoderModel if kind == "t5" else AutoModel
    torch.manual_seed(0)
    folder = tmp_path / kind
    make = transformers.T5EncoderModel if kind == "t5" else AutoModel.from_config
    make(tiny_config(kind)).save_pretrained(folder)
    theirs = get_model(str(folder), 2)
    ours = _first_layers(loader.from_pretrained(folder), 2).eval()
    tokens = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected, found = theirs(tokens)[0], ours(tokens)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    whole = loader.from_pretrained(folder).eval()
    whole = whole.encoder if kind == "bart" else whole
    with torch.no_grad():
        assert not torch.equal(whole(tokens)[0], found), "a layer more is another vector"


def test_a_model_is_loaded_once(monkeypatch):
    loaded = []
    real = AutoModel.from_pretrained
    monkeypatch.setattr(
        AutoModel, "from_pretrained", lambda *args, **rest: loaded.append(1) or real(*args, **rest)
    )
    BertScore(str(minilm()), MINILM_LAYERS, CPU)
    assert loaded == [1]


def test_recall_is_not_precision(scorer):
    [(short, long)] = PAIRS[:1]
    [recall, reverse] = scorer.recall([short, long], [long, short])
    assert reverse > recall + 0.1


def test_equal_texts_recall_all_and_not_more(scorer):
    [recall] = scorer.recall(["The image contains a wolf"], ["The image contains a wolf"])
    assert recall == pytest.approx(1.0, abs=1e-6)
    assert recall <= 1.0


@pytest.mark.parametrize("nothing", ["", " ", "\n\t", "\u200b"])
def test_an_empty_candidate_recalls_nothing(scorer, nothing):
    reference = "The image contains a wolf"
    recalls = scorer.recall(["a wolf", nothing, "a wolf"], [reference] * 3)
    assert recalls[1] == 0.0
    assert recalls[0] == recalls[2] > 0.5
    assert scorer.recall([nothing], [reference]) == [0.0]


def test_deberta_reads_texts_longer_than_it_can(deberta):
    scorer = BertScore(str(deberta), 2, CPU)
    candidate, reference = "abcdefgh" * 20, "the image contains an owl" * 10
    expected = greedy_recall(deberta, 2, candidate, reference)
    assert scorer.recall([candidate], [reference]) == pytest.approx([expected], abs=1e-5)
    beyond = candidate[:62] + "zzzz", reference[:62] + "zzzz"  # 64 tokens with [CLS] and [SEP]
    assert scorer.recall([beyond[0]], [beyond[1]]) == pytest.approx([expected], abs=1e-5)


def test_weights_of_half_precision_are_computed_with_in_float32(tmp_path):
    folder = tiny_deberta(tmp_path)
    AutoModel.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    expected = greedy_recall(folder, 3, "a wolf", "the image contains a wolf")
    [recall] = BertScore(str(folder), 3, CPU).recall(["a wolf"], ["the image contains a wolf"])
    assert recall == pytest.approx(expected, abs=1e-5)


def test_a_layer_must_be_given_for_a_model_of_ones_own(deberta):
    with pytest.raises(InvalidRequest, match="set bertscore_layers"):
        BertScore(str(deberta), None, CPU)


@pytest.mark.parametrize("layer", [0, 4])
def test_the_layer_must_exist(deberta, layer):
    with pytest.raises(InvalidRequest, match=f"bertscore_layers {layer}: .* has layers 1 to 3"):
        BertScore(str(deberta), layer, CPU)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match="nowhere"):
        BertScore(str(tmp_path / "nowhere"), 3, CPU)
    (tmp_path / "half").mkdir()
    folder = tiny_deberta(tmp_path / "half")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="half"):
        BertScore(str(folder), 3, CPU)


def test_a_path_that_bert_score_would_take_for_a_t5_is_refused(tmp_path):
    folder = tmp_path / "dept5"
    folder.mkdir()
    with pytest.raises(InvalidRequest, match="takes whatever has 't5' in its path for a T5"):
        BertScore(str(tiny_deberta(folder)), 3, CPU)
