"""How text is cut into words before a tokenizer makes pieces of them: as the model's files say.

transformers (5.24) builds tokenizers of some class names anew from the words and merges, and cuts
as that class does, whatever tokenizer.json says; of a GGUF file it follows the rules that it knows,
and cuts as GPT-2 does for all others. Either way a model is given tokens it was not trained on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import structlog
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

log = structlog.get_logger(__name__)

_RULE = "tokenizer.ggml.pre"
# llama.cpp's names: those that cut off each digit and then cut as GPT-2 does, and that rule alone
_DIGITS_FIRST = {"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"}
_AS_GPT2 = {"gpt-2", "granite-docling", "jais", "mpt", "olmo", "trillion"}


def cut_as_file_says(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Let a tokenizer cut and normalise text as its tokenizer.json does.

    Those that are neither byte-level nor of word pieces are left as transformers made them: there
    it mends what old files say of blanks. So are the switches of BERT's normaliser, which are read
    from tokenizer_config.json in all versions.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not file.is_file():
        return
    own = Tokenizer.from_file(str(file))
    if not _is_byte_level(own) and not isinstance(own.model, models.WordPiece):
        return
    for part in ("pre_tokenizer", "normalizer"):
        said = getattr(own, part)
        if _told(said) != _told(getattr(backend, part)) and not isinstance(
            said, normalizers.BertNormalizer
        ):
            setattr(backend, part, said)


def cut_as_gguf_says(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    """Let a tokenizer read from a GGUF file cut text by the rule that the file names."""
    from gguf import GGUFReader

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    field = GGUFReader(gguf).fields.get(_RULE)
    plain = isinstance(getattr(backend, "pre_tokenizer", None), pre_tokenizers.ByteLevel)
    if field is None or not plain or field.contents() in _AS_GPT2:
        return  # nothing is said, transformers knew the rule, or it is the one that it fell back on
    rule = field.contents()
    if rule in _DIGITS_FIRST:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
        return
    log.warning(
        "tokenizer_rule_unknown", source=gguf.name, rule=rule, action="cut as GPT-2 does",
        note="a folder with the model's tokenizer.json is cut as that says",
    )  # fmt: skip


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    rule = _told(tokenizer.pre_tokenizer)
    steps = rule.get("pretokenizers", [rule]) if rule else []
    return any(step["type"] == "ByteLevel" for step in steps)


def _told(part: Any) -> Any:
    """A part of a tokenizer as tokenizer.json has it."""
    return None if part is None else json.loads(part.__getstate__())
