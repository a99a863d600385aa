"""A small real tokenizer, a catalog on disk, what is built on them, and what goes into them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from chunkcache.chunk import Chunk
from chunkcache.config import RetrievalSettings
from chunkcache.retrieval.catalog import Catalog
from chunkcache.retrieval.documents import Document, DocumentKind
from chunkcache.retrieval.embedder import HashingEmbedder
from chunkcache.retrieval.ingest import Ingestor
from chunkcache.retrieval.retriever import Retriever
from chunkcache.retrieval.splitter import Splitter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.",
    "Use os.path.join to join paths, and json.dumps to serialise a value; both are documented.",
    "A cache keeps what was computed before, so that it need not be computed again and again.",
]


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as most decoders have it; every text has tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(400)


@pytest.fixture(scope="session")
def other_tokenizer() -> PreTrainedTokenizerFast:
    """The same kind with another vocabulary: the same text has other ids."""
    return make_tokenizer(300)


@pytest.fixture(scope="session")
def tiny_weights() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=1,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return BertModel(config).eval()


@pytest.fixture
def folder(tiny_weights: BertModel, tokenizer: Any, tmp_path: Path) -> Any:
    """A sentence-transformers folder with a tiny random model; `folder(name, file=content, …)`."""

    def make(name: str = "model", **files: Any) -> Path:
        path = tmp_path / name
        tiny_weights.save_pretrained(path)
        tokenizer.save_pretrained(path)
        for file, content in files.items():
            target = path / {"pooling": "1_Pooling/config.json"}.get(file, f"{file}.json")
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(content))
        return path

    return make


@pytest.fixture
def splitter(tokenizer: Any) -> Splitter:
    return Splitter(tokenizer, 24)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = Catalog(tmp_path / "home" / "catalog.sqlite")
    yield catalog
    catalog.close()


@pytest.fixture
def retrieval() -> Callable[..., RetrievalSettings]:
    """Settings that need no weights."""

    def make(**changes: Any) -> RetrievalSettings:
        return RetrievalSettings(**{"embedder": "hashing:256", "chunk_tokens": 24, **changes})

    return make


class CountingEmbedder(HashingEmbedder):
    """Counts the texts it is asked to embed."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__(dim)
        self.texts: list[str] = []

    def embed(self, texts: Any) -> Any:
        self.texts += texts
        return super().embed(texts)


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder()


@pytest.fixture
def ingestor(
    catalog: Catalog, splitter: Splitter, embedder: CountingEmbedder, retrieval: Any
) -> Ingestor:
    return Ingestor(catalog, splitter, embedder, retrieval())


@pytest.fixture
def retriever(
    catalog: Catalog, splitter: Splitter, embedder: CountingEmbedder, tmp_path: Path, retrieval: Any
) -> Retriever:
    return Retriever(catalog, embedder, tmp_path / "home" / "indexes", retrieval(), splitter)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


SPACE = "space one"


def make_chunk(number: int, document_id: str = "doc-a", words: str = "text") -> Chunk:
    text = f"{words} {number}"
    return Chunk(
        chunk_id=f"{document_id}.{number}", token_ids=(number, 2**31 + 7, 0), text=text,
        document_id=document_id, title="A title", url="https://e.org", start_char=number * 10,
        end_char=number * 10 + len(text),
    )  # fmt: skip


def put_document(
    catalog: Catalog,
    document_id: str = "doc-a",
    numbers: Any = range(3),
    *,
    tenant: str = "t",
    collection: str = "default",
    sha256: str = "aa",
    splitter: str = "s1",
    title: str = "A title",
) -> Any:
    document = Document(
        document_id, title, "https://e.org", sha256, 99, DocumentKind.PLAIN, "whole text",
        {"year": 2024.0, "open": True},
    )  # fmt: skip
    chunks = [make_chunk(n, document_id) for n in numbers]
    vectors = np.array([[n, 1.0, 0.5] for n in numbers], np.float32).reshape(-1, 3)
    return catalog.put_document(
        tenant, collection, document, chunks, vectors, splitter=splitter, space=SPACE
    )


@pytest.fixture
def chunk() -> Any:
    """`chunk(number, document_id)`: a chunk with every field filled."""
    return make_chunk


@pytest.fixture
def put() -> Any:
    """`put(catalog, document_id, numbers, …)`: a document whose vectors tell their chunk."""
    return put_document


@pytest.fixture
def long_text() -> Any:
    """`long_text(1, 2)`: numbered paragraphs, each a chunk."""
    line = "The quick brown fox jumps over the lazy dog number {}. "
    return lambda *numbers: "\n\n".join(line.format(n) for n in numbers)


@pytest.fixture
def texts() -> Any:
    """`texts(catalog)`: the texts of all chunks."""

    def read(catalog: Catalog, tenant: str = "public", collection: str = "default") -> list[str]:
        return [chunk.text for chunk in catalog.chunks(tenant, collection)]

    return read


TOPICS = {
    "paths.txt": "Use os.path.join to join path segments.",
    "json.txt": "Serialise a value with json.dumps.",
    "fox.txt": "The quick brown fox jumps.",
    "dog.txt": "The lazy dog sleeps all day.",
    "cache.txt": "A cache keeps what was computed before.",
}


@pytest.fixture
def topics() -> dict[str, str]:
    """Short texts about different things, by file name."""
    return TOPICS


@pytest.fixture
def fill() -> Any:
    """`fill(ingestor)`: ingest the topics."""

    def run(ingestor: Ingestor, **where: str) -> None:
        for name, text in TOPICS.items():
            ingestor.ingest_bytes(name, text.encode(), **where)

    return run


@pytest.fixture
def big() -> Any:
    """`big(ingestor)`: enough chunks that the index is worth saving."""

    def run(ingestor: Ingestor, count: int = 300, **where: str) -> None:
        lines = [{"text": f"note {n} about topic{n % 7}"} for n in range(count)]
        ingestor.ingest_bytes("big.jsonl", "\n".join(map(json.dumps, lines)).encode(), **where)

    return run


@pytest.fixture
def make_retriever(
    catalog: Catalog, splitter: Splitter, embedder: Any, tmp_path: Path, retrieval: Any
) -> Any:
    """A retriever with other settings, over the same catalog and index folder."""

    def make(*, saves: bool = True, **changes: Any) -> Retriever:
        folder = tmp_path / "home" / "indexes"
        return Retriever(catalog, embedder, folder, retrieval(**changes), splitter, saves=saves)

    return make


@pytest.fixture
def index_files() -> Any:
    """`index_files(tmp_path)`: the index files there are."""
    return lambda tmp_path: sorted((tmp_path / "home" / "indexes").rglob("*.idx"))


def pool_one_by_one(folder: str, texts: list[str], max_tokens: int) -> np.ndarray:
    """The twin: no batches, no padding, no mask; the mean of all the token vectors there are."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
    vectors = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids or [0]])).last_hidden_state[0].numpy()
        mean = hidden.mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.stack(vectors)


@pytest.fixture(scope="session")
def mean_pool_one_by_one() -> Any:
    """The slow twin of `embed`."""
    return pool_one_by_one


def write_pdf(
    *pages: str, title: str = "", trailer: str = "", rotate: int = 0, box: str = "0 0 612 792",
    annotations: Sequence[str] = (), catalog: str = "",
) -> bytes:  # fmt: skip
    """A PDF written by hand. A page is a line of text, or, if it has an operator, its content.

    Every page has the annotations; they are objects from `5 + 2 * len(pages)` on.
    """
    first = 5 + 2 * len(pages)
    shown = " ".join(f"{first + n} 0 R" for n in range(len(annotations)))
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids ["
        + " ".join(f"{5 + 2 * n} 0 R" for n in range(len(pages)))
        + "] >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"<< /Title ({title}) >>",
    ]
    for number, text in enumerate(pages):
        drawn = text if text.startswith(("BT", "BI", "q")) or not text else show([text])
        objects += [
            f"<< /Type /Page /Parent 2 0 R /Rotate {rotate} /MediaBox [0 0 612 792] "
            f"/CropBox [{box}] /Contents {6 + 2 * number} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> /Annots [{shown}] >>",
            f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        ]
    objects += annotations
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode("latin-1")
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size "
    end += f"{len(objects) + 1} /Root 1 0 R /Info 4 0 R {trailer} >>\nstartxref\n{len(data)}\n"
    return data + end.encode() + b"%%EOF\n"


def show(lines: list[str], matrix: str = "1 0 0 1 72 700") -> str:
    """The content of a page that has these lines, from where the matrix puts them."""
    drawn = " T* ".join(f"({line}) Tj" for line in lines)
    return f"BT /F1 11 Tf 14 TL {matrix} Tm {drawn} ET"


@pytest.fixture(scope="session")
def pdf() -> Any:
    """`pdf("page one", "page two", title=…)`: a PDF."""
    return write_pdf


@pytest.fixture(scope="session")
def lines_of_pdf() -> Any:
    """`lines_of_pdf(["a", "b"])`: the content of a page with two lines."""
    return show
