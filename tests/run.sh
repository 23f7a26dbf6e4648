#!/usr/bin/env bash
# Every check that needs no GPU: bash tests/run.sh [arguments of pytest]; tests marked gpu are left out.
# Two processes share the tests (TEST_PROCESSES=N: others). pytest's closing line is the last one; the exit status is not
# 0 where anything failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MEGAGPT_EXTRAS=dev,export
# One thread a process: tests start several ranks, which would wait for each other's threads.
export OMP_NUM_THREADS=1
. launch/env.sh

failed=0
ruff check . || failed=1
ruff format --check --quiet . || { echo "ruff format --check: run 'ruff format .'" && failed=1; }
mypy || failed=1
pytest -n "${TEST_PROCESSES:-2}" --dist worksteal -m "not gpu" "$@" || failed=1
exit $failed
