#!/usr/bin/env bash
# Table 1 as evidence: on a CUDA machine, within a budget of time. `--help` says the rest.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
arguments=("$@")

usage() {
  cat <<'HELP'
Usage: experiments/evidence.sh --budget TIME [OPTION]…

Runs Table 1 at the paper's recipe and keeps what makes the result credible. In this order:

  1. the environment (as ./run_all.sh makes it) and CIFAR-100, fetched and prepared where it is not there
  2. repro doctor
  3. the tests of the recipe and those marked gpu; where one fails, nothing is trained
  4. repro bench on the three networks
  5. which VGG: one cross-entropy run each of the candidates that "VGG" may mean
  6. Table 1, the cheapest column first, all eight losses of a column at seed 0 before seed 1. Where not even one
     column's first seed fits the budget: cross-entropy and scaled BN m = 1, three seeds each
  7. tables, figures, claims and the report from the records

Stop it at any time: the same command resumes where it stopped. Steps 2 to 4 are skipped where they passed
with this commit on this machine.

  --budget TIME    for all of it: 30m, 9h, 1d12h
  --preset NAME    paper (default); smoke rehearses every step in minutes, on a CPU too
  --results DIR    folder of the records (default: results/)
  --data-dir DIR   folder of the data (default: $REPRO_DATA, else data/)
  --here           use the Python on PATH with what is installed there; install nothing
  --per-gpu N      concurrent runs per GPU (default: auto)
  -h, --help       this text

What the steps print is kept in DIR/<preset>/evidence/.

Exit codes: 0 done, 1 a test or a run failed, 2 usage, 3 environment or data missing, 4 a damaged record,
75 the budget is spent: the same command resumes, 130 Ctrl-C.
HELP
}

say() { printf 'evidence: %s\n' "$*" >&2; }

fail() { # CODE SENTENCE
  say "$2"
  exit "$1"
}

absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac }

budget="" preset=paper results=$root/results data_dir="" here="" per_gpu=auto
while (($#)); do
  case $1 in
    --*=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --budget | --preset | --results | --data-dir | --per-gpu)
      [[ -n ${2:-} ]] || fail 2 "$1 needs a value; --help lists the options"
      case $1 in
        --budget) budget=$2 ;;
        --preset) preset=$2 ;;
        --results) results=$(absolute "$2") ;;
        --data-dir) data_dir=$(absolute "$2") ;;
        --per-gpu) per_gpu=$2 ;;
      esac
      shift
      ;;
    --here) here=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail 2 "unknown option $1; --help lists the options" ;;
  esac
  shift
done
[[ $budget =~ ^([0-9]+d)?([0-9]+h)?([0-9]+m)?$ && -n $budget ]] \
  || fail 2 "--budget '$budget': expected a time as in 30m, 9h or 1d12h"
seconds=0
while [[ $budget =~ ^([0-9]+)([dhm])(.*)$ ]]; do
  case ${BASH_REMATCH[2]} in
    d) seconds=$((seconds + BASH_REMATCH[1] * 86400)) ;;
    h) seconds=$((seconds + BASH_REMATCH[1] * 3600)) ;;
    m) seconds=$((seconds + BASH_REMATCH[1] * 60)) ;;
  esac
  budget=${BASH_REMATCH[3]}
done
left() { printf '%s' $((seconds > SECONDS ? seconds - SECONDS : 0)); }

stopped() {
  say "stopped; the same command resumes from here:$(printf ' %q' "$0" "${arguments[@]}")"
  exit "$1"
}

# --- 1: environment and data ----------------------------------------------------------------------------

export REPRO_ROOT=$root
if [[ -n $here ]]; then
  python=$(command -v python3 || command -v python) || fail 3 "--here: no python3 on PATH"
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
else
  "$root/run_all.sh" --install-only --extra test
  python=${REPRO_VENV:-$root/.venv}/bin/python
fi
repro() { "$python" -m repro "$@"; }
places=(--preset "$preset" --results "$results")
data_place=()
[[ -z $data_dir ]] || data_place=(--data-dir "$data_dir")
table=(--table 1)
cd "$root"

log=$results/$preset/evidence
mkdir -p "$log" || fail 3 "cannot make $log"

on_real_data() { # does the preset train on real data?
  "$python" - "$root" "$preset" <<'PY'
import sys
from pathlib import Path
from repro.registry import Registry
registry = Registry.load(Path(sys.argv[1], "experiments"))
sys.exit(registry.preset(sys.argv[2]).recipe.data != "real")
PY
}

if on_real_data; then
  repro data verify cifar100 "${data_place[@]}" >&2 || {
    repro data fetch cifar100 "${data_place[@]}" && repro data prepare cifar100 "${data_place[@]}"
  } >&2 || fail 3 "CIFAR-100 is not in place; the reason is above"
fi

# --- 2 to 4: may this machine train it, and how fast -------------------------------------------------------

# A step's mark holds what it was passed with: another commit, a changed file or another machine asks again.
state="$(git rev-parse HEAD 2>/dev/null || echo no-git) $(git diff HEAD 2>/dev/null | sha256sum | cut -c 1-12) \
$(uname -n | sha256sum | cut -c 1-12) $("$python" -c 'import torch; print(torch.__version__)')"

step() { # NAME COMMAND…: once a state; what it prints is shown and kept
  local name=$1 code=0
  shift
  if [[ -f $log/$name.passed && $(<"$log/$name.passed") == "$state" ]]; then
    say "$name: passed before, with this commit on this machine"
    return 0
  fi
  say "$name: $*"
  "$@" 2>&1 | tee "$log/$name.txt" >&2 || code=${PIPESTATUS[0]}
  if ((code == 0)); then
    printf '%s\n' "$state" >"$log/$name.passed"
  fi
  return "$code"
}

code=0
step doctor repro doctor "${places[@]}" "${data_place[@]}" || code=$?
((code == 0)) || fail "$code" "this machine is not ready; repro doctor says what to do"
# Every test of what a run computes, and every test that needs a CUDA device.
step recipe-tests "$python" -m pytest -q -p no:cacheprovider -m "not slow and not network" \
  tests/losses tests/models tests/training tests/data/test_data_loader.py tests/test_signature.py || code=$?
((code == 0)) || fail 1 "the recipe's tests fail here: a record made now would be void, so nothing is trained"
step gpu-tests "$python" -m pytest -q -p no:cacheprovider -m gpu tests || code=$?
((code == 0)) || fail 1 "the tests on the GPU fail: a record made now would be void, so nothing is trained"
networks=()
for network in vgg16 resnet18 resnet50; do networks+=(--network "$network"); done
step bench repro bench "${networks[@]}" "${places[@]}" "${data_place[@]}" --json "$log/bench.json" \
  || say "repro bench failed; what it says is in $log/bench.txt. Going on: speed is not correctness"

# --- 5 and 6: train ---------------------------------------------------------------------------------------

worst=0
train() { # WHAT SELECTION…
  local what=$1 code=0 rest
  shift
  rest=$(left)
  ((rest > 0)) || stopped 75
  say "$what, $((rest / 60)) min left"
  repro run "${places[@]}" "${data_place[@]}" --per-gpu "$per_gpu" --budget "${rest}s" "$@" || code=$?
  case $code in
    0) ;;
    1 | 4) worst=$((code > worst ? code : worst)) ;;
    *)
      finish
      if ((code == 75 || code == 130)); then stopped "$code"; fi
      exit "$code"
      ;;
  esac
}

finish() { # tables, figures and the report of what there is
  local format
  for format in markdown latex csv; do
    repro aggregate "${places[@]}" "${data_place[@]}" "${table[@]}" --format "$format" \
      --output "$results/$preset/table1.$format" >&2 || say "making the table as $format failed"
  done
  repro figures "${places[@]}" "${data_place[@]}" >&2 || say "drawing the figures failed"
  repro claims "${places[@]}" "${data_place[@]}" >"$log/claims.txt" || say "judging the claims failed"
  repro report "${places[@]}" "${data_place[@]}" >&2 || say "writing the report failed"
  repro aggregate "${places[@]}" "${data_place[@]}" "${table[@]}" || true
}

fits() { # does a whole column's first seed fit what is left?
  # 4: a damaged record, which is trained again.
  { repro plan "${places[@]}" "${data_place[@]}" "${table[@]}" --per-gpu "$per_gpu" --budget "$(left)s" --json \
    || (($? == 4)); } \
    | "$python" -c 'import json, sys; sys.exit(not json.load(sys.stdin)["budget"]["fits"])'
}

trap 'stopped 130' INT
trap 'stopped 75' TERM HUP

train "which VGG" --study vgg --seed 0

if fits; then
  train "Table 1" "${table[@]}"
else
  say "no column's first seed fits whole in $(($(left) / 60)) min: cross-entropy against scaled BN m = 1, three seeds"
  for network in vgg16 resnet18 resnet50; do
    train "$network" "${table[@]}" --network "$network" --loss cross-entropy --loss scaled-bn-m1
  done
  train "Table 1" "${table[@]}"
fi
finish
exit "$worst"
