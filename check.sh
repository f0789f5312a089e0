#!/usr/bin/env bash
# Checks everything in one command: format, lint, types, import contracts, tests. `--help` says the rest.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'HELP'
Usage: ./check.sh [--all] [--long] [--network] [-- PYTEST ARGUMENT…]

Makes the environment as ./run_all.sh does, with the test tools, then runs ruff (format and lint), mypy,
the import contracts and pytest. Every check runs even where one before it failed.

  --all       the slow tests too, among them a real ./run_all.sh --preset smoke
  --long      those that take about a minute each too: defects planted for the chaos audit, docs/your-own.md
  --network   the tests that reach the internet too
  -h, --help  this text

What follows `--` goes to pytest, as in `./check.sh -- tests/losses -x`. Tests that need a GPU, the real
data or LaTeX skip themselves where these are missing, and say so.

Exit codes: 0 all passed, 1 something failed, 2 usage, 3 no environment could be made.
HELP
}

left_out=(slow long network)
while (($#)); do
  case $1 in
    --all) left_out=("${left_out[@]/slow/}") ;;
    --long) left_out=("${left_out[@]/long/}") ;;
    --network) left_out=("${left_out[@]/network/}") ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *)
      printf 'check: unknown option %s; --help lists the options\n' "$1" >&2
      exit 2
      ;;
  esac
  shift
done

marks=""
for mark in "${left_out[@]}"; do
  [[ -z $mark ]] || marks+="${marks:+ and }not $mark"
done

"$root/run_all.sh" --install-only --extra test
tools=${REPRO_VENV:-$root/.venv}/bin
case $tools in /*) ;; *) tools=$PWD/$tools ;; esac
cd "$root"

failed=()
check() { # NAME COMMAND…
  printf '== %s\n' "$1"
  "${@:2}" || failed+=("$1")
}

check format "$tools/ruff" format --check .
check lint "$tools/ruff" check .
check types "$tools/mypy"
check "import contracts" "$tools/lint-imports"

# Tests on a real Slurm and a real Ray wait most of the time: they run beside the others, and report after them.
# So do a few that train for a minute or two, which balances the two.
beside="" words=""
if [[ " ${left_out[*]} " != *" slow "* ]] && (($# == 0)); then
  words=$(mktemp)
  trap '[[ -z $beside ]] || kill -- "-$beside" 2>/dev/null || true; rm -f "$words"' EXIT
  # A process group of its own: what runs in the background of a script would ignore Ctrl-C, and the tests send it.
  set -m
  "$tools/python" -m pytest -p no:cacheprovider -m "(slurm or ray or beside)${marks:+ and $marks}" >"$words" 2>&1 </dev/null &
  beside=$!
  set +m
  marks+="${marks:+ and }not slurm and not ray and not beside"
fi
check tests "$tools/python" -m pytest -m "$marks" "$@"
if [[ -n $beside ]]; then
  code=0
  wait "$beside" || code=$?
  beside=""
  cat "$words"
  check "tests beside the others, Slurm's and Ray's among them" test "$code" = 0
fi

if ((${#failed[@]})); then
  printf 'check: failed: %s\n' "$(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
  exit 1
fi
