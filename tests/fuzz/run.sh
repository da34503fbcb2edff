#!/bin/sh
# Fuzzes the ring engine: tests/fuzz/run.sh [SECONDS] [DIRECTORY]
#
# Builds it with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, starts from the
# seeds, keeps what it finds in DIRECTORY (.cache/fuzz), and ends with one line: executions,
# seconds, coverage. One core. Exit status 0: no finding. CC names another clang; PYTHON
# another Python.
set -eu

seconds=${1:-60}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=${2:-$root/.cache/fuzz}

mkdir -p "$work/corpus"
"${CC:-clang}" -std=gnu11 -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined \
    -fno-sanitize-recover=all -fno-omit-frame-pointer \
    "$here/ring_fuzz.c" "$root/protocol/ring/ring.c" \
    "$root/protocol/ring/journal.c" -o "$work/ring_fuzz"
"${PYTHON:-python3}" "$here/ring_seeds.py" "$work/seeds"

log=$work/log
export ASAN_OPTIONS="quarantine_size_mb=16"
started=$(date +%s)
"$work/ring_fuzz" -max_total_time="$seconds" -max_len=2048 -timeout=10 -rss_limit_mb=512 \
    -print_final_stats=1 -artifact_prefix="$work/finding-" "$work/corpus" "$work/seeds" \
    >"$log" 2>&1 || { tail -50 "$log"; echo "ring_fuzz: a finding, see $log" >&2; exit 1; }
executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)
echo "ring_fuzz: $executions executions in $(($(date +%s) - started)) s, $coverage edges, no finding"
