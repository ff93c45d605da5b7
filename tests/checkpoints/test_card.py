"""What a checkpoint's files say, and that what is typed wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sweeper.checkpoints import settled
from sweeper.checkpoints.card import read_card
from sweeper.config import Checkpoint, FolderCheckpoint, Head, Pooling, SeededCheckpoint
from sweeper.errors import CheckpointError, ConfigError


def written(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").touch()
    return folder


def config(model_type: str, architecture: str | None, **more: Any) -> dict[str, Any]:
    return {"config.json": {"model_type": model_type, "architectures": architecture and [architecture], **more}}


@pytest.mark.parametrize(
    ("files", "head", "causal"),
    [
        (config("llama", "LlamaForCausalLM"), Head.CAUSAL_LM, True),
        (config("llama", "LlamaModel"), Head.BASE, True),
        (config("llama", "LlamaForSequenceClassification"), Head.AS_SAVED, True),
        (config("gemma3_text", "Gemma3TextModel", use_bidirectional_attention=True), Head.BASE, False),
        (config("qwen2_vl", "Qwen2VLForConditionalGeneration"), Head.CAUSAL_LM, True),
        (config("bert", "BertForMaskedLM"), Head.MASKED_LM, False),
        (config("bert", "BertModel"), Head.BASE, False),
        (config("bert", "BertLMHeadModel", is_decoder=True), Head.CAUSAL_LM, True),
        (config("bert", None), Head.BASE, False),
        (config("t5", "T5ForConditionalGeneration", is_encoder_decoder=True), Head.SEQ2SEQ_LM, False),
        (config("t5", "T5EncoderModel", is_encoder_decoder=False), Head.AS_SAVED, False),
        (config("bart", "BartModel", is_encoder_decoder=True), Head.BASE, False),
        (config("whisper", "WhisperForConditionalGeneration", is_encoder_decoder=True), Head.SEQ2SEQ_LM, False),
        (config("vit", "ViTForImageClassification"), Head.AS_SAVED, False),
        (config("wav2vec2", "Wav2Vec2Model"), Head.BASE, False),
    ],
    ids=lambda value: str(value.get("config.json", {}).get("architectures")) if isinstance(value, dict) else None,
)
def test_the_config_names_the_head(tmp_path: Path, files: dict[str, Any], head: Head, causal: bool) -> None:
    card = read_card(written(tmp_path, files))
    assert (card.head, card.causal, card.normalize, card.prompt) == (head, causal, True, "")
    assert card.pooling() is (Pooling.LAST_TOKEN if causal else Pooling.MEAN)
    assert card.pads_left is causal


def sentence_transformer(pooling: dict[str, Any], *more: str) -> dict[str, Any]:
    kinds = ("Transformer", "Pooling", *more)
    paths = ("", *(f"{index}_{kind}" for index, kind in enumerate(kinds[1:], start=1)))
    modules = [
        {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    return {**config("qwen3", "Qwen3ForCausalLM"), "modules.json": modules, "1_Pooling/config.json": pooling}


@pytest.mark.parametrize(
    ("asked", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, Pooling.CLS),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}, Pooling.MEAN),
        ({"pooling_mode_max_tokens": True}, Pooling.MAX),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, Pooling.LAST_TOKEN),
        ({"pooling_mode": "lasttoken"}, Pooling.LAST_TOKEN),
    ],
)
def test_sentence_transformers_files_say_how_a_text_is_pooled(
    tmp_path: Path, asked: dict[str, Any], pooling: Pooling
) -> None:
    extra = {
        "config_sentence_transformers.json": {
            "prompts": {"query": "Find: ", "none": ""},
            "default_prompt_name": "query",
        },
        "sentence_bert_config.json": {"max_seq_length": 256},
        "tokenizer_config.json": {"padding_side": "right"},
    }
    card = read_card(written(tmp_path, sentence_transformer(asked) | extra))
    assert card.pooling() is pooling
    assert (card.head, card.normalize, card.prompt, card.max_tokens) == (Head.BASE, False, "Find: ", 256)
    assert not card.pads_left


def test_a_normalize_module_normalises(tmp_path: Path) -> None:
    assert read_card(written(tmp_path, sentence_transformer({"pooling_mode": "cls"}, "Normalize"))).normalize


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (sentence_transformer({"pooling_mode_mean_tokens": True}, "Dense"), "has Dense in modules.json.*pooling=mean"),
        (
            sentence_transformer({"pooling_mode": "weightedmean"}),
            "weightedmean is no pooling of sweeper; type checkpoint",
        ),
        (
            sentence_transformer({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
            "pooling_mode_cls_token and pooling_mode_mean_tokens is no pooling",
        ),
    ],
)
def test_what_is_not_run_is_refused_unless_a_pooling_is_typed(tmp_path: Path, files: Any, words: str) -> None:
    card = read_card(written(tmp_path, files))
    with pytest.raises(CheckpointError, match=words):
        card.pooling()
    typed = FolderCheckpoint(source="folder", name="x", path=str(tmp_path), pooling="cls")
    assert settled(typed, print)[0].pooling is Pooling.CLS


def test_what_is_typed_wins(tmp_path: Path) -> None:
    written(tmp_path, sentence_transformer({"pooling_mode_mean_tokens": True}))
    asked = {"head": "causal_lm", "pooling": "cls", "normalize": True, "causal": False, "prompt": "", "max_tokens": 9}
    typed = FolderCheckpoint.model_validate({"source": "folder", "name": "x", "path": str(tmp_path), **asked})
    found, folder = settled(typed, print)
    assert folder == tmp_path
    assert found == typed


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("llama", (Head.CAUSAL_LM, True, Pooling.LAST_TOKEN)), ("bert", (Head.BASE, False, Pooling.MEAN))],
)
def test_seeded_checkpoints_need_no_files(architecture: Any, expected: tuple[Any, ...]) -> None:
    seeded: Checkpoint = SeededCheckpoint(source="seeded", name="x", architecture=architecture, geometry={})
    found, folder = settled(seeded, print)
    assert folder is None
    assert (found.head, found.causal, found.pooling) == expected


PROMPTS = {"prompts": {"query": "Find: ", "passage": ""}, "default_prompt_name": None}


def embedder(folder: Path, asked: dict[str, Any] | None = None, **more: Any) -> FolderCheckpoint:
    files = sentence_transformer(asked or {"pooling_mode": "lasttoken"})
    written(folder, files | {"config_sentence_transformers.json": PROMPTS})
    return FolderCheckpoint(source="folder", name="x", path=str(folder), **more)


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        ({}, ""),
        ({"prompt_name": "query"}, "Find: "),
        ({"prompt_name": "passage"}, ""),
        ({"prompt": "Mine: "}, "Mine: "),
    ],
)
def test_a_prompt_is_typed_or_named(tmp_path: Path, typed: dict[str, Any], prompt: str) -> None:
    found, folder = settled(embedder(tmp_path, **typed), print)
    assert found.prompt == prompt
    assert settled(found, print) == (found, folder)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"prompt_name": "querry"}, r"has no prompt querry; did you mean query\? Allowed: query, passage"),
        ({"prompt_name": "query", "prompt": "Mine: "}, "prompt and checkpoint.prompt_name are both given"),
    ],
)
def test_a_prompt_that_is_none_is_refused(tmp_path: Path, typed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settled(embedder(tmp_path, **typed), print)


def test_random_weights_have_no_prompts() -> None:
    seeded = SeededCheckpoint(source="seeded", name="x", architecture="bert", geometry={}, prompt_name="query")
    with pytest.raises(ConfigError, match="random weights have no prompts"):
        settled(seeded, print)


def test_a_prompt_that_is_left_out_of_the_pooling_is_refused(tmp_path: Path) -> None:
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    assert settled(embedder(tmp_path, pooling), print)[0].prompt == ""
    with pytest.raises(CheckpointError, match=r"pools without the tokens of the prompt.*checkpoint\.pooling=mean"):
        settled(embedder(tmp_path, pooling, prompt_name="query"), print)
    assert settled(embedder(tmp_path, pooling, prompt_name="query", pooling="mean"), print)[0].prompt == "Find: "


@pytest.mark.parametrize(
    ("stated", "most", "expected"),
    [({"max_seq_length": 64}, 512, 64), ({}, 512, 512), ({}, 128, 128), ({}, 10**30, 514)],
)
def test_sentence_transformers_cut_where_their_model_ends(
    tmp_path: Path, stated: dict[str, int], most: int, expected: int
) -> None:
    files = sentence_transformer({"pooling_mode": "cls"}) | config("bert", "BertModel", max_position_embeddings=514)
    files |= {"sentence_bert_config.json": stated, "tokenizer_config.json": {"model_max_length": most}}
    assert read_card(written(tmp_path, files)).max_tokens == expected


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: "):
        read_card(tmp_path)
