"""Turns what the user wants to read (texts, a file, token ids) into token ids, checked before any model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweeper import config
from sweeper.errors import ConfigError
from sweeper.inputs.chat import Conversation, note, rendered
from sweeper.inputs.files import check_array_file, check_text, read_file
from sweeper.inputs.media import media_files
from sweeper.records.recording import read_texts

# Texts. What a tokenizer says of each token beside its id takes some fifty times the id's memory.
_TOKENISED_TOGETHER = 256


def validate_inputs(inputs: config.Inputs) -> None:
    """Checks everything that needs neither tokenizer nor vocabulary, so that a typing error costs no model load.

    Raises:
        ConfigError: a file does not exist, has an unknown suffix, does not parse, or holds no text.
    """
    if inputs.file is not None:
        read_file(Path(inputs.file), inputs.field)
    for number, text in enumerate(inputs.texts or ()):
        check_text(text, f"inputs {inputs.name!r}: text {number} (from 0)")
    if inputs.media is not None:
        media_files(inputs)
    elif inputs.arrays is not None:
        check_array_file(Path(inputs.arrays))
    if inputs.recording is not None:
        read_texts(Path(inputs.recording))


@dataclass(frozen=True)
class Reading:
    """What is read.

    Attributes:
        token_ids: of every text.
        notes: what was done to the texts besides tokenising them, e.g. `cut` -> how many, and to what.
    """

    token_ids: list[list[int]]
    notes: dict[str, str] = field(default_factory=dict)


def longest_bytes(inputs: config.Inputs, enough: int) -> int:
    """Bytes of the longest text; of a file without a text of more than `enough` bytes that may be the file's own."""
    if inputs.file is not None and (size := Path(inputs.file).stat().st_size) <= enough:
        return size
    spoken = [text if isinstance(text, str) else "".join(map(str, text)) for text in _texts(inputs)]
    return max(len(text.encode()) for text in spoken)


def read_token_ids(
    inputs: config.Inputs,
    folder: Path,
    *,
    vocab_size: int,
    has_tokenizer: bool,
    prompt: str = "",
    max_tokens: int | None = None,
    context: int | None = None,
) -> Reading:
    """Token ids of every text, with the special tokens that the tokenizer adds by itself, cut to `inputs.max_tokens`.

    Messages are rendered by the tokenizer's chat template, which writes the special tokens itself.

    Args:
        inputs: what to read.
        folder: the checkpoint, with its tokenizer.
        vocab_size: rows of the model's token embedding.
        has_tokenizer: whether `folder` holds a tokenizer.
        prompt: goes before every text.
        max_tokens: of the checkpoint's own, that texts are cut to as well.
        context: tokens that the model has positions for; None where that knows no end.

    Raises:
        ConfigError: unreadable file, no tokenizer for texts, a text without a token or longer than the context, an id
            outside the vocabulary.
    """
    if inputs.token_ids is not None:
        reading = _cut_ids(inputs.token_ids, inputs.max_tokens)
    elif inputs.recording is not None:
        reading = Reading(read_texts(Path(inputs.recording))[0])
    elif not has_tokenizer:
        raise ConfigError(f"inputs {inputs.name!r}: the checkpoint has no tokenizer; give inputs.token_ids instead")
    else:
        cut = min(filter(None, (inputs.max_tokens, max_tokens)), default=None)
        reading = _tokenize(_texts(inputs), folder, prompt, cut, f"inputs {inputs.name!r}")
    token_ids = reading.token_ids
    _check_ids(token_ids, vocab_size, inputs.name)
    longest = max(range(len(token_ids)), key=lambda text: len(token_ids[text]))
    if context is not None and len(token_ids[longest]) > context:
        raise ConfigError(
            f"inputs {inputs.name!r}: text {longest} (from 0) has {len(token_ids[longest])} tokens, and the model's "
            f"context holds {context}; type inputs.max_tokens={context}"
        )
    return reading


def _texts(inputs: config.Inputs) -> Sequence[str | Conversation]:
    """Texts, or what is said in a chat; `inputs.chat` makes a user's message of each text."""
    if inputs.messages is not None:
        return [[message.model_dump() for message in messages] for messages in inputs.messages]
    texts = inputs.texts if inputs.file is None else read_file(Path(inputs.file), inputs.field)
    assert texts is not None  # config.Inputs has exactly one source
    if not inputs.chat:
        return texts
    return [[{"role": "user", "content": text}] if isinstance(text, str) else text for text in texts]


def _cut_ids(given: Sequence[Sequence[int]], most: int | None) -> Reading:
    token_ids = [list(ids[:most]) for ids in given]
    longer = 0 if most is None else sum(len(ids) > most for ids in given)
    return Reading(token_ids, _cut_note(longer, len(given), most))


def _cut_note(number: int, texts: int, most: int | None) -> dict[str, str]:
    return {"cut": f"{number} of {texts} texts, to {most} tokens"} if number else {}


def batches(token_ids: Sequence[Sequence[int]], batch_size: int) -> list[tuple[int, ...]]:
    """Indices of the texts of each forward, `batch_size` at most.

    The first batch is the first texts, whatever their lengths: samples, costs and the verdict speak of it. In the
    others texts of like length share a forward, so that pads are few; the longest first, for they need most memory.
    """
    texts = range(len(token_ids))
    by_length = sorted(texts[batch_size:], key=lambda text: len(token_ids[text]), reverse=True)  # stable
    starts = range(0, len(by_length), batch_size)
    return [tuple(texts[:batch_size]), *(tuple(sorted(by_length[start : start + batch_size])) for start in starts)]


def _tokenize(
    texts: Sequence[str | Conversation], folder: Path, prompt: str, max_tokens: int | None, where: str
) -> Reading:
    from transformers import AutoTokenizer  # seconds to import; not needed to validate

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # what a damaged file makes the library raise is its own affair
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{where}: the tokenizer in {folder} cannot be read ({reason}); save it again") from None
    plain = [text if isinstance(text, str) else rendered(tokenizer, text, where) for text in texts]
    chats = [not isinstance(text, str) for text in texts]
    if any(chats) and not all(chats):
        raise ConfigError(f"{where}: messages and texts are mixed; type inputs.chat=true, or give one of the two")
    special = not any(chats)  # a template writes them
    if special:
        plain = [prompt + text for text in plain]
    token_ids: list[list[int]] = []
    number_cut = 0
    for start in range(0, len(plain), _TOKENISED_TOGETHER):
        some = plain[start : start + _TOKENISED_TOGETHER]
        ids = tokenizer(some, add_special_tokens=special, verbose=False)["input_ids"]
        longer = [place for place, one in enumerate(ids) if max_tokens is not None and len(one) > max_tokens]
        if longer:  # cut by the tokenizer, which keeps the special token at the end, if it has one
            again = [some[place] for place in longer]
            cut = tokenizer(again, add_special_tokens=special, truncation=True, max_length=max_tokens)["input_ids"]
            for place, one in zip(longer, cut, strict=True):
                ids[place] = one
        number_cut += len(longer)
        token_ids += ids
    notes = {"prompt": f"{prompt!r} before every text" if special else "none: messages have no place for it"}
    notes = notes if prompt else {}
    notes |= {} if special else {"chat": note(tokenizer)}
    return Reading(token_ids, notes | _cut_note(number_cut, len(plain), max_tokens))


def _check_ids(token_ids: list[list[int]], vocab_size: int, name: str) -> None:
    for text, ids in enumerate(token_ids):
        if not ids:
            raise ConfigError(f"inputs {name!r}: text {text} (from 0) has no token; leave it out")
        for position, token_id in enumerate(ids):
            if not 0 <= token_id < vocab_size:
                raise ConfigError(
                    f"inputs {name!r}: text {text}, position {position} (both from 0): token id {token_id} is not in"
                    f" the checkpoint's vocabulary of {vocab_size} (0 to {vocab_size - 1})"
                )
