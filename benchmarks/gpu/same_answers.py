"""Small random models on the device and on the CPU: the gate, greedy answers, drift in bf16.

    python benchmarks/gpu/same_answers.py [--device cuda] [--only MODEL ...] [--out FILE]

In fp32 the tokens of both are the same, unless two logits are closer than rounding; the largest
difference of first logits is said beside. One model is plain, one has layers without positions
(SmolLM3), one has windows, soft-caps and factors at both ends (Gemma 2), one sinks (gpt-oss).
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolLM3Config,
)

sys.path.insert(0, str(Path(__file__).parent.parent))  # its neighbours are the other benchmarks'

from reporting import command_line, emit, surroundings

from chunkcache.engine.gate import run_gate
from chunkcache.engine.model import wrap_model
from chunkcache.engine.trial import Trial, long_lengths

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 4, "vocab_size": 1024, "head_dim": 64,
    "max_position_embeddings": 8192, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layer_interval=4),
    "gemma2": Gemma2Config(**SIZES, sliding_window=600, query_pre_attn_scalar=64),
    "gpt_oss": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2,
                            sliding_window=600),
}  # fmt: skip
TOKENS = 2048


def answers(network: Any, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, Any]]:
    """First logits of a repaired prompt, and what the gate finds there."""
    nobodys = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    made = copy.deepcopy(network).to(device=device, dtype=dtype)
    model = wrap_model(made, nobodys, fingerprint=b"same", name="same")
    verdict = run_gate(model)
    with Trial(model, long_lengths(TOKENS)) as trial:
        logits = trial.repaired_logits()
    found = {"reuses": verdict.reuses, "problems": list(verdict.problems)}
    return logits.float().cpu(), {**found, "figures": verdict.figures}


def main() -> int:
    """Compare, print; 1 if a model is not served or differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--out", type=Path, help="append the JSON line to this file")
    given = parser.parse_args()
    all_right = True
    for name in given.only:
        config = CONFIGS[name]
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        here, _ = answers(network, "cpu", torch.float32)
        there, gate = answers(network, given.device, torch.float32)
        narrow, narrow_gate = answers(network, given.device, torch.bfloat16)
        kl = float(
            torch.nn.functional.kl_div(
                narrow.log_softmax(-1), there.log_softmax(-1), log_target=True, reduction="sum"
            )
        )
        difference = float((here - there).abs().max())
        all_right &= gate["reuses"] and difference < 1e-2
        emit(
            {
                "benchmark": "same_answers", "command": command_line(), "seed": 0,
                "device": given.device, "model": name, "fp32_difference": difference,
                "same_token": bool(here.argmax() == there.argmax()),
                "bf16_kl": kl, "fp32_gate": gate, "bf16_gate": narrow_gate,
                **surroundings("transformers"),
            },
            given.out,
        )  # fmt: skip
        print(
            f"{name:10} fp32 differs by {difference:.1e}, bf16 by {kl:.1e} nats, "
            f"gates {gate['reuses']} {narrow_gate['reuses']}",
            flush=True,
        )
    return int(not all_right)


if __name__ == "__main__":
    sys.exit(main())
