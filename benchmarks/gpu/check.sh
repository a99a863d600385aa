#!/usr/bin/env bash
# All that is to be seen on a GPU, in one command without a network, in less than eight minutes:
#
#     bash benchmarks/gpu/check.sh [FOLDER FOR RESULTS] [FOLDER OF WHEELS]
#
# torch, triton and transformers must be there; what else is needed is installed from the wheels
# (`bash benchmarks/gpu/wheels.sh FOLDER` fetches them beforehand). Every step writes its results as
# it has them, has a time of its own, is killed with all that it started when that is over, and the
# next one runs whatever became of it. The last line says which steps failed; the exit status is how
# many. MOST=SECONDS gives no step more than so many. Warnings are no errors here: versions are others.
set -u
cd "$(dirname "$0")/../.."
results=${1:-build/gpu}; wheels=${2:-build/gpu-wheels}
mkdir -p "$results"
python=${PYTHON:-python3}
export PYTHONPATH=$PWD:$PWD/kernels:$PWD/indexes PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
failed=""; number=0; running=()

run() { # run SECONDS NAME COMMAND...: beside what comes next, until `tell`
  local seconds=$1 name=$2; shift 2
  [ "$seconds" -le "${MOST:-$seconds}" ] || seconds=$MOST
  number=$((number + 1))
  local log=$results/$number-$name
  echo "== $number $name (at most $seconds s)"
  { # what does not end when it is asked to is killed a second later: a device may hold it
    began=$SECONDS; rc=0
    timeout -k 1 "$seconds" "$@" >"$log.log" 2>&1 || rc=$?
    echo "$rc $((SECONDS - began))" >"$log.rc"
  } &
  running+=("$!:$number-$name")
}

tell() { # how all that runs has ended
  local one name rc took
  for one in "${running[@]}"; do
    wait "${one%%:*}"
    name=${one#*:}
    read -r rc took <"$results/$name.rc"
    if [ "$rc" = 0 ]; then
      echo "   $name done in $took s"
    else
      echo "   $name FAILED ($rc) after $took s: $results/$name.log"
      failed="$failed ${name#*-}"
    fi
    grep -m 1 -h decode_not_captured "$results/$name.log" | cut -c1-400 | sed 's/^/   /'
    tail -n 3 "$results/$name.log" | cut -c1-160 | sed 's/^/   /'
  done
  running=()
}

step() { run "$@"; tell; }

if [ -d "$wheels" ]; then
  # a wheel that is read for its files alone names a program it does not need here
  step 30 install $python -m pip install -q --no-index --no-deps --no-compile "$wheels"/*.whl
fi
step 30 device bash -c 'nvidia-smi; '"$python"' -c "import torch, triton, transformers as t; print(torch.__version__, triton.__version__, t.__version__, torch.cuda.is_available())"'

kernels() { # tests of Triton's kernels that compile few of them; side by side, for each compiles on one core
  local pids=() rc=0 part pid
  for part in far: fixed: weights: records: heads: "pages: and bf16 and not chunks" "pages: and bf16 and chunks" \
    "pages: and chunks and not bf16" "pages: and not chunks and not bf16"; do
    $python -m pytest -v -W default -p no:cacheprovider "tests/kernels/test_triton_${part%%:*}.py" \
      -k "($1)${part#*:}" >"$results/kernels-${#pids[@]}.log" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || rc=1; done
  grep -hE "(FAILED|ERROR) |passed|failed" "$results"/kernels-*.log
  return $rc
}
export -f kernels
export python results
# of attention: both number types, int8, int4, pages by head, a window, sinks, caps, one row and many, strided rows; the rest whole
few="bf16 or int8 or int4 or capped or counters or changed_key or logarithm or apart or weights or records or triton_heads or sums or coded or largest"
# What no time is read from runs side by side: nearly all of it is compiling, each on one core. So are
# the benchmarks' own kernels compiled, by a first run whose figures nobody wants.
beside=170
export OMP_NUM_THREADS=2
warm=$results/warm.jsonl
run $beside kernels bash -c "kernels '$few'"
for model in llama smollm3 gemma2 gpt_oss; do
  run $beside "same-answers-$model" $python benchmarks/gpu/same_answers.py --only "$model" --out "$results/same_answers.jsonl"
done
run $beside real-answers $python benchmarks/gpu/real_answers.py --out "$results/real_answers.jsonl"
run $beside warm-kernels $python benchmarks/bench_kernels.py --seconds 0.01 --within 150 --out "$warm"
for shape in llama-3-8b qwen2.5-7b; do
  run $beside "warm-$shape" $python benchmarks/bench_gpu_ttft.py --warm --shape "$shape" --seconds 150 --out "$warm"
done
tell
unset OMP_NUM_THREADS
# with their kernels compiled, one after the other
step 135 ttft $python benchmarks/bench_gpu_ttft.py --seconds 120 --out "$results/bench_gpu_ttft.jsonl"
step 85 bench-kernels $python benchmarks/bench_kernels.py --seconds 0.3 --within 70 --out "$results/bench_kernels.jsonl"
echo "failed:${failed:- none}"
exit "$(wc -w <<<"$failed")"
