#!/bin/sh
# Builds every guest here from source into NAME.raw, a flat image. Needs gcc and binutils for
# x86-64; clang, lld and llvm-objcopy for arm64, which is skipped without them.
set -eu
cd "$(dirname "$0")"

: "${CC:=gcc}" "${LD:=ld}" "${OBJCOPY:=objcopy}"
# Nothing, when all are there and newer than every source: in the lab a compiler takes minutes.
last=arm64_reboot.raw
# Those of `vibevmm experiment` and `vibevmm attack` belong to the package.
load=../../launcher/experiment/load.raw
attack=../../launcher/attack/attack.raw
command -v clang >/dev/null 2>&1 || last=x86_64_apic.raw
if [ -e "$last" ] && [ -e "$load" ] && [ -e "$attack" ] &&
        [ -z "$(find . -newer "$last" \( -name '*.[chS]' -o -name '*.ld' -o -name build.sh \))" ] &&
        [ "$(ls ./*.raw | wc -l)" -ge 13 ]; then
        exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Only general registers and no red zone, for interrupts come on the same stack; no calls to a C
# library, for there is none.
CFLAGS="-std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fpie -fvisibility=hidden
        -mgeneral-regs-only -mno-red-zone -fno-stack-protector -fcf-protection=none
        -fno-asynchronous-unwind-tables -fno-jump-tables -fno-tree-loop-distribute-patterns"

# image NAME OBJECT...: links the objects, the entry first, into NAME.raw. Others may be reading
# the old one, so the new one takes its place whole.
image() {
        name=$1; shift
        "$LD" -pie --no-dynamic-linker -z noexecstack -T flat.ld -o "$work/$name.elf" "$@"
        "$OBJCOPY" -O binary "$work/$name.elf" "$work/$name.raw"
        mv "$work/$name.raw" "$name.raw"
        echo "built tests/kernels/$name.raw"
}

for name in x86_64_hello_serial x86_64_hello_mmio; do
        "$CC" -c -o "$work/$name.o" "$name.S"
        image "$name" "$work/$name.o"
done

# compile SOURCE...: into an object for each, whose names are in $objects.
compile() {
        objects=
        for source in "$@"; do
                object=$work/$(echo "$source" | tr / -).o
                # shellcheck disable=SC2086 # the flags are words
                "$CC" $CFLAGS -c -o "$object" "$source"
                objects="$objects $object"
        done
}

# shellcheck disable=SC2086 # the objects are words
{
        compile demo/start.S demo/*.c
        image x86_64_demo $objects
        compile demo/start.S demo/pc.c demo/interrupt.c demo/virtio.c soak/*.c
        image x86_64_soak $objects
        compile demo/start.S demo/interrupt.c demo/pc.c demo/virtio.c ask.c
        image x86_64_ask $objects
        compile demo/start.S demo/interrupt.c demo/pc.c demo/virtio.c soak/traffic.c load/load.c
        image x86_64_load $objects
        mv x86_64_load.raw "$load"
        compile demo/start.S demo/interrupt.c demo/pc.c demo/virtio.c attack/*.c
        image x86_64_attack $objects
        mv x86_64_attack.raw "$attack"
        # The guests that try the processor share all but one file.
        for name in faults traps rings strings mmio selfmod pit apic; do
                compile cpu/start.S cpu/cpu.c demo/pc.c "cpu/$name.c"
                image "x86_64_$name" $objects
        done
}

if command -v clang ld.lld llvm-objcopy >/dev/null 2>&1; then
        for name in arm64_hello arm64_machine arm64_reboot; do
                clang --target=aarch64-none-elf -c -o "$work/$name.o" "$name.S"
                (LD=ld.lld OBJCOPY=llvm-objcopy; image "$name" "$work/$name.o")
        done
else
        echo "skipped the arm64 guests: they need clang, ld.lld and llvm-objcopy"
fi
