"""Devices of the PC platform that live in the VMM: what a kernel needs before virtio."""
