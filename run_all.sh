#!/usr/bin/env bash
# The whole reproduction in one command: environment, data, training, tables, figures.
# Needs Python 3.11 to 3.14, git and a compiler; no environment has to be active. `--help` says the rest.
#
# Progress goes to stderr, the tables at the end to stdout.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
arguments=("$@")

usage() {
  cat <<'HELP'
Usage: ./run_all.sh [OPTION]…

Installs the project into .venv, gets the data, trains what is missing of Tables 1, 2 and 3 and draws the
tables and figures. Stop it at any time (Ctrl-C): the same command resumes where it stopped. Tables and
figures are updated after every column of a table; a preset on handwritten digits (smoke) takes seconds
per run and draws them once, at the end.

  --preset NAME    how runs are trained: paper (default), quick or smoke; see experiments/presets.toml
  --results DIR    folder of the records (default: results/, with the records that came with the clone)
  --data-dir DIR   folder of the data (default: $REPRO_DATA, else data/)
  --table N        only this table; repeatable (default: all)
  --plan, --dry-run
                   install, print the plan with its estimated time to stdout, and stop
  --install-only   install and stop
  --extra NAME     also install this group of setup.cfg's optional dependencies; ./check.sh asks for test
  -h, --help       this text

Environment:
  REPRO_PYTHON       the Python to make the environment with (default: the first suitable one on PATH)
  REPRO_VENV         where the environment goes (default: .venv beside this script)
  REPRO_TORCH_INDEX  package index to take torch from (default: chosen by the GPU's compute capability)
  REPRO_DATA         folder of the data
  CUDA_VISIBLE_DEVICES   which GPUs are used; empty: none, the CPU is used

Exit codes: 0 done, 1 some runs failed, 2 usage, 3 environment or data missing, 4 a damaged record,
75 interrupted and resumable, 130 Ctrl-C. At the end it is the highest that was met on the way.
HELP
}

say() { printf 'run_all: %s\n' "$*" >&2; }

fail() { # CODE SENTENCE
  say "$2"
  exit "$1"
}

absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac }

# --- the command line ---------------------------------------------------------------------------------

preset=paper results="" data_dir="" tables=() plan_only="" install_only="" extra=""

while (($#)); do
  case $1 in
    --*=*) # --preset=smoke is --preset smoke
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      continue
      ;;
    --preset | --results | --data-dir | --table | --extra)
      [[ -n ${2:-} ]] || fail 2 "$1 needs a value; --help lists the options"
      case $1 in
        --preset) preset=$2 ;;
        --results) results=$(absolute "$2") ;;
        --data-dir) data_dir=$(absolute "$2") ;;
        --table) tables+=("$2") ;;
        --extra) extra=$2 ;;
      esac
      shift
      ;;
    --plan | --dry-run) plan_only=yes ;;
    --install-only) install_only=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail 2 "unknown option $1; --help lists the options" ;;
  esac
  shift
done

venv=$(absolute "${REPRO_VENV:-$root/.venv}")
# The project is this clone, wherever the script is called from.
export REPRO_ROOT=$root

# --- signals ------------------------------------------------------------------------------------------

child="" stopped="" signalled=""

go_on() { # how to resume
  say "stopped; the same command resumes from here:$(printf ' %q' "$0" "${arguments[@]}")"
}

# shellcheck disable=SC2329  # called by the traps below
on_signal() { # SIGNAL CODE
  stopped=$2 signalled=yes
  # `repro run` is told once for each signal: the first Ctrl-C lets runs in progress finish, a second
  # makes them write a checkpoint and stop.
  if [[ -n $child ]]; then
    kill -s "$1" "$child" 2>/dev/null || true
  else
    go_on
    exit "$2"
  fi
}

trap 'on_signal INT 130' INT
trap 'on_signal TERM 75' TERM HUP

# Runs a command in a process group of its own, so that Ctrl-C on the terminal reaches it once, through
# on_signal, and not a second time from the terminal. Returns its exit code.
in_own_group() {
  local code
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  while true; do
    code=0 signalled=""
    wait "$child" || code=$?
    # A signal ends `wait` before the child has ended: wait again.
    [[ -n $signalled ]] || break
  done
  child=""
  return "$code"
}

# --- the environment ----------------------------------------------------------------------------------

capabilities=() gpu_hidden=""

# The cards' compute capabilities, as in 6.1; none without a card. A card that does not answer ends the
# script: a GPU that is there is never silently left for the CPU.
find_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} && (-z $CUDA_VISIBLE_DEVICES || $CUDA_VISIBLE_DEVICES == -1) ]]; then
    gpu_hidden=yes
  fi
  command -v nvidia-smi >/dev/null || return 0
  local answer
  if answer=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>&1); then
    mapfile -t capabilities < <(grep -oE '^ *[0-9]+\.[0-9]+' <<<"$answer" | tr -d ' ')
  elif [[ $answer != *"No devices were found"* && -z $gpu_hidden ]]; then
    fail 3 "nvidia-smi fails (${answer%%$'\n'*}): repair or update the NVIDIA driver, or set \
CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
  fi
}

# Which index torch comes from; empty is pip's own. PyTorch's default wheels are built for compute
# capability 7.5 and up: they no longer carry the code of a GTX 1080 Ti (6.1) or a V100 (7.0) and fail at
# the first kernel. PyTorch's builds for CUDA 12.6 still do (6.0's code runs on 6.1).
old_cards_index=https://download.pytorch.org/whl/cu126

torch_index() {
  if [[ -n ${REPRO_TORCH_INDEX+set} ]]; then
    printf '%s' "$REPRO_TORCH_INDEX"
    return
  fi
  local capability
  for capability in "${capabilities[@]}"; do
    if ((${capability%.*} * 10 + ${capability#*.} < 75)); then
      printf '%s' "$old_cards_index"
      return
    fi
  done
}

suitable() { # PYTHON: can it make the environment?
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
    >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n ${REPRO_PYTHON:-} ]]; then
    suitable "$REPRO_PYTHON" || fail 3 "REPRO_PYTHON=$REPRO_PYTHON is not a Python 3.11 to 3.14 with venv"
    printf '%s' "$REPRO_PYTHON"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
    if suitable "$candidate"; then
      printf '%s' "$candidate"
      return
    fi
  done
  fail 3 "no Python 3.11 to 3.14 with its venv module on PATH; install one (Debian, Ubuntu: \
apt-get install python3 python3-venv), or set REPRO_PYTHON to it"
}

# What an installation depends on; where it is as it was, nothing is installed again.
installation_key() {
  { cat "$root/setup.cfg" "$root/pyproject.toml" && printf '%s\n' "$1" "$root"; } | sha256sum | cut -d ' ' -f 1
}

installed_key="" installed_extras=""

installed() { # KEY: is the environment whole, of this key, with the extra asked for?
  installed_key="" installed_extras=""
  if [[ -x $venv/bin/python && -f $venv/.installed ]]; then
    { read -r installed_key && read -r installed_extras; } <"$venv/.installed" || true
  fi
  [[ $installed_key == "$1" && (-z $extra || " $installed_extras " == *" $extra "*) ]]
}

pip() {
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@" >>"$venv/install.log" 2>&1
}

# `.made-by-run_all` says that the folder is this script's to remove, and where its torch is from;
# `.installed` is there only while everything is installed, so an interrupted installation starts over.
install() { # KEY INDEX
  local key=$1 index=$2 python extras previous=""
  mkdir -p "$(dirname "$venv")" || fail 3 "cannot make $(dirname "$venv")"
  # One installation at a time; the kernel frees the lock when its holder dies.
  local lock
  exec {lock}<"$(dirname "$venv")"
  if command -v flock >/dev/null; then flock "$lock"; fi
  if installed "$key"; then
    exec {lock}<&-
    return
  fi
  if [[ -e $venv && ! -e $venv/.made-by-run_all && -n $(ls -A "$venv") ]]; then
    fail 3 "$venv was not made by this script, so it is left alone; remove it, or set REPRO_VENV elsewhere"
  fi
  if [[ -e $venv/.made-by-run_all ]] && { [[ ! -f $venv/.installed || ! -x $venv/bin/python ]] \
    || [[ $(<"$venv/.made-by-run_all") != "$index" ]]; }; then
    say "$venv is incomplete or of another torch: replacing it"
    rm -rf "$venv"
  fi
  if [[ ! -e $venv/bin/python ]]; then
    python=$(find_python)
    mkdir -p "$venv" || fail 3 "cannot make $venv"
    printf '%s\n' "$index" >"$venv/.made-by-run_all"
    "$python" -m venv "$venv" >"$venv/install.log" 2>&1 \
      || fail 3 "cannot make $venv with $python: $(tail -n 1 "$venv/install.log")"
  fi
  extras=$(tr ' ' '\n' <<<"$installed_extras $extra" | sort -u | xargs)
  if [[ -f $venv/.installed ]]; then
    previous=$venv/.installed.previous
    mv "$venv/.installed" "$previous"
  fi
  say "installing into $venv: up to 6 GB, some minutes; $venv/install.log shows how far it is"
  if { [[ -z $index ]] || pip "torch>=2.6" "torchvision>=0.21" --index-url "$index"; } \
    && pip --editable "$root${extras:+[${extras// /,}]}"; then
    printf '%s\n' "$key" "$extras" >"$venv/.installed.new"
    mv "$venv/.installed.new" "$venv/.installed"
    rm -f "$venv/.installed.previous"
    exec {lock}<&-
    return
  fi
  # pip gave up before changing anything: an environment that worked stays as it was.
  [[ -z $previous || -n $stopped ]] || mv "$previous" "$venv/.installed"
  fail 3 "pip could not install ($(pip_complaint)): is the package index reachable? All of it: $venv/install.log"
}

pip_complaint() { # pip's last error, or its last line
  { grep -E '^ *ERROR' "$venv/install.log" || cat "$venv/install.log"; } | tail -n 1 | sed 's/^ *ERROR: *//'
}

# Launches a kernel on every visible GPU, once after an installation, a reboot or a change of driver.
check_gpus() { # KEY
  local seen message
  seen="$1 ${capabilities[*]} ${CUDA_VISIBLE_DEVICES-all}"
  seen+=" $({ cat /sys/module/nvidia/version /proc/sys/kernel/random/boot_id 2>/dev/null || true; } | xargs)"
  if [[ -f $venv/.gpu-checked && $(<"$venv/.gpu-checked") == "$seen" ]]; then return; fi
  if ! message=$("$venv/bin/python" -P - 2>&1 <<'PY'
import sys
import torch

if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} finds no CUDA device")
for index in range(torch.cuda.device_count()):
    try:
        ones = torch.ones(4, device=f"cuda:{index}")
        assert (ones + ones).sum().item() == 8.0
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        sys.exit(f"torch {torch.__version__} cannot run a kernel on GPU {index}: {reason}")
PY
  ); then
    fail 3 "${message##*$'\n'}. Update the NVIDIA driver (580 or newer; 525 is enough with \
REPRO_TORCH_INDEX=$old_cards_index), or set CUDA_VISIBLE_DEVICES= (empty) to train on the CPU"
  fi
  printf '%s\n' "$seen" >"$venv/.gpu-checked"
}

find_gpus
index=$(torch_index)
key=$(installation_key "$index")
installed "$key" || install "$key" "$index"
if [[ -n $gpu_hidden ]]; then
  say "CUDA_VISIBLE_DEVICES hides every GPU: training on the CPU, $(nproc) cores"
elif ((${#capabilities[@]})); then
  check_gpus "$key"
  say "${#capabilities[@]} GPU, compute capability ${capabilities[*]}"
else
  say "no NVIDIA GPU found: training on the CPU, $(nproc) cores"
fi
[[ -z $install_only ]] || exit 0

# --- the plan -----------------------------------------------------------------------------------------

repro() { "$venv/bin/repro" "$@"; }

places=(--preset "$preset")
[[ -z $results ]] || places+=(--results "$results")
data_place=()
[[ -z $data_dir ]] || data_place=(--data-dir "$data_dir")
selected=()
for table in "${tables[@]}"; do selected+=(--table "$table"); done
outcome=${results:-$root/results}/$preset

supplied_records() { # how many records of this preset came with the clone and are still there
  local file count=0
  while IFS= read -r -d '' file; do
    if [[ -f $root/$file ]]; then count=$((count + 1)); fi
  done < <(git -C "$root" ls-files -z -- "results/$preset/*.json" 2>/dev/null)
  printf '%s' "$count"
}

if [[ -n $results && $(realpath -m "$results") != $(realpath -m "$root/results") ]]; then
  say "results: $outcome, a set of your own"
else
  supplied=$(supplied_records)
  if ((supplied)); then
    say "results: $outcome, with $supplied records supplied with this clone; they count as done. To train \
everything yourself, start a set of your own: --results DIR"
  else
    say "results: $outcome; no records were supplied with this clone (--results DIR keeps yours elsewhere)"
  fi
fi

if [[ -n $plan_only ]]; then
  repro plan "${places[@]}" "${data_place[@]}" "${selected[@]}"
  exit
fi
# 4: it names a damaged record, which is trained again.
repro plan "${places[@]}" "${data_place[@]}" "${selected[@]}" >&2 || { code=$?; ((code == 4)) || exit "$code"; }

# --- train, table by table ----------------------------------------------------------------------------

worst=0 sentences=()

note() { # CODE SENTENCE: remembered for the end, once
  local sentence
  if (($1 > worst)); then worst=$1; fi
  for sentence in "${sentences[@]}"; do
    if [[ $sentence == "$2" ]]; then return; fi
  done
  sentences+=("$2")
}

train() { # WHAT SELECTION…
  local what=$1 code=0
  shift
  say "training $what"
  in_own_group "$venv/bin/repro" run "${places[@]}" "${data_place[@]}" "$@" || code=$?
  case $code in
    0 | 1 | 3 | 4) ;;
    *) # 75 and 130: stopped on request; anything else is a fault that the next column would meet again
      if ((code == 75 || code == 130)); then go_on; else say "repro run ended with exit code $code"; fi
      exit "$code"
      ;;
  esac
  if [[ -n $stopped ]]; then
    go_on
    exit "$stopped"
  fi
  case $code in
    1) note 1 "$what: some runs failed; what failed and the command that repeats it are above" ;;
    3) note 3 "$what: the environment or the data are not in place; the reason is above" ;;
    4) note 4 "$what: a record is damaged; which one is above" ;;
  esac
}

made() { # CODE WHAT: remembers that making it failed
  (($1 == 0)) || note "$1" "$2: exit code $1; the reason is above"
}

aggregate() { # FORMAT FILE
  local code=0
  repro aggregate "${places[@]}" "${data_place[@]}" --format "$1" --output "$outcome/$2" || code=$?
  made "$code" "making the tables"
}

show() { # tables and figures of what there is
  local code=0
  aggregate markdown tables.md
  repro figures "${places[@]}" "${data_place[@]}" >&2 || code=$?
  made "$code" "drawing the figures"
}

data_state() { # SET: its state and a detail, as `repro data list` has them
  repro data list --json "${data_place[@]}" | "$venv/bin/python" -P -c '
import json, sys
for each in json.load(sys.stdin):
    if each["name"] == sys.argv[1]:
        print(each["state"], each["detail"], sep="\t")' "$1"
}

have_data() { # SET
  [[ $(data_state "$1") == prepared* ]] && return
  say "getting $1"
  repro data fetch "$1" "${data_place[@]}" >&2 && repro data prepare "$1" "${data_place[@]}" >&2
}

# Whether the preset's data are "real" or "digits", then a line per table: number, data set, networks.
layout=$("$venv/bin/python" -P - "$root" "$preset" "${tables[@]}" <<'PY'
import sys
from pathlib import Path

from repro.registry import Registry

root, preset, *wanted = sys.argv[1:]
registry = Registry.load(Path(root, "experiments"))
print(registry.preset(preset).recipe.data)
for table in registry.tables:
    if str(table.name) in wanted or (table.of_paper and not wanted):
        print(table.name, table.dataset, *table.networks)
PY
)
data=${layout%%$'\n'*}

if [[ $data == digits ]]; then
  # Runs on the digits take seconds: starting a scheduler per column would take longer than training.
  train "the preset $preset" "${selected[@]}"
else
  while read -r table dataset networks <&3; do
    if ! have_data "$dataset"; then
      reason=$(data_state "$dataset" | cut -f 2) || reason=""
      note 3 "Table $table gets no new runs: $dataset is unavailable${reason:+: $reason}"
      say "${sentences[-1]}"
      continue
    fi
    for network in $networks; do
      train "Table $table ($dataset), $network" --table "$table" --network "$network"
      show
    done
  done 3< <(tail -n +2 <<<"$layout")
fi

# --- tables and figures -------------------------------------------------------------------------------

show
aggregate csv tables.csv
aggregate latex tables.tex
repro aggregate "${places[@]}" "${data_place[@]}" "${selected[@]}" --format markdown || true
for sentence in "${sentences[@]}"; do say "$sentence"; done
say "tables: $outcome/tables.md, .csv and .tex; figures: ${results:-$root}/figures/$preset"
exit "$worst"
