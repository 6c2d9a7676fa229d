#!/usr/bin/env bash
# Build, test and measure the CPU kernels of this machine's best instruction set in all its precisions, without a network:
#
#     benchmarks/cpu_all.sh [PART ...]      all of: build check lstm others
#
# It needs a C++ compiler, cmake, ninja, and a Python ($PYTHON, else python3) with pybind11, torch, pytest, hypothesis, typer, rich and
# matplotlib; pytest-xdist is optional. Results go to ./cpu-results, and to $OUT if that is set: a log of each part, JSON and plots of
# the measurements. If a part fails or exceeds its time limit, the next part still runs.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

export PYTHON=${PYTHON:-python3}
export RESULTS=$PWD/cpu-results
export SITE=$PWD/build/cpu-all/site # the package as it is imported here
export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 THROUGHTIME_NUM_THREADS=2
PARTS=(build check lstm others)
declare -A LIMITS=([build]=${BUILD_LIMIT:-300} [check]=150 [lstm]=300 [others]=200)

part_build() {
  cmake -S . -B build/cpu-all -G Ninja -DPython_EXECUTABLE="$("$PYTHON" -c "import sys; print(sys.executable)")" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" || return
  cmake --build build/cpu-all --parallel "${JOBS:-$(nproc)}" && cmake --install build/cpu-all --prefix "$SITE" &&
    cp -r python/throughtime "$SITE"
}

part_check() {
  local options=(-q -p no:cacheprovider --tb=short)
  "$PYTHON" -c "import xdist" 2>/dev/null && options+=(-n 6)
  "$PYTHON" -m pytest "${options[@]}" tests/test_{precision,exact,recurrent,timesteps,memory,lengths,extremes,layer_norm,attention}.py
}

part_lstm() {
  local precisions
  read -ra precisions < <("$PYTHON" -c "import throughtime as tt; print(*tt.show_config('dicts')['matmul precisions'])")
  lscpu | grep "Model name"
  throughtime info
  bench lstm --cells LSTM --precision "${precisions[@]}" --against torch torch-bfloat16
}

part_others() { bench others --cells GRU RNN --against torch; }

bench() {
  local name=$1
  shift
  throughtime bench --rounds 3 --no-memory --json "$RESULTS/$name.json" --plot "$RESULTS/$name.png" "$@"
}

throughtime() { "$PYTHON" -c "from throughtime.cli import app; app()" "$@"; }

main() {
  local name code failed=0
  mkdir -p "$RESULTS"
  for name in "$@"; do
    [[ -n ${LIMITS[$name]:-} ]] || { echo "$name: expected some of ${PARTS[*]}" >&2; return 2; }
  done
  for name in "$@"; do
    code=0
    timeout --signal=INT --kill-after=10 "${LIMITS[$name]}" bash -uo pipefail -c "part_$name" >"$RESULTS/$name.log" 2>&1 || code=$?
    echo "== $name: exit $code, $SECONDS s since the start"
    tail -n 60 "$RESULTS/$name.log"
    [[ -z ${OUT:-} ]] || cp "$RESULTS"/* "$OUT"
    ((failed |= code))
  done
  return $((failed != 0))
}

export -f "${PARTS[@]/#/part_}" bench throughtime
if (($#)); then main "$@"; else main "${PARTS[@]}"; fi
