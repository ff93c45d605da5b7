"""Conversations as token ids: rendered by the tokenizer's own chat template, as the card of a chat model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweeper.errors import ConfigError

Conversation = Sequence[dict[str, str]]
"""Messages in their order, `{"role": ..., "content": ...}` each."""


def is_conversation(value: Any) -> bool:
    """Whether a value of a JSONL file is a list of messages, each with a role and a text."""
    return bool(value) and isinstance(value, list) and all(_is_message(message) for message in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def rendered(tokenizer: Any, conversation: Conversation, where: str) -> str:
    """The conversation as the model reads it, special tokens included, up to where the assistant is to speak.

    Where the assistant has the last word nothing is opened behind it.

    Raises:
        ConfigError: the tokenizer has no chat template, or its template refuses the conversation.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(f"{where}: the checkpoint's tokenizer has no chat template; give texts in place of messages")
    speaks_next = conversation[-1]["role"] != "assistant"
    try:
        return str(tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=speaks_next))
    except Exception as error:  # a template is the checkpoint's own code, and raises what it likes
        reason = " ".join(str(error).split())
        raise ConfigError(f'{where}: the chat template refuses the messages: "{reason}"') from None


def note(tokenizer: Any) -> str:
    """What the record says of it."""
    dated = "strftime_now" in str(tokenizer.chat_template)
    today = "; it may write today's date, so that another day reads other tokens" if dated else ""
    return f"messages are rendered by the tokenizer's chat template{today}"
