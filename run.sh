#!/bin/sh
# vibevmm with the arguments given, built first when it is not.
root=$(dirname "$(readlink -f "$0")")
[ -e "$root/.venv/build.stamp" ] || make -C "$root" build >&2 || exit 3
exec "$root/.venv/bin/vibevmm" "$@"
