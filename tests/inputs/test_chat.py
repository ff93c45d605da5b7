"""Messages are read as the card of a chat model reads them: by the tokenizer's own template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sweeper.config import Inputs, parse
from sweeper.errors import ConfigError
from sweeper.inputs.texts import Reading, read_token_ids, validate_inputs

TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ["<unk>", "<bos>", "<eos>", "<user>", "<assistant>", "<system>", "why", "do", "rivers", "bend", "slopes"]
ASKS, ANSWERS = {"role": "user", "content": "why"}, {"role": "assistant", "content": "slopes"}


@pytest.fixture(scope="module", params=[TEMPLATE, None], ids=["template", "none"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("chat"), request.param)


def saved(path: Path, template: str | None) -> Path:
    """A tokenizer that puts `<bos>` before every text, as Llama's does."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("chats"), TEMPLATE)


def inputs(**given: Any) -> Inputs:
    found: Inputs = parse(Inputs, {"name": "mine", **given})
    return found


def read(given: Inputs, folder: Path, **more: Any) -> Reading:
    return read_token_ids(given, folder, vocab_size=len(WORDS), has_tokenizer=True, **more)


@pytest.mark.parametrize(
    "messages",
    [
        [ASKS],
        [{"role": "system", "content": "bend"}, ASKS],
        [ASKS, ANSWERS, {"role": "user", "content": "do rivers bend"}],
    ],
)
def test_ids_are_those_of_the_models_card(chats: Path, messages: list[dict[str, str]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chats)
    card = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    reading = read(inputs(messages=[messages]), chats)
    assert reading.token_ids == [card["input_ids"]]
    assert reading.token_ids[0].count(1) == 1, "the template writes <bos>, and the tokenizer no second one"
    assert reading.token_ids[0][-1] == WORDS.index("<assistant>")
    assert reading.notes == {"chat": "messages are rendered by the tokenizer's chat template"}


def test_where_the_assistant_has_the_last_word_nothing_is_opened(chats: Path) -> None:
    (ids,) = read(inputs(messages=[[ASKS, ANSWERS]]), chats).token_ids
    assert [WORDS[token] for token in ids] == ["<bos>", "<user>", "why", "<eos>", "<assistant>", "slopes", "<eos>"]


def test_texts_are_a_users_messages_where_chat_is_typed(chats: Path) -> None:
    by_texts = read(inputs(texts=["why", "do rivers bend"], chat=True), chats)
    messages = [[{"role": "user", "content": text}] for text in ("why", "do rivers bend")]
    assert by_texts == read(inputs(messages=messages), chats)


def test_a_jsonl_file_may_hold_messages(chats: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in ([ASKS], [ASKS, ANSWERS, ASKS])))
    given = inputs(file=str(path), field="messages")
    validate_inputs(given)
    assert read(given, chats) == read(inputs(messages=[[ASKS], [ASKS, ANSWERS, ASKS]]), chats)


def test_messages_and_texts_are_not_mixed_in_silence(chats: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(json.dumps({"text": [ASKS]}) + "\n" + json.dumps({"text": "why"}) + "\n")
    with pytest.raises(ConfigError, match=r"messages and texts are mixed; type inputs\.chat=true"):
        read(inputs(file=str(path)), chats)
    assert len(read(inputs(file=str(path), chat=True), chats).token_ids) == 2


def test_long_chats_are_cut_as_the_tokenizer_cuts(chats: Path) -> None:
    reading = read(inputs(messages=[[ASKS], [ASKS, ANSWERS, ASKS]], max_tokens=6), chats)
    assert list(map(len, reading.token_ids)) == [5, 6]
    assert reading.notes["cut"] == "1 of 2 texts, to 6 tokens"


def test_a_prompt_has_no_place_before_messages(chats: Path) -> None:
    reading = read(inputs(messages=[[ASKS]]), chats, prompt="do ")
    assert reading.token_ids == read(inputs(messages=[[ASKS]]), chats).token_ids
    assert reading.notes["prompt"] == "none: messages have no place for it"


def test_a_template_that_writes_the_date_is_told(tmp_path: Path) -> None:
    dated = saved(tmp_path, TEMPLATE + "{% if false %}{{ strftime_now('%d') }}{% endif %}")
    assert "another day reads other tokens" in read(inputs(messages=[[ASKS]]), dated).notes["chat"]


def test_what_the_template_refuses_is_said_in_its_words(chats: Path) -> None:
    with pytest.raises(ConfigError, match=r'inputs .mine.: the chat template refuses the messages: "no tools here"'):
        read(inputs(messages=[[{"role": "tool", "content": "why"}]]), chats)


def test_without_a_template_messages_are_refused(folder: Path) -> None:
    if AutoTokenizer.from_pretrained(folder).chat_template is None:
        with pytest.raises(ConfigError, match="has no chat template; give texts in place of messages"):
            read(inputs(messages=[[ASKS]]), folder)
    else:
        assert read(inputs(messages=[[ASKS]]), folder).token_ids
    assert read(inputs(texts=["why"]), folder).token_ids == [[1, WORDS.index("why")]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"messages": []}, "messages must hold at least one conversation"),
        ({"messages": [[]]}, "none may be empty"),
        ({"messages": [[{"role": "user"}]]}, r"messages\.0\.0\.content: Field required"),
        ({"messages": [[ASKS]], "texts": ["why"]}, "give exactly one of .* given: texts, messages"),
        ({"token_ids": [[1]], "chat": True}, "chat needs texts or messages; given: token_ids"),
    ],
)
def test_what_is_no_conversation_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        inputs(**given)
