"""`minilm` gives what sentence-transformers gives for it, computed here from its own files by plain torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from sweeper.checkpoints import prepare
from sweeper.comparator.forwards import read_texts, side_of
from sweeper.comparator.side import POOLING, run
from sweeper.config import Layout
from sweeper.metrics.figures import normalised
from sweeper.models.loading import ModelPool
from sweeper.planning.settle import Settler
from tests.composing import request_of

pytestmark = pytest.mark.slow


def sentence_transformers(folder: Path, texts: list[str]) -> tuple[list[Tensor], Tensor]:
    """Hidden states of each text, and embeddings, as `SentenceTransformer(folder).encode` makes them in float32."""
    modules = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    assert modules == ["Transformer", "Pooling", "Normalize"]
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
    most = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    order = sorted(range(len(texts)), key=lambda text: -len(texts[text]))
    features = tokenizer(
        [texts[text] for text in order], padding=True, truncation=True, max_length=most, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden_BTD = model(**features).last_hidden_state
        mask_BT1 = features["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
        mean_BD = torch.sum(hidden_BTD * mask_BT1, 1) / torch.clamp(mask_BT1.sum(1), min=1e-9)
        embedding_BD = torch.nn.functional.normalize(mean_BD, p=2, dim=1)
    lengths = features["attention_mask"].sum(1).tolist()
    place = [order.index(text) for text in range(len(texts))]
    return [hidden_BTD[row, : lengths[row]] for row in place], embedding_BD[place]


def test_minilm_is_sentence_transformers_bit_for_bit() -> None:
    asked = request_of("checkpoint=minilm", "dtype=float32", "attention=sdpa", "positions=implicit").cells[0]
    cell = Settler(print).cell(asked)
    checkpoint = cell.checkpoint
    assert (checkpoint.head, checkpoint.pooling, checkpoint.normalize) == ("base", "mean", True)
    assert (checkpoint.causal, checkpoint.max_tokens, cell.layout) == (False, 256, Layout.PADDED_RIGHT)
    local = prepare(checkpoint, device="cpu", say=print)
    model = ModelPool().get(cell, local.folder)[0].model
    token_ids = read_texts(cell, local, model).token_ids
    outputs = run(side_of(cell, model, token_ids, [range(len(token_ids))]))

    assert cell.inputs.texts is not None
    hidden, embedding_SD = sentence_transformers(local.folder, list(cell.inputs.texts))
    found = outputs["last_hidden_state"].split([len(ids) for ids in token_ids])
    assert all(torch.equal(*pair) for pair in zip(found, hidden, strict=True))
    # one unit in the last place of float32 at their length, 1
    difference_SD = normalised(outputs[POOLING]) - embedding_SD.double()
    assert torch.linalg.vector_norm(difference_SD, dim=1).max() <= 2**-23
