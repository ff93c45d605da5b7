from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sweeper import config
from sweeper.errors import ConfigError
from sweeper.inputs.texts import Reading, batches, read_token_ids, validate_inputs

CONF = Path(__file__).parents[2] / "conf" / "inputs"


def _inputs(**fields: Any) -> config.Inputs:
    return config.parse(config.Inputs, {"name": "here", **fields}, "inputs")


def _file(tmp_path: Path, name: str, content: str) -> config.Inputs:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return _inputs(file=str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tokenizer of whole words, which ends each text with an end token."""
    vocabulary = {"<unk>": 0, "<end>": 1, "gravity": 2, "is": 3, "strong": 4}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    path = tmp_path_factory.mktemp("checkpoint")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(path)
    return path


def _read(inputs: config.Inputs, folder: Path, vocab_size: int = 5, has_tokenizer: bool = True) -> list[list[int]]:
    return read_token_ids(inputs, folder, vocab_size=vocab_size, has_tokenizer=has_tokenizer).token_ids


def test_texts_get_the_special_tokens_of_the_tokenizer(folder: Path) -> None:
    assert _read(_inputs(texts=["gravity is", "strong"]), folder) == [[2, 3, 1], [4, 1]]


def test_cut_texts_keep_the_special_tokens(folder: Path) -> None:
    assert _read(_inputs(texts=["gravity is strong", "is"], max_tokens=2), folder) == [[2, 1], [3, 1]]


def test_text_file_has_a_text_a_line(folder: Path, tmp_path: Path) -> None:
    inputs = _file(tmp_path, "a.txt", "gravity is\n\n   \nstrong")
    assert _read(inputs, folder) == [[2, 3, 1], [4, 1]]


def test_jsonl_file_has_a_text_in_a_field(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    # U+2028 is legal inside a JSON string and does not end the line.
    path.write_text('{"body": "gravity\u2028is", "id": 1}\n\n{"body": "strong"}\n', encoding="utf-8")
    assert _read(_inputs(file=str(path), field="body"), folder) == [[2, 3, 1], [4, 1]]


def test_byte_order_mark_is_no_part_of_the_first_text(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("gravity", encoding="utf-8-sig")
    assert _read(_inputs(file=str(path)), folder) == [[2, 1]]


def test_token_ids_need_no_tokenizer(tmp_path: Path) -> None:
    inputs = _inputs(token_ids=[[4, 3, 2], [1]], max_tokens=2)
    assert _read(inputs, tmp_path / "nowhere", has_tokenizer=False) == [[4, 3], [1]]


def _message(inputs: config.Inputs, folder: Path = Path(), has_tokenizer: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        _read(inputs, folder, has_tokenizer=has_tokenizer)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_id_outside_the_vocabulary_is_located() -> None:
    message = _message(_inputs(token_ids=[[1, 2], [3, 4, 5]]))
    assert "text 1, position 2 (both from 0): token id 5 " in message
    assert "vocabulary of 5 (0 to 4)" in message


def test_tokenizer_that_does_not_fit_the_model_is_noticed(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"text 0, position 1 .* token id 3 "):
        _read(_inputs(texts=["gravity is"]), folder, vocab_size=3)


def test_texts_without_tokenizer_say_what_to_give_instead(folder: Path) -> None:
    assert "give inputs.token_ids instead" in _message(_inputs(texts=["gravity"]), has_tokenizer=False)


def test_text_without_a_token_is_refused(tmp_path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=_without_special_tokens()).save_pretrained(tmp_path)
    assert "text 1 (from 0) has no token" in _message(_inputs(texts=["gravity", "  "]), tmp_path)


def _without_special_tokens() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({"gravity": 0}, unk_token="gravity"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "x", "unknown suffix '.csv'"),
        ("a.txt", "\n  \n", "holds no text"),
        ("a.jsonl", "", "holds no text"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": ', "line 3: not JSON"),
        ("a.jsonl", '{"text": "x"}\n["y"]', "line 2: must be an object with the field 'text' (given: list)"),
        ("a.jsonl", '{"body": "x", "id": 1}', "line 1: no field 'text'; set inputs.field to one of: body, id"),
        ("a.jsonl", '{"text": 3}', "line 1: field 'text' must be a text that is not empty (given: 3)"),
        ("a.jsonl", '{"text": ""}', "line 1: field 'text' must be a text that is not empty (given: '')"),
    ],
)
def test_bad_files_are_located_in_one_line(tmp_path: Path, name: str, content: str, expected: str) -> None:
    inputs = _file(tmp_path, name, content)
    assert expected in _message(inputs)
    with pytest.raises(ConfigError):
        validate_inputs(inputs)


def test_missing_file_is_named(tmp_path: Path) -> None:
    inputs = _inputs(file=str(tmp_path / "nowhere.txt"))
    assert "no such file" in _message(inputs)
    with pytest.raises(ConfigError):
        validate_inputs(inputs)


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    assert "is not UTF-8" in _message(_inputs(file=str(tmp_path / "a.txt")))


def test_validation_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("gravity")
    code = (
        "import sys; from sweeper import config\nfrom sweeper.inputs import texts as inputs\n"
        f"inputs.validate_inputs(config.Inputs(name='x', file={str(tmp_path / 'a.txt')!r}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CONF.parents[1])


@given(texts=st.integers(1, 50), batch_size=st.integers(1, 12))
def test_batches_of_one_length_hold_each_text_once_in_order(texts: int, batch_size: int) -> None:
    found = batches([[1]] * texts, batch_size)
    assert [text for batch in found for text in batch] == list(range(texts))
    assert all(len(batch) == batch_size for batch in found[:-1])
    assert 1 <= len(found[-1]) <= batch_size


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=50), batch_size=st.integers(1, 12))
def test_behind_the_first_texts_batches_are_of_like_length(lengths: list[int], batch_size: int) -> None:
    first, *others = batches([[1] * length for length in lengths], batch_size)
    assert first == tuple(range(min(batch_size, len(lengths))))
    assert sorted(text for batch in (first, *others) for text in batch) == list(range(len(lengths)))
    assert all(list(batch) == sorted(batch) for batch in others)
    for longer, shorter in itertools.pairwise(others):
        assert len(longer) == batch_size
        assert min(lengths[text] for text in longer) >= max(lengths[text] for text in shorter)


# The shipped configs.


def _shipped(name: str, **overrides: Any) -> config.Inputs:
    data = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), overrides))
    return config.parse(config.Inputs, data, "inputs")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_inputs_validate_under_their_own_name(path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("gravity")
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    needed = {"file": {"file": str(tmp_path / "a.txt")}, "arrays": {"arrays": str(tmp_path / "a.npy")}}
    (tmp_path / "a.png").touch()
    needed |= {"token_ids": {"token_ids": [[5, 6]]}, "media": {"media": str(tmp_path / "a.png")}}
    inputs = _shipped(path.stem, **needed.get(path.stem, {}))
    validate_inputs(inputs)
    assert inputs.name == path.stem


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_inputs_can_be_cut_and_batched_from_the_command_line(path: Path) -> None:
    assert {"max_tokens", "batch_size"} <= set(
        OmegaConf.load(CONF / f"{path.stem}.yaml")
    )  # Hydra overrides what exists


def test_file_config_asks_for_its_file() -> None:
    assert OmegaConf.is_missing(OmegaConf.load(CONF / "file.yaml"), "file")


def test_report_1_is_what_was_published() -> None:
    assert _shipped("report_1").texts == ("Gravity is",)


def test_report_2_is_what_was_published() -> None:
    assert _shipped("report_2").texts == (
        "hi how are you this is what so that is that what is know is there any way to do this",
        " hi how can i help you today",
    )


def test_sentences_are_eight_of_different_lengths() -> None:
    texts = _shipped("sentences").texts
    assert texts is not None
    words = [len(text.split()) for text in texts]
    assert len(words) == len(set(words)) == 8
    assert min(words) <= 5
    assert max(words) >= 60


def test_a_prompt_goes_before_every_text_and_the_card_may_cut_it(folder: Path) -> None:
    texts = ("gravity is", "gravity")
    choices: Any = {"vocab_size": 5, "has_tokenizer": True}
    prompted = read_token_ids(_inputs(texts=texts), folder, prompt="is ", **choices)
    assert prompted.token_ids == _read(_inputs(texts=tuple(f"is {text}" for text in texts)), folder)
    assert prompted.notes == {"prompt": "'is ' before every text"}
    cut = _read(_inputs(texts=texts, max_tokens=2), folder)
    for by_card, by_user in ((2, None), (9, 2)):
        reading = read_token_ids(_inputs(texts=texts, max_tokens=by_user), folder, max_tokens=by_card, **choices)
        assert reading == Reading(cut, {"cut": "1 of 2 texts, to 2 tokens"})


def test_a_text_longer_than_the_context_is_told_what_to_type() -> None:
    inputs = _inputs(token_ids=((1,), (1, 2, 3)))
    assert read_token_ids(inputs, Path(), vocab_size=5, has_tokenizer=False, context=3) == Reading([[1], [1, 2, 3]])
    with pytest.raises(ConfigError, match=r"text 1 .* 3 tokens, and .* holds 2; type inputs\.max_tokens=2"):
        read_token_ids(inputs, Path(), vocab_size=5, has_tokenizer=False, context=2)


def test_token_ids_that_are_cut_are_counted() -> None:
    inputs = _inputs(token_ids=((1,), (1, 2, 3)), max_tokens=2)
    reading = read_token_ids(inputs, Path(), vocab_size=5, has_tokenizer=False)
    assert reading == Reading([[1], [1, 2]], {"cut": "1 of 2 texts, to 2 tokens"})
