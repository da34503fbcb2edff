"""How a guest finds and drives a virtio device."""
