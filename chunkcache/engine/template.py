"""A model's chat template and tokenizer, asked for parts: never for a whole prompt.

`ChatTemplate` says what stands around the contents of a conversation, `PartTokenizer` turns those
parts and the contents into token ids, apart from each other. Pure; torch is not needed.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from chunkcache.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

_MARK = "\u2402{}\u2403"  # visible control pictures: no template trims or escapes them
# A template that prints today's date would give the head, and with it every chunk, a new key each
# day. The date here is the one that Llama 3's template takes where it knows none. The empty
# expression keeps jinja from trimming what follows the macro.
_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"

_PLAIN_NAMES = {"system": "", "user": "Question: ", "assistant": "Answer: "}


class ChatTemplate:
    """The template's own text around the contents of a conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._source = ""
        if tokenizer.chat_template:
            self._source = str(self._tokenizer.get_chat_template())
            if "strftime_now" in self._source:
                self._source = _FIXED_DATE + self._source

    def parts(self, roles: Sequence[str]) -> list[str]:
        """What stands before, between and after the contents of messages with these roles.

        One part more than there are messages. A template without a system role gets the system
        text as the opening of the first user turn.

        Raises:
            InvalidRequest: the template refuses the roles, or drops, repeats or reorders contents.
        """
        marks = [_MARK.format(i) for i in range(len(roles))]
        turns = list(zip(roles, marks, strict=True))
        try:
            return _cut(self._render(turns), marks)
        except InvalidRequest:
            if list(roles[:2]) != ["system", "user"]:
                raise
        merged = [("user", f"{marks[0]}\n\n{marks[1]}"), *turns[2:]]
        return _cut(self._render(merged), marks)

    def takes(self, roles: Sequence[str]) -> bool:
        """Whether a conversation of these roles can be laid out."""
        if not self._source and not set(roles) <= set(_PLAIN_NAMES):
            return False
        try:
            self.parts(roles)
        except InvalidRequest:
            return False
        return True

    def _render(self, turns: Sequence[tuple[str, str]]) -> str:
        if not self._source:
            return _render_plain(turns, self._tokenizer.bos_token or "")
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [{"role": role, "content": content} for role, content in turns],
                    chat_template=self._source,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except Exception as error:  # templates raise what they like; jinja2 wraps it
            raise InvalidRequest(
                f"messages: the model's chat template refuses the roles {[r for r, _ in turns]}: "
                f"{error}. Hint: user and assistant turns in alternation, the user's last.",
                param="messages",
            ) from error


def _cut(rendered: str, marks: Sequence[str]) -> list[str]:
    parts, found = [], True
    for mark in marks:
        before, separator, rendered = rendered.partition(mark)
        parts.append(before)
        found = found and bool(separator)
    parts.append(rendered)
    if not found or any(mark in part for mark in marks for part in parts):
        raise InvalidRequest(
            "messages: the model's chat template drops, repeats or reorders a message. Hint: use "
            "one system message first, then user and assistant turns in alternation.",
            param="messages",
        )
    return parts


def _render_plain(turns: Sequence[tuple[str, str]], bos: str) -> str:
    """A layout for models without a chat template."""
    return bos + "\n\n".join(_PLAIN_NAMES[role] + text for role, text in turns) + "\n\nAnswer:"


class PartTokenizer:
    """Tokenises template parts, which may hold special tokens, and contents, which may not.

    `control_parts` are template parts: whatever added token occurs in them is a control token, and
    kept out of contents even if the tokenizer does not call it special. Thread-safe: contents have
    a tokenizer of their own, because transformers switches the reading of special tokens on the
    tokenizer itself, and two threads would switch it under each other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_parts: Sequence[str]) -> None:
        self._tokenizer: Any = tokenizer
        self._contents: Any = copy.deepcopy(tokenizer)
        self._bos = _bos_to_add(tokenizer)
        added = tokenizer.added_tokens_decoder
        # Gemma has added tokens for runs of line feeds: templates use them, and so do texts
        used = {i for part in control_parts for i in self.template(part)}
        used -= {i for i, token in added.items() if token.content.isspace()}
        self._control = {i for i, token in added.items() if token.special or i in used}
        self._control.discard(tokenizer.unk_token_id)  # any text may hold the unknown
        self._contents.add_tokens(
            [_special(added[i]) for i in self._control if not added[i].special],
            special_tokens=True,
        )

    def opening(self, text: str) -> list[int]:
        """Ids of the part that opens a prompt, with one BOS if the tokenizer begins texts so."""
        ids = self.template(text)
        if self._bos is None or ids[:1] == [self._bos]:
            return ids
        return [self._bos, *ids]

    def template(self, text: str) -> list[int]:
        """Ids of a part of the template, special tokens read as such."""
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)
        return list(encoded["input_ids"])

    def raw(self, text: str) -> list[int]:
        """Ids of a whole prompt that was made elsewhere: special tokens are read as such.

        Raises:
            InvalidRequest: not valid Unicode, or nothing.
        """
        _require_unicode(text, "prompt")
        ids = self.opening(text)
        if not ids:
            raise InvalidRequest.of("prompt", text, "one token or more", "write a prompt")
        return ids

    def content(self, text: str, field: str = "messages") -> list[int]:
        """Ids of a text that somebody wrote; the name of a special token is plain text in it.

        Args:
            text: any Unicode text, also empty.
            field: the request field it came in, for errors.

        Raises:
            InvalidRequest: not valid Unicode, or a tokenizer that has its special tokens among its
                ordinary words (some Unigram models) makes one of the text.
        """
        _require_unicode(text, field)
        encoded = self._contents(text, add_special_tokens=False, split_special_tokens=True)
        ids = list(encoded["input_ids"])
        if found := self._control.intersection(ids):
            token = self._tokenizer.convert_ids_to_tokens(min(found))
            raise InvalidRequest.of(
                field, token, "text without the model's special tokens", "remove that text"
            )
        return ids

    def checked(self, token_ids: Sequence[int], text: str) -> Sequence[int]:
        """Ids that were made of `text` elsewhere, made anew if they hold a control token."""
        return token_ids if self._control.isdisjoint(token_ids) else self.content(text, "documents")


def _require_unicode(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest.of(
            field, text[error.start : error.end], "valid Unicode", "drop half surrogate pairs"
        ) from error


def _special(token: Any) -> AddedToken:
    return AddedToken(
        token.content, special=True, normalized=token.normalized,
        single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
    )  # fmt: skip


def _bos_to_add(tokenizer: Any) -> int | None:
    """The BOS id if this tokenizer opens every text with it; templates may already hold it."""
    opening = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token_id if opening == [tokenizer.bos_token_id] else None
