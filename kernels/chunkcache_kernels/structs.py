"""The C structures of `native/`, field for field, and the functions that take them."""

from __future__ import annotations

import ctypes as c
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pathlib import Path

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


class ArenaC(c.Structure):
    """`Arena` of attend.h."""

    _fields_ = [
        ("keys", c.c_void_p), ("values", c.c_void_p),
        ("key_scales", c.c_void_p), ("value_scales", c.c_void_p),
        ("layer_numbers", c.c_int64),
        ("layer_key_scales", c.c_int64), ("layer_value_scales", c.c_int64),
        ("type", c.c_int32),
    ]  # fmt: skip


class AttendC(c.Structure):
    """`Attend` of attend.h."""

    _fields_ = [
        ("arenas", c.c_void_p), ("row_positions", c.c_void_p), ("runs", c.c_void_p),
        ("pages", c.c_void_p), ("looks", c.c_void_p), ("key_positions", c.c_void_p),
        ("items", c.c_void_p), ("row_parts", c.c_void_p),
        ("num_rows", c.c_int32), ("num_items", c.c_int32),
        ("heads", c.c_int32), ("kv_heads", c.c_int32), ("dim", c.c_int32),
        ("rotary_dim", c.c_int32), ("cos", c.c_void_p), ("sin", c.c_void_p),
        ("scale", c.c_float), ("softcap", c.c_float), ("window", c.c_int32), ("block", c.c_int32),
        ("parts", c.c_void_p),
    ]  # fmt: skip


class WeightsC(c.Structure):
    """`Weights` of weights.h."""

    _fields_ = [
        ("of", AttendC), ("run_looks", c.c_void_p),
        ("num_runs", c.c_int32), ("context", c.c_int32), ("out", c.c_void_p),
    ]  # fmt: skip


class LayerIOC(c.Structure):
    """`LayerIO` of attend.h."""

    _fields_ = [
        ("query", c.c_void_p), ("out", c.c_void_p),
        ("query_stride", c.c_int64), ("out_stride", c.c_int64),
        ("query_type", c.c_int32), ("out_type", c.c_int32), ("layer", c.c_int32),
        ("sinks", c.c_void_p),
    ]  # fmt: skip


class WeightC(c.Structure):
    """`Weight` of rows.h."""

    _fields_ = [
        ("numbers", c.c_void_p), ("scales", c.c_void_p), ("bias", c.c_void_p),
        ("type", c.c_int32), ("rows", c.c_int32), ("cols", c.c_int32), ("unused", c.c_int32),
    ]  # fmt: skip


class WriteC(c.Structure):
    """`Write` of rows.h."""

    _fields_ = [
        ("slots", c.c_void_p), ("query_norm", c.c_void_p), ("key_norm", c.c_void_p),
        ("eps", c.c_float), ("arena", c.c_int32),
    ]  # fmt: skip


class PlaceC(c.Structure):
    """`Place` of place.c."""

    _fields_ = [
        ("arena", c.c_void_p), ("kv", c.c_void_p), ("pages", c.c_void_p),
        ("cos", c.c_void_p), ("sin", c.c_void_p), ("rows", c.c_void_p),
        ("type", c.c_int32), ("first", c.c_int32), ("layers", c.c_int32),
        ("tokens", c.c_int32), ("heads", c.c_int32), ("dim", c.c_int32), ("rotary_dim", c.c_int32),
        ("plainly", c.c_int32),
    ]  # fmt: skip


class LayerC(c.Structure):
    """`Layer` of engine.c."""

    _fields_ = [
        ("qkv", WeightC), ("out", WeightC), ("gate_up", WeightC), ("down", WeightC),
        ("input_norm", c.c_void_p), ("mlp_norm", c.c_void_p),
        ("query_norm", c.c_void_p), ("key_norm", c.c_void_p),
        ("turned", c.c_int32), ("unused", c.c_int32),
    ]  # fmt: skip


class LayersC(c.Structure):
    """`Layers` of engine.c."""

    _fields_ = [
        ("layers", c.c_void_p), ("first", c.c_int32), ("end", c.c_int32),
        ("count", c.c_int32), ("width", c.c_int32), ("inner", c.c_int32), ("eps", c.c_float),
        ("turned", c.c_void_p), ("still", c.c_void_p), ("slots", c.c_void_p),
        ("arena", c.c_int32), ("unused", c.c_int32),
        ("hidden", c.c_void_p), ("normed", c.c_void_p), ("qkv", c.c_void_p),
        ("attended", c.c_void_p), ("gate_up", c.c_void_p), ("gated", c.c_void_p),
        ("scratch", c.c_void_p),
    ]  # fmt: skip


def open_library(path: Path) -> c.CDLL:
    """The library with its functions' types set. Raises `OSError` where it cannot be loaded."""
    library = c.CDLL(str(path))
    pointer, number = c.c_void_p, c.c_int
    signatures = {
        "team_new": ([number, pointer, pointer], pointer),
        "team_free": ([pointer], None),
        "team_members": ([pointer], number),
        "team_use": ([pointer, number], None),
        "chunkcache_attend": ([pointer] * 4, None),
        "chunkcache_write": ([pointer] * 5, None),
        "chunkcache_scratch_bytes": ([pointer], c.c_int64),
        "chunkcache_weights": ([pointer] * 4, None),
        "chunkcache_weights_scratch_bytes": ([pointer], c.c_int64),
        "chunkcache_product": ([pointer] * 4 + [number], None),
        "chunkcache_norm": ([pointer] * 4 + [c.c_float, number, number, number], None),
        "chunkcache_silu": ([pointer] * 3 + [number, number, number], None),
        "chunkcache_layers": ([pointer, pointer], None),
        "chunkcache_place": ([pointer], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library
