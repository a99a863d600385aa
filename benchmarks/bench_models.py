"""Which kinds of decoder are served: every type transformers knows, built tiny and put to the gate.

    python benchmarks/bench_models.py --out benchmarks/results/bench_models.jsonl

A type is served if the gate passes over a prompt of 2,400 tokens (`chunkcache/engine/gate.py`) and,
beyond what the gate asks, full prefill and a decoded token are transformers' own at 100, 700 and
2,000 tokens: below and above the tiny model's window of 512. docs/reference/models.md is made of
the result (`python docs/build.py`). Sizes are tiny; what decides attention is as each type has it,
or, where a type's own defaults are of no model that people have, as their models have it (`OWN`).
Of types that read images beside text the whole is built, and the part that reads is put to it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import chunkcache  # noqa: F401 - before torch: it tells OpenMP's threads not to spin

# isort: split
import torch
from reporting import command_line, emit, surroundings
from tokenizers import Tokenizer, models
from transformers import CONFIG_MAPPING, PreTrainedTokenizerFast, logging
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from chunkcache.engine.gate import run_gate
from chunkcache.engine.model import loader_of, refuse_unsupported, text_config, wrap_model
from chunkcache.engine.trial import Trial, long_lengths
from chunkcache.errors import UnsupportedModel

LENGTHS = (100, 700, 2000)
TOLERANCE = 1e-3
MOST_NUMBERS = 30_000_000
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "vocab_size": 320, "head_dim": 16, "max_position_embeddings": 4096,
    "sliding_window": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1,
    "n_shared_experts": 1, "attention_chunk_size": 512, "floor_scale": 256,
    "vocab_size_per_layer_input": 320,
}  # fmt: skip
OTHERS: dict[str, Any] = {  # of what sees or hears
    "hidden_size": 32, "embed_dim": 32, "intermediate_size": 48, "num_attention_heads": 2,
    "num_heads": 2, "num_hidden_layers": 2, "depth": 2, "out_hidden_size": 64, "image_size": 28,
    "patch_size": 14, "head_dim": 16, "vocab_size": 320, "mlp_ratio": 2, "hidden_dim": 32,
    "projection_dim": 32, "num_key_value_heads": 2, "deepstack_visual_indexes": [0],
    "output_dim": 64, "vision_output_dim": 32, "num_global_layers": 1,
}  # fmt: skip
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * 2}
HEADS_BY_LAYER = {"global_head_dim": 32, "hidden_size_per_layer_input": 0}
SHARED_KEYS = {
    "global_head_dim": 32, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
HALF_SECTIONS = {**SECTIONS, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
OWN: dict[str, dict[str, Any]] = {
    "lfm2": CONVOLUTIONS, "lfm2_moe": CONVOLUTIONS,
    "gemma4_text": SHARED_KEYS, "gemma4_unified_text": HEADS_BY_LAYER,
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
    },
    "glm4v_text": {"rope_parameters": HALF_SECTIONS},
    "glm4v_moe_text": {"rope_parameters": HALF_SECTIONS},
    "qwen3_vl_moe_text": {"sliding_window": None},  # which its layers would not heed
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip
SHOWN = ("reference", "continuation", "repair_all", "moved", "unrepaired")


def tiny(model_type: str, seed: int) -> Any:
    """A random network of that type; its norms random too, so that one behind a rotation shows."""
    refuse_unsupported(text_config(CONFIG_MAPPING[model_type]()))  # some cannot be made tiny
    config = _sized(CONFIG_MAPPING[model_type], SIZES)
    refuse_unsupported(text_config(config))
    make: Any = loader_of(config)
    with torch.device("meta"):
        numbers = sum(p.numel() for p in make.from_config(config).parameters())
    if numbers > MOST_NUMBERS:
        raise ValueError(f"{numbers / 1e6:.0f} million parameters in parts that have no sizes here")
    torch.manual_seed(seed)
    network = make.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or "sink" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def _sized(make: Any, sizes: dict[str, Any]) -> Any:
    """A configuration of that class, and of all its parts, with tiny sizes."""
    given, told = make(), {}
    for name, part in getattr(make, "sub_configs", {}).items():
        held = getattr(given, name, None)
        if held is None:
            continue
        inner = CONFIG_MAPPING[held.model_type] if part.__name__ == "AutoConfig" else type(held)
        is_text = name in ("text_config", "decoder", "generator", "thinker_config")
        told[name] = _sized(inner, SIZES if is_text else OTHERS).to_dict()
    if _has(given, "kv_lora_rank") and given.kv_lora_rank:
        sizes = {**{k: v for k, v in sizes.items() if k != "head_dim"}, **LATENT}
    if "mrope_section" in (getattr(make, "ignore_keys_at_rope_validation", None) or ()):
        told["rope_parameters"] = SECTIONS
    fixed = {name for name, of in vars(make).items() if isinstance(of, property)}
    told |= {k: v for k, v in sizes.items() if k not in fixed and _has(given, k)}
    return make(**{**told, **OWN.get(getattr(make, "model_type", ""), {})})


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except RuntimeError:  # layers have it, each its own
        return True


def judged(model_type: str, seed: int, kernels: Path) -> dict[str, Any]:
    """What becomes of one type: `served`, `reused`, figures, and the reason if not."""
    try:
        network = tiny(model_type, seed)
    except UnsupportedModel as error:
        return {"verdict": "refused", "reason": _reason(error)}
    except Exception as error:  # whatever a configuration says of sizes it was not made for
        return {"verdict": "not built", "reason": f"{type(error).__name__}: {error}"[:200]}
    nobodys = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    try:
        model = wrap_model(
            network, nobodys, fingerprint=b"tiny", name=model_type, kernel_cache=kernels
        )
    except UnsupportedModel as error:
        return {"verdict": "refused", "reason": _reason(error)}
    except Exception as error:  # of a folder `load_model` would raise it as it is
        return {"verdict": "CRASH", "reason": f"{type(error).__name__}: {error}"[:200]}
    verdict = run_gate(model)
    row: dict[str, Any] = {
        "figures": {name: verdict.figures[name] for name in SHOWN if name in verdict.figures},
        "windows": sorted({f.window for f in model.facts.layers if f.window}),
    }
    if not verdict.reuses:
        return {**row, "verdict": "stopped by the gate", "reason": "; ".join(verdict.problems)}
    with Trial(model, long_lengths(2048)) as trial:
        row["lengths"] = {str(n): trial.differs_by(n) for n in LENGTHS}
    wrong = [n for n, by in row["lengths"].items() if not by <= TOLERANCE]
    if wrong:
        return {**row, "verdict": "WRONG", "reason": f"passed the gate, wrong at {wrong} tokens"}
    return {**row, "verdict": "served"}


def _reason(error: UnsupportedModel) -> str:
    return error.message.split(" has ", 1)[1].split(". chunkcache serves")[0]


def main() -> None:
    """Build, judge, print."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", nargs="*", help="of model; all that transformers knows if none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    everything = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    types = given.types or sorted(everything)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for model_type in types:
            began = time.perf_counter()
            rows[model_type] = row = judged(model_type, given.seed, Path(folder))
            took, reason = time.perf_counter() - began, row.get("reason", "")[:90]
            print(f"{model_type:24} {row['verdict']:20} {took:5.1f} s  {reason}", flush=True)
    counts: dict[str, int] = {}
    for row in rows.values():
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    print(counts)
    emit(
        {
            "benchmark": "models", "command": command_line(), "seed": given.seed,
            "lengths": LENGTHS, "counts": counts, "rows": rows,
            **surroundings("transformers", "chunkcache"),
        },
        given.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
