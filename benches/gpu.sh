#!/usr/bin/env bash
# All that needs a CUDA device, in one call: the tests, the noise, the figures, the memory checks.
#
#     benches/gpu.sh                       everything, within nine minutes
#     benches/gpu.sh tests noise           some parts: noise tests kernels trainings sanitizer; benches are the
#                                          kernels and the trainings
#
# It needs Python with an installed fastvae (from a wheel: no Rust), torch for CUDA, pytest and hypothesis, and
# tests/, benches/ and pyproject.toml beside it. What it prints goes to benches/results/<device>/ too. A part
# that fails does not stop the others; the exit code is then 1, and 2 where there is nothing to run on.
#
#     PYTHON      the interpreter (python3)
#     RESULTS     the folder to write to
#     LIMIT       seconds for everything (540), after which a part is stopped; 0 is no limit
#     FASTVAE_COMMIT  what tests/ and benches/ are, where they lie without their repository
#     EPOCHS      of a training that are measured (2)
#     PROCESSES   that run tests where pytest-xdist is installed, and that compile (8)
#     SANITIZERS  the tools of compute-sanitizer to run (memcheck racecheck); it also has initcheck, synccheck
set -euo pipefail

case "${RESULTS:-/}" in
    /*) ;;
    *) RESULTS="$PWD/$RESULTS" ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
LIMIT="${LIMIT:-540}"
EPOCHS="${EPOCHS:-2}"
PROCESSES="${PROCESSES:-8}"
SANITIZERS="${SANITIZERS:-memcheck racecheck}"
export PYTHONUNBUFFERED=1

ALL=(noise tests kernels trainings sanitizer)

usage() {
    echo "error: there is no part '$1', only ${ALL[*]}, and benches for the kernels and the trainings" >&2
    exit 2
}

parts=()
for name in "$@"; do
    case "$name" in
        noise | tests | kernels | trainings | sanitizer) parts+=("$name") ;;
        benches) parts+=(kernels trainings) ;;
        *) usage "$name" ;;
    esac
done
if [ ${#parts[@]} -eq 0 ]; then
    parts=("${ALL[@]}")
fi

# Says what is missing and ends with 2, before any work.
folder="$("$PYTHON" benches/device.py --folder)" || exit 2
results="${RESULTS:-benches/results/$folder}"
mkdir -p "$results"

# Runs a command within what is left of the time.
limited() {
    if [ "$LIMIT" -eq 0 ]; then
        "$@"
        return
    fi
    local left=$((LIMIT - SECONDS))
    if [ "$left" -lt 5 ]; then
        echo "not run: the $LIMIT s are over; name this part alone, or set LIMIT"
        return 1
    fi
    local code=0
    timeout --kill-after=10 "$left" "$@" || code=$?
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        echo "stopped: the $LIMIT s are over; name this part alone, or set LIMIT"
    fi
    return "$code"
}

noise() {
    limited "$PYTHON" benches/noise_gpu.py
}

tests() {
    # Only the files that have such tests: the others may import what is not installed here.
    local files
    mapfile -t files < <(grep -lE 'mark\.gpu' tests/test_*.py)
    if [ -d tests/device ]; then
        files+=(tests/device) # all of them
    fi
    if [ ${#files[@]} -eq 0 ]; then
        echo "tests/ has none that is marked gpu"
        return 1
    fi
    # Most of the time kernels are compiled: side by side where that is possible.
    local side_by_side=()
    if "$PYTHON" -c "import xdist" 2>/dev/null; then
        side_by_side=(-n "$PROCESSES" -p no:benchmark)
    fi
    limited "$PYTHON" -m pytest -m gpu --durations=10 "${side_by_side[@]}" "${files[@]}"
}

kernels() {
    limited "$PYTHON" benches/bench_gpu.py --part kernels --output-dir "$results"
}

trainings() {
    limited "$PYTHON" benches/bench_gpu.py --part trainings --epochs "$EPOCHS" --output-dir "$results"
}

sanitizer() {
    local program tool code=0
    program="$(PATH="$PATH:${CUDA_HOME:-/usr/local/cuda}/bin" command -v compute-sanitizer)" || {
        echo "compute-sanitizer is not here, memory was not checked: it comes with the CUDA toolkit"
        return 0
    }
    # First by itself: what Triton compiles is in its cache from then on.
    limited "$PYTHON" benches/small_gpu.py --jobs "$PROCESSES" || return
    for tool in $SANITIZERS; do
        echo "\$ compute-sanitizer --tool $tool"
        # Not torch's allocator, which hides the ends of tensors in blocks of its own. Errors that an interface
        # returns are torch's business: it asks about pointers that CUDA does not know.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited "$program" --tool "$tool" --report-api-errors no \
            --error-exitcode 3 --print-limit 20 "$PYTHON" benches/small_gpu.py || code=1
    done
    return "$code"
}

"$PYTHON" benches/device.py | tee "$results/device.log"

failed=()
for part in "${parts[@]}"; do
    printf '\n== %s\n' "$part"
    start=$SECONDS
    code=0
    "$part" 2>&1 | tee "$results/$part.log" || code=$?
    if [ "$code" -ne 0 ]; then
        failed+=("$part")
    fi
    echo "== $part: exit code $code, $((SECONDS - start)) s"
done

echo
if [ ${#failed[@]} -ne 0 ]; then
    echo "failed: ${failed[*]} (see $results)"
    exit 1
fi
echo "${parts[*]}: all passed; written to $results"
