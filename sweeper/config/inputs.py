"""What the model of a cell reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sweeper.config.words import Frozen, Plain


class Message(Frozen):
    """A turn of a conversation; `role` is `user`, `assistant`, `system` or what the chat template knows besides."""

    role: str
    content: str


class Inputs(Frozen):
    """What the model reads: exactly one of `texts`, `file`, `messages`, `token_ids`, `arrays`, `media` and `recording`.

    Attributes:
        name: label in tables.
        texts: texts, tokenised by the checkpoint's tokenizer.
        file: `.txt` with a text a line, or `.jsonl` with a text, or a list of messages, in the field `field` of each
            line.
        field: name of the field in a JSONL file.
        messages: conversations, each rendered by the tokenizer's chat template.
        chat: each text is a user's message.
        token_ids: a list of token ids a text; no tokenizer is used.
        arrays: `.npy` or `.safetensors` file of what the processor of an image or audio model gives: the main input
            (`pixel_values`, `input_features`, `input_values`), a row an image or a sound.
        media: a folder of images or sounds, or one file, which go through the checkpoint's own processor; `arrays` then
            is what it made of them.
        recording: the token ids of the texts of a recording (docs/recordings.md).
        max_tokens: longer texts are cut to this many tokens; None cuts nothing.
        batch_size: texts in one forward.
    """

    name: Plain
    texts: tuple[str, ...] | None = None
    file: Plain | None = None
    field: str = "text"
    messages: tuple[tuple[Message, ...], ...] | None = None
    chat: bool = False
    token_ids: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] | None = None
    arrays: Plain | None = None
    media: Plain | None = None
    recording: Plain | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> Inputs:
        sources = ("texts", "file", "messages", "token_ids", "arrays", "media", "recording")
        given = [key for key in sources if getattr(self, key) is not None]
        given.remove("arrays") if given == ["arrays", "media"] else None
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(sources)}; given: {', '.join(given) or 'none'}")
        if self.messages == () or not all(self.messages or ()):
            raise ValueError("messages must hold at least one conversation, and none may be empty")
        if self.chat and given[0] not in ("texts", "file", "messages"):
            raise ValueError(f"chat needs texts or messages; given: {given[0]}")
        if self.texts == () or not all(self.texts or ()):
            raise ValueError("texts must hold at least one text, and none may be empty")
        if self.token_ids == () or not all(self.token_ids or ()):
            raise ValueError("token_ids must hold at least one text, and none may be empty")
        return self
