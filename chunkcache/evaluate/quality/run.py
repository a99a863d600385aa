"""The evaluation: every question in full, then from the cache in every arm."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from chunkcache.codec_spec import is_lossless
from chunkcache.evaluate.compare import cached_answer, full_answer, lone_answer
from chunkcache.evaluate.quality.facts import arm_names, corpus_digest, installation_facts
from chunkcache.evaluate.quality.results import Line, ResultsFile
from chunkcache.evaluate.quality.scores import exact_match, is_unanswered, rouge_l, token_f1
from chunkcache.protocol import AnswerRequest, ChunkCacheOptions, Message, Sampling
from chunkcache.store import bases_path
from chunkcache.store.codec import codec_named

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chunkcache.evaluate.compare import Comparison, Reference
    from chunkcache.evaluate.quality.arms import Arm
    from chunkcache.evaluate.quality.facts import Facts
    from chunkcache.evaluate.quality.questions import Question
    from chunkcache.service import ChunkCache
    from chunkcache.store.codec.base import Codec

# all that it is asked for is that the chunks' records are stored
_STORING = {"sampling": Sampling(max_tokens=1), "options": ChunkCacheOptions(policy="none")}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is asked of whom. `suffix` follows every question, e.g. to ask for short answers."""

    arms: tuple[Arm, ...]
    max_tokens: int = 24
    suffix: str = ""
    top_k: int | None = None  # passages per question: retrieved, or the first of the given ones
    collection: str = "default"
    tenant: str = "public"


@dataclass(frozen=True, slots=True)
class Beside:
    """Another cache of the same model, whose arms are measured against the same references.

    Its arms are listed under `ARM NAME`: how a setting, such as what chunks are born after, is
    compared question by question.
    """

    name: str
    cache: ChunkCache
    arms: tuple[Arm, ...]


def facts_of(
    cache: ChunkCache,
    questions: Sequence[Question],
    evaluation: Evaluation,
    beside: Sequence[Beside] = (),
) -> Facts:
    """All that results depend on but the questions: lines made under other facts are not mixed in.

    Of the collection only where a question brings no passages of its own.
    """
    retrieves = any(question.contexts is None for question in questions)

    def of(one: ChunkCache, arms: Sequence[Arm]) -> Facts:
        corpus = corpus_digest(one, evaluation.tenant, evaluation.collection) if retrieves else None
        return {"arms": arm_names(arms), "corpus": corpus, **installation_facts(one)}

    return {
        **asdict(evaluation),
        **of(cache, evaluation.arms),
        "beside": {other.name: of(other.cache, other.arms) for other in beside},
    }


def evaluate(
    cache: ChunkCache,
    questions: Sequence[Question],
    evaluation: Evaluation,
    out: Path,
    *,
    beside: Sequence[Beside] = (),
    on_progress: Callable[[int, int, float], None] = lambda done, total, eta_s: None,
) -> list[Line]:
    """Evaluate all questions; returns their lines, in order.

    Every finished question is one line of `out`, so that a run may be stopped and resumed: lines
    that are there already are taken as they are, if all that they depend on is the same.

    Raises:
        InvalidRequest: `out` holds lines of another evaluation, or another run is writing to it.
    """
    done: list[Line] = []
    began, fresh = time.perf_counter(), 0
    with ResultsFile(out, facts_of(cache, questions, evaluation, beside)) as results:
        known = results.known(questions)
        for index, question in enumerate(questions):
            line = known.get(question.id)
            if line is None:
                found = evaluate_question(cache, question, evaluation, beside)
                line = results.append(question, found)
                fresh += 1
            done.append(line)
            left = len(questions) - index - 1
            each_s = (time.perf_counter() - began) / max(1, fresh)
            on_progress(index + 1, len(questions), left * each_s)
    return done


def evaluate_question(
    cache: ChunkCache, question: Question, evaluation: Evaluation, beside: Sequence[Beside] = ()
) -> Line:
    """One question: without documents, in full, and in every arm.

    The reference and the chunk KV are computed once and shared by all arms, which read it as it
    comes from the store: through its codec. No answer takes or leaves an exact prefix: what an arm
    comes to does not depend on what was asked before it.
    """
    request = _request(question, evaluation)
    bare = lone_answer(cache, request.model_copy(update={"documents": [], "top_k": None}))
    reference = full_answer(cache, request)
    arms: dict[str, Line] = {}
    for where, asks, suffix in [
        (cache, evaluation.arms, ""),
        *((other.cache, other.arms, f" {other.name}") for other in beside),
    ]:
        codec = _codec_of(where)
        lone_answer(where, request.model_copy(update=_STORING), codec)
        for arm in asks:
            asked = request.model_copy(update={"options": arm.options})
            found = cached_answer(where, asked, reference, takes_prefix=False, codec=codec)
            arms[arm.name + suffix] = _arm_line(found, reference, question)
    full = reference.answer
    return {
        "id": question.id,
        "question": question.text,
        "gold": list(question.answers),
        "prompt_tokens": full.report.prompt_tokens,
        "chunks": sum(1 for span in full.report.spans if span.kind == "chunk"),
        "full": {
            **_scores(full.text, question),
            "tokens": full.completion_tokens,
            "ttft_ms": full.report.timings.ttft_ms,
        },
        "no_documents": _scores(bare.text, question),
        "arms": arms,
    }


def _codec_of(cache: ChunkCache) -> Codec | None:
    """The lossy codec of the installation: a warm answer has read its chunks through it."""
    name = cache.settings.store.codec
    return (
        None
        if is_lossless(name)
        else codec_named(name, bases_path(cache.settings), cache.settings.cache)
    )


def _request(question: Question, evaluation: Evaluation) -> AnswerRequest:
    contexts = question.contexts
    documents = None if contexts is None else list(contexts[: evaluation.top_k])
    return AnswerRequest(
        messages=[Message(role="user", content=question.text + evaluation.suffix)],
        documents=documents,
        top_k=None if documents is not None else evaluation.top_k,
        tenant=evaluation.tenant,
        collection=evaluation.collection,
        sampling=Sampling(max_tokens=evaluation.max_tokens),
        options=ChunkCacheOptions(),
    )


def _scores(text: str, question: Question) -> Line:
    return {
        "text": text,
        "f1": token_f1(text, question.answers),
        "em": exact_match(text, question.answers),
        "unanswered": is_unanswered(text),
    }


def _arm_line(found: Comparison, reference: Reference, question: Question) -> Line:
    report = found.answer.report
    return {
        **_scores(found.answer.text, question),
        "rouge_l": rouge_l(found.answer.text, reference.answer.text),
        "changed": not found.same_text,
        "first_kl": found.drift.first_kl,
        "mean_kl": found.drift.mean_kl,
        "agreement": found.drift.agreement,
        "repair_ratio": found.outcome.repair_ratio,
        "rows": len(found.outcome.recomputed),
        "residual": found.outcome.residual,
        "predicted_drift": report.predicted_drift,
        "reusable_rows": found.outcome.plan.task.reusable_rows,
        "ttft_ratio": report.timings.ttft_ms / reference.answer.report.timings.ttft_ms,
    }
