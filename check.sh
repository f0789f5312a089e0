#!/usr/bin/env bash
# Checks everything in one command: format, lint, types, import contracts, tests. `--help` says the rest.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'HELP'
Usage: ./check.sh [--unit | --all] [--network] [-- PYTEST ARGUMENT…]

Makes the environment as ./run_all.sh does, with the test tools, then runs ruff (format and lint), mypy,
the import contracts and pytest. Every check runs even where one before it failed.

  --unit      only the tests that start no process and train nothing
  --all       also the slow tests: chaos, Slurm, Ray, browser, LaTeX, real data, ./run_all.sh --preset smoke
  --network   also the tests that reach the internet
  -h, --help  this text

What follows `--` goes to pytest, as in `./check.sh -- tests/losses -x`. Tests that need a GPU, the real
data or LaTeX skip themselves where these are missing, and say so.

Exit codes: 0 all passed, 1 something failed, 2 usage, 3 no environment could be made.
HELP
}

lane="not slow" network=" and not network"
while (($#)); do
  case $1 in
    --unit) lane="unit" ;;
    --all) lane="(unit or integration or slow) and not long" ;;
    --network) network="" ;;
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

# Two processes share the tests, file by file; with arguments of your own there is one, so that --pdb works.
shared=(-n 2 --dist loadfile --no-loadscope-reorder)
(($# == 0)) || shared=()
check tests "$tools/python" -m pytest "${shared[@]}" -m "$lane$network" "$@"

if ((${#failed[@]})); then
  printf 'check: failed: %s\n' "$(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
  exit 1
fi
