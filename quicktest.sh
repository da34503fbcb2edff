#!/bin/sh
# Builds the quick guests, runs each, and fails if one does not print what it should.
cd "$(dirname "$0")" || exit 3
make -s build && tests/kernels/build.sh >/dev/null || exit 3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
truncate -s 1M "$work/disk.img"
failed=0

# quick NAME OPTION...: one guest; what it should print comes by standard input.
quick() {
    name=$1
    shift
    cat >"$work/wanted"
    # The deadline, in seconds, is arbitrary, and generous.
    ./run.sh --binary "tests/kernels/$name.raw" "$@" --timeout 30 \
        </dev/null >"$work/printed" 2>"$work/errors"
    status=$?
    if [ "$status" = 0 ] && cmp -s "$work/wanted" "$work/printed"; then
        echo "ok      $name"
        return
    fi
    echo "FAILED  $name: status $status; it should print (-), and printed (+):"
    diff -u "$work/wanted" "$work/printed" | tail -n +4
    cat "$work/errors"
    failed=1
}

quick x86_64_hello_serial --entry 0x100000 --mem 64M <<'TEXT'
Hello World
TEXT
quick x86_64_hello_mmio --entry 0x100000 --mem 64M <<'TEXT'
Hello World
TEXT
quick x86_64_demo --entry 0x100000 --mem 64M --disk "$work/disk.img" --device rng <<'TEXT'
demo: a guest of Vibe-VMM, waiting for devices by interrupt
demo: blk0 wrote 64 sectors, read them back, verified
demo: rng0 gave 2 times 32 bytes, which differ
demo: done
TEXT
quick arm64_hello --entry 0x10000 --mem 128M <<'TEXT'
Hello World
TEXT
exit "$failed"
