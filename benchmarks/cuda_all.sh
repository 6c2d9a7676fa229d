#!/usr/bin/env bash
# Build, test and measure the CUDA backend on a machine with a GPU, in under ten minutes and without a network:
#
#     benchmarks/cuda_all.sh [STAGE ...]      all of: build tests bits mark norm memcheck racecheck long sizes
#
# It needs nvcc, a C++ compiler, cmake, ninja, and a Python ($PYTHON, else python3) with pybind11, torch, pytest, hypothesis, typer, rich
# and matplotlib; if pytest-xdist and pytest-timeout are installed, a test that hangs or crashes does not end the others. Results go to
# ./cuda-results: a log per stage, JSON of the measurements, stages.tsv, summary.txt. If $OUT is set, the summary and an archive of all
# results are copied there after each stage. Each stage has a time limit, and all stages together $TOTAL seconds; if a stage fails or
# exceeds its limit, the next one still runs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

export PYTHON=${PYTHON:-python3}
export RESULTS=$PWD/cuda-results
export BUILD=build/cuda-all
export SITE=$PWD/$BUILD/site # the package as the stages import it
export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export PATH=$PATH:/usr/local/cuda/bin
TOTAL=${TOTAL:-570}
declare -A LIMITS=([build]=200 [tests]=130 [bits]=40 [mark]=80 [norm]=40 [memcheck]=60 [racecheck]=60 [long]=60 [sizes]=150)
STAGES=(build tests bits mark norm memcheck racecheck long sizes)

# The extensions and the package's Python files.
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

# On the device if there is one, otherwise on the stand-in, which the tests compile. Tracebacks are short, because long ones print
# arguments, and printing an array in device memory ends the process.
stage_tests() {
  local options=(-q -p no:cacheprovider --tb=short --continue-on-collection-errors --durations=10 --junitxml="$RESULTS/tests.xml")
  if "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    "$PYTHON" -c "import sys; from throughtime import _cuda; sys.exit(not _cuda.device_count())" || return
    "$PYTHON" -c "import xdist, pytest_timeout" && options+=(-n 6 --timeout=60 --timeout-method=thread)
  fi
  OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 "$PYTHON" -m pytest "${options[@]}" tests/test_cuda*.py
}

# Out-of-bounds and misaligned accesses, and memory released too early, over a few steps of every kernel. Torch's pool would hide the
# end of a tensor. Failing API calls are not counted: some are only queries, and errors raise exceptions.
stage_memcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize memcheck --track-stream-ordered-races all --report-api-errors no; }
# Races in shared memory.
stage_racecheck() { sanitize racecheck; }

# Only our kernels: those of torch and cuBLAS would take most of the time.
sanitize() {
  compute-sanitizer --tool "$@" --kernel-name kns=throughtime --error-exitcode 9 "$PYTHON" benchmarks/cuda_same_bits.py --small --runs 1
}

stage_bits() {
  "$PYTHON" benchmarks/cuda_same_bits.py --runs 10 | tee "$RESULTS/bits.jsonl"
}

# The published size, against all contenders. The list of all sizes comes last and may be cut off: finished rows are written.
stage_mark() { bench mark --problems mark --precision highest high --against cudnn flashrnn torch-loop --rounds 3; }
stage_norm() { bench layer-norm --problems layer-norm --rounds 5; }
stage_long() { bench long --problems long --types bfloat16 float16 --rounds 3; }
stage_sizes() { bench sizes --problems sizes --rounds 3 --plot "$RESULTS/sizes.png"; }

# Options after the name of the JSON file.
bench() {
  local name=$1
  shift
  "$PYTHON" -c "from throughtime.cli import app; app()" bench --device cuda --json "$RESULTS/bench-$name.json" "$@"
}

# Run a stage within its limit and the rest of the total, and record the outcome. On SIGINT, programs write their results so far.
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
    124 | 137) echo "exceeded its limit" ;;
    *) echo "failed ($1)" ;;
  esac
}

summarise() {
  local tool name
  {
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || echo "no GPU here: tests run on the stand-in"
    nvcc --version 2>/dev/null | tail -n 1
    column -t -s "$(printf '\t')" "$RESULTS/stages.tsv" 2>/dev/null || cat "$RESULTS/stages.tsv"
    section build "registers and spills" && "$PYTHON" .ci/registers.py "$RESULTS/build.log"
    section tests "tests" && sed -n "/short test summary/,\$p" "$RESULTS/tests.log" | tail -n 40
    for tool in memcheck racecheck; do
      section "$tool" "$tool" && grep -E "ERROR SUMMARY|RACECHECK SUMMARY|\"failed\"" "$RESULTS/$tool.log"
    done
    section bits "the same bits in ten runs: problems, then those that differ or failed" &&
      { grep -c '"same": true' "$RESULTS/bits.log"; grep -v '"same": true' "$RESULTS/bits.log"; }
    for name in mark norm long sizes; do section "$name" "bench: $name" && cat "$RESULTS/$name.log"; done
  } >"$RESULTS/summary.txt" 2>&1
  [[ -z ${OUT:-} ]] || { cp "$RESULTS/summary.txt" "$OUT" && tar -czf "$OUT/cuda-results.tar.gz" -C "$RESULTS" .; }
}

# A heading, if the stage has a log.
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
  rm -rf "$RESULTS" && mkdir -p "$RESULTS"
  : >"$RESULTS/stages.tsv"
  for name in "$@"; do
    run_stage "$name"
    summarise
  done
  cat "$RESULTS/summary.txt"
  ! grep -qv "$(printf '\tpassed\t')" "$RESULTS/stages.tsv"
}

export -f bench sanitize
for name in "${STAGES[@]}"; do export -f "stage_$name"; done
if (($#)); then main "$@"; else main "${STAGES[@]}"; fi
