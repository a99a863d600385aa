"""A tokenizer's tokens as bytes: what log probabilities are shown by and grammars walk over."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import llguidance
import llguidance.hf

from chunkcache.engine.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedTokenizerBase


class Vocabulary:
    """The tokens of one model. Made on first use, which takes some tenths of a second. Thread-safe.

    `eos_ids` are those an answer of the model may end with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Collection[int]) -> None:
        self._tokenizer: Any = tokenizer
        self._eos_ids = eos_ids
        self._lock = threading.Lock()
        self._trie: llguidance.LLTokenizer | None = None
        self._closing: Closing | None = None

    @property
    def trie(self) -> llguidance.LLTokenizer:
        """All tokens by their bytes."""
        with self._lock:
            if self._trie is None:
                own = self._tokenizer.eos_token_id
                eos = own if own in self._eos_ids or not self._eos_ids else min(self._eos_ids)
                self._trie = llguidance.hf.from_tokenizer(self._tokenizer, eos_token=eos)
            return self._trie

    @property
    def closing(self) -> Closing:
        """How forms are closed in these tokens."""
        trie = self.trie
        with self._lock:
            if self._closing is None:
                self._closing = Closing(trie)
            return self._closing

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; of a special token, its name. Empty for an id beyond them."""
        trie = self.trie
        if token_id >= trie.vocab_size or trie.is_special_token(token_id):
            name = self._tokenizer.convert_ids_to_tokens(token_id)
            return str(name).encode() if name is not None else b""
        return trie.decode_bytes([token_id])
