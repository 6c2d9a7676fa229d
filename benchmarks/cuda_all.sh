#!/usr/bin/env bash
# Builds, tests and measures the CUDA backend on a machine with a GPU, in under ten minutes and without a network:
#
#     benchmarks/cuda_all.sh [STAGE ...]      all of: build tests sanitizer bits bench
#
# It needs nvcc, a C++ compiler, cmake, ninja, and a Python ($PYTHON, else python3) with pybind11, torch, pytest, hypothesis, typer, rich
# and matplotlib. Results go to $OUT, else to ./cuda-results: a log per stage, JSON of what was measured, stages.tsv, summary.txt. Each
# stage has a time limit of its own within $TOTAL seconds for all; one that fails or runs over does not keep the next from running.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

export PYTHON=${PYTHON:-python3}
export RESULTS=${OUT:-cuda-results}
export BUILD=build/cuda-all
export SITE=$PWD/$BUILD/site # the package as the stages import it
export PYTHONPATH=$SITE PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
TOTAL=${TOTAL:-580}
declare -A LIMITS=([build]=200 [tests]=130 [sanitizer]=70 [bits]=30 [bench]=170)
STAGES=(build tests sanitizer bits bench)

# The extensions, and beside them the package's Python files.
stage_build() {
  local python
  python=$("$PYTHON" -c "import sys; print(sys.executable)")
  cmake -S . -B "$BUILD" -G Ninja -DTHROUGHTIME_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-90a-real}" \
    -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" || return
  cmake --build "$BUILD" --parallel "${JOBS:-$(nproc)}" || return
  cmake --install "$BUILD" --prefix "$SITE" || return
  cp -r python/throughtime "$SITE"
  "$PYTHON" -c "import throughtime; from throughtime import _cuda; print(throughtime.__path__[0], _cuda.device_count(), 'devices')"
}

# On the device where there is one, else on the stand-in, which the tests compile themselves.
stage_tests() {
  "$PYTHON" -m pytest -q -p no:cacheprovider --continue-on-collection-errors --durations=10 --junitxml="$RESULTS/tests.xml" tests/test_cuda*.py
}

# Out-of-bounds and misaligned accesses and leaks of the API, then races in shared memory, over a few steps of every kernel.
stage_sanitizer() {
  local tool code=0
  for tool in memcheck racecheck; do
    echo "== $tool"
    compute-sanitizer --tool "$tool" --kernel-regex kns=throughtime --error-exitcode 9 "$PYTHON" benchmarks/cuda_same_bits.py --small --runs 1 || code=$?
  done
  return "$code"
}

stage_bits() {
  "$PYTHON" benchmarks/cuda_same_bits.py --runs 10 | tee "$RESULTS/bits.jsonl"
}

# The published size first, against everyone; the long list of sizes last, which may be cut off: what it has is written.
stage_bench() {
  local code=0
  bench mark --problems mark --against cudnn flashrnn torch-loop --rounds 3 || code=$?
  bench layer-norm --problems layer-norm --rounds 5 || code=$?
  bench long --problems long --types bfloat16 float16 --rounds 3 || code=$?
  bench sizes --problems sizes --rounds 3 --plot "$RESULTS/sizes.png" || code=$?
  return "$code"
}

# Options after the name of the JSON file.
bench() {
  local name=$1
  shift
  echo "== $name"
  "$PYTHON" -c "from throughtime.cli import app; app()" bench --device cuda --json "$RESULTS/bench-$name.json" "$@"
}

# Runs a stage within its limit and what is left of the total, and notes how it went. The interrupt lets programs write what they have.
run_stage() {
  local name=$1 limit=${LIMITS[$1]} left=$((TOTAL - SECONDS)) started=$SECONDS code=0
  ((left < limit)) && limit=$left
  if ((limit < 5)); then
    printf '%s\t%s\t%s\n' "$name" "not run: no time left" 0 >>"$RESULTS/stages.tsv"
    return
  fi
  echo "== $name, at most $limit s"
  timeout --signal=INT --kill-after=10 "$limit" bash -uo pipefail -c "stage_$name" >"$RESULTS/$name.log" 2>&1 || code=$?
  printf '%s\t%s\t%s\n' "$name" "$(outcome "$code")" "$((SECONDS - started))" >>"$RESULTS/stages.tsv"
  tail -n 1 "$RESULTS/stages.tsv"
}

outcome() {
  case $1 in
    0) echo passed ;;
    124 | 137) echo "ran over its limit" ;;
    *) echo "failed ($1)" ;;
  esac
}

summarise() {
  {
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU here: tests run on the stand-in"
    nvcc --version 2>/dev/null | tail -n 1
    column -t -s "$(printf '\t')" "$RESULTS/stages.tsv" 2>/dev/null || cat "$RESULTS/stages.tsv"
    section build "registers and spills" && "$PYTHON" .ci/registers.py "$RESULTS/build.log"
    section tests "tests" && tail -n 15 "$RESULTS/tests.log"
    section sanitizer "compute-sanitizer" && grep -E "^==|ERROR SUMMARY|RACECHECK SUMMARY" "$RESULTS/sanitizer.log"
    section bits "the same bits in ten runs: problems, then those that differ or failed" &&
      { grep -c '"same": true' "$RESULTS/bits.log"; grep -v '"same": true' "$RESULTS/bits.log"; }
    section bench "bench" && cat "$RESULTS/bench.log"
  } >"$RESULTS/summary.txt" 2>&1
}

# A heading where the stage left a log.
section() {
  [[ -s $RESULTS/$1.log ]] && printf '\n== %s\n' "$2"
}

main() {
  local name
  for name in "$@"; do
    if [[ -z ${LIMITS[$name]:-} ]]; then
      echo "$name: expected some of ${STAGES[*]}" >&2
      return 2
    fi
  done
  mkdir -p "$RESULTS"
  : >"$RESULTS/stages.tsv"
  for name in "$@"; do
    run_stage "$name"
    summarise
  done
  cat "$RESULTS/summary.txt"
  ! grep -qv "$(printf '\tpassed\t')" "$RESULTS/stages.tsv"
}

export -f bench stage_build stage_tests stage_sanitizer stage_bits stage_bench
if (($#)); then main "$@"; else main "${STAGES[@]}"; fi
