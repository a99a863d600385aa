"""Codecs of stored chunks: bytes, speed, error of K and V, drift of answers; on real KV of a model.

    python benchmarks/bench_codec.py --model FOLDER --set hotpotqa --questions 24

Bytes, speed and error are of bfloat16 KV of the questions' passages: bytes as a share of that KV,
GB of it a second of one core's time (encoding and decoding by turns over all codecs, median of
five), and the error of K before RoPE and of V relative to their norm. `basis` and `joint`, of five
layers, are fitted to
passages of other questions.

Drift is that of the model in its own number type, every chunk read through the codec: mean KL to
full recompute along its answer, without repair and with `question` at `--budget`. Both are compared
with `raw` question by question: the mean difference, and the ratio of means, with 95 % intervals
(bootstrap over questions).

One line per question goes to `--work` (it holds text of the set: not to be committed): a run can be
stopped and resumed, with more questions too. Only the JSON line at the end is a result; with
`--minutes` it is of the questions that were answered by then.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import numpy as np
import torch
from bench_quality import asked, question_settings
from lab import Lab
from reporting import command_line, emit, surroundings

from chunkcache import ChunkCache
from chunkcache.codec_spec import parse_codec
from chunkcache.config import EMBEDDED_MODEL, RepairSettings
from chunkcache.cores import one_core
from chunkcache.evaluate.drift import drift_between
from chunkcache.evaluate.quality.facts import installation_facts
from chunkcache.evaluate.quality.results import ResultsFile
from chunkcache.evaluate.quality.summary import bootstrap
from chunkcache.repair import policy_named
from chunkcache.store.codec import codec_named, read_through
from chunkcache.store.codec.basis import fit_basis, write_basis
from chunkcache.store.codec.joint import fit_joint_basis, write_joint_basis
from chunkcache.store.codec.layers import decode_layers, encode_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chunkcache.chunk import ChunkKV
    from chunkcache.engine.prompt import Prompt
    from chunkcache.evaluate.quality import Interval, Question
    from chunkcache.store.codec.base import Codec

CODECS = (
    "raw", "zstd", "int8", "int4", "zstd(over=int4)", "bits(k=3,v=4,group=64)",
    "bits(k=2,v=3,group=64)", "gear(bits=2)", "mikv(low=2)", "basis(k=3,v=4.7)", "basis(k=2,v=3.5)",
    "basis(k=1,v=2.75)", "joint(bits=1.9)",
)  # fmt: skip
TURNS = 5
FIT_QUESTIONS = 12
TOGETHER = 5
RESAMPLES = 2000


def coded(codec: Codec, record: ChunkKV) -> list[bytes]:
    """A record's layers, coded."""
    return list(encode_layers(codec, record.kv, record.stats))


def restored(codec: Codec, record: ChunkKV, layers: Sequence[bytes]) -> torch.Tensor:
    """The KV of a record whose layers were coded."""
    kv = torch.empty_like(record.kv)
    decode_layers(codec, [memoryview(layer) for layer in layers], kv)
    return kv


def costs(codecs: dict[str, Codec], records: list[ChunkKV]) -> dict[str, dict[str, float]]:
    """Bytes, rates and errors of every codec on the same KV, in bfloat16."""
    records = [replace(record, kv=record.kv.to(torch.bfloat16)) for record in records]
    plain = sum(record.kv.numel() * 2 for record in records)
    seconds: dict[tuple[str, str], list[float]] = {}
    found: dict[str, dict[str, float]] = {}
    for turn in range(TURNS + 1):
        for name, codec in codecs.items():
            began = time.process_time()
            layers = [coded(codec, record) for record in records]
            encoded_at = time.process_time()
            back = [restored(codec, r, ls) for r, ls in zip(records, layers, strict=True)]
            ended_at = time.process_time()
            if not turn:  # only warms up
                found[name] = {
                    "share": sum(len(layer) for ls in layers for layer in ls) / plain,
                    **errors(records, back),
                }
                continue
            seconds.setdefault((name, "encode"), []).append(encoded_at - began)
            seconds.setdefault((name, "decode"), []).append(ended_at - encoded_at)
    for (name, verb), values in seconds.items():
        found[name][f"{verb}_gb_per_s"] = plain / statistics.median(values) / 1e9
    return found


def errors(records: list[ChunkKV], back: list[torch.Tensor]) -> dict[str, float]:
    """Norm of the difference as a share of the norm, of K and of V."""
    sums = np.zeros((2, 2))
    for record, kv in zip(records, back, strict=True):
        was, now = record.kv.float(), kv.float()
        for part in (0, 1):
            sums[part, 0] += float((now[:, part] - was[:, part]).square().sum())
            sums[part, 1] += float(was[:, part].square().sum())
    key, value = np.sqrt(sums[:, 0] / sums[:, 1])
    return {"key_error": float(key), "value_error": float(value)}


def drifts(
    lab: Lab, prompt: Prompt, codecs: dict[str, Codec], records: dict[int, ChunkKV], budget: float
) -> dict[str, dict[str, float]]:
    """Mean KL of one prompt, by codec, without and with repair; once for what reads alike."""
    none, question = (policy_named(name, RepairSettings()) for name in ("none", "question"))
    full = lab.answer(prompt, {}, none, 0.0, keep_logits=True)
    assert full.step_logits is not None
    found: dict[str, dict[str, float]] = {}
    for name, codec in codecs.items():
        below = str(parse_codec(codec.name).over)
        alike = next((n for n in found if codecs[n].name == below), None)
        if alike is not None:
            found[name] = found[alike]
            continue
        read = {index: read_through(codec, record) for index, record in records.items()}
        for way, policy, share in (("alone", none, 0.0), ("repaired", question, budget)):
            outcome = lab.answer(prompt, read, policy, share, forced_ids=full.token_ids)
            assert outcome.step_logits is not None
            kl = drift_between(full.step_logits, outcome.step_logits).mean_kl
            found.setdefault(name, {})[way] = kl
    return found


def measured_lines(
    lab: Lab, cache: ChunkCache, questions: list[Question], codecs: dict[str, Codec],
    given: argparse.Namespace,
) -> list[dict[str, dict[str, float]]]:  # fmt: skip
    """Drifts of every question, those of an earlier run of the same as they were found then."""
    facts = {
        "codecs": list(given.codecs), "budget": given.budget, "passages": given.passages,
        "seed": given.seed, "fit_questions": FIT_QUESTIONS, **installation_facts(cache),
    }  # fmt: skip
    name = f"codec-{Path(given.model).name.replace(':', '-')}-{given.set}-{given.split}.jsonl"
    lines: list[dict[str, dict[str, float]]] = []
    until_s = time.monotonic() + 60 * given.minutes
    with ResultsFile(given.work / name, facts) as results:
        known = results.known(questions)
        for number, question in enumerate(questions, start=1):
            line = known.get(question.id)
            if line is None and lines and time.monotonic() > until_s:
                break
            if line is None:
                prompt = lab.prompt(question)
                found = drifts(lab, prompt, codecs, lab.records(prompt), given.budget)
                asked_of = {"id": question.id, "question": question.text}
                gold = list(question.answers)
                line = results.append(question, {**asked_of, "gold": gold, "drifts": found})
            lines.append(line["drifts"])
            shown = {name: round(drift["repaired"], 4) for name, drift in lines[-1].items()}
            print(number, shown, flush=True)
    return lines


def ratio_of_means(values: Sequence[float], reference: Sequence[float]) -> Interval:
    """Mean of one over mean of the other, paired, with its 95 % interval."""
    pair = np.array([values, reference])
    draw = np.random.default_rng(0).integers(0, pair.shape[1], (RESAMPLES, pair.shape[1]))
    above, below = pair[:, draw].mean(axis=2)
    low, high = np.percentile(above / below, [2.5, 97.5])
    mean = pair.mean(axis=1)
    return float(mean[0] / mean[1]), float(low), float(high)


def compared(lines: list[dict[str, dict[str, float]]], name: str) -> dict[str, Any]:
    """Drift of a codec: its mean, and beside raw."""
    said: dict[str, Any] = {}
    for way in ("alone", "repaired"):
        own = [line[name][way] for line in lines]
        raw = [line["raw"][way] for line in lines]
        said[f"kl_{way}"] = bootstrap(own)
        said[f"kl_{way}_less_raw"] = bootstrap([a - b for a, b in zip(own, raw, strict=True)])
        said[f"kl_{way}_times_raw"] = ratio_of_means(own, raw)
    return said


def all_codecs(names: Sequence[str], records: list[ChunkKV], folder: Path) -> dict[str, Codec]:
    """By the names given on the command line; those with a basis get one fitted to `records`."""
    digests = {"basis": write_basis(fit_basis(records), folder)}
    if any(name.startswith("joint") for name in names):
        digests["joint"] = write_joint_basis(fit_joint_basis(records, TOGETHER), folder)
    made = {}
    for name in ("raw", *(n for n in names if n != "raw")):
        whole = name
        for kind, digest in digests.items():
            whole = whole.replace(f"{kind}(", f"{kind}(file={digest},")
        made[name] = codec_named(whole, folder)
    return made


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line a codec."""
    print(f"{'codec':<26}{'of bf16':>9}{'enc GB/s':>9}{'dec':>7}{'K error':>9}{'V error':>9}"
          f"{'alone':>8}{'times raw':>19}{'repaired':>10}{'times raw':>19}")  # fmt: skip
    for row in rows:
        print(
            f"{row['codec']:<26}{row['share']:>9.3f}{row['encode_gb_per_s']:>9.2f}"
            f"{row['decode_gb_per_s']:>7.2f}{row['key_error']:>9.4f}{row['value_error']:>9.4f}"
            f"{row['kl_alone'][0]:>8.4f}{_shown(row['kl_alone_times_raw']):>19}"
            f"{row['kl_repaired'][0]:>10.4f}{_shown(row['kl_repaired_times_raw']):>19}"
        )


def _shown(interval: Interval) -> str:
    mean, low, high = interval
    return f"{mean:.2f} [{low:.2f},{high:.2f}]"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="as model.name")
    parser.add_argument("--set", default="hotpotqa", help="name of a file in the qa folder")
    parser.add_argument("--split", default="report", choices=("tune", "report"))
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=math.inf, help="then no new question")
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--codecs", nargs="+", default=list(CODECS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    return parser.parse_args()


def main() -> int:
    """Fit, measure, print."""
    given = arguments()
    others, questions = asked(given, "tune"), asked(given, given.split)
    if others is None or questions is None:
        return 0
    others, questions = others[-FIT_QUESTIONS:], questions[: given.questions]
    with (
        tempfile.TemporaryDirectory() as home,
        ChunkCache(question_settings(Path(home), given.model)) as cache,
    ):
        lab = Lab(cache)
        fitted = [record for q in others for record in lab.records(lab.prompt(q)).values()]
        codecs = all_codecs(given.codecs, fitted, Path(home))
        lines = measured_lines(lab, cache, questions, codecs, given)
        sample = list(lab.records(lab.prompt(questions[0])).values())
        with one_core():
            measured = costs(codecs, sample)
        model, dtype = cache.model_id, cache.runtime.model.geometry.dtype
    rows = [{"codec": n, **measured[n], **compared(lines, n)} for n in codecs]
    print_table(rows)
    emit(
        {
            "benchmark": "codec", "command": command_line(), "model": model, "dtype": dtype,
            "set": given.set, "split": given.split, "seed": given.seed, "questions": len(lines),
            "passages": given.passages, "budget": given.budget,
            "chunk_tokens": [record.num_tokens for record in sample],
            "fitted_tokens": sum(record.num_tokens for record in fitted), "rows": rows,
            **surroundings("transformers", "chunkcache", "zstandard"),
        },
        given.out,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
