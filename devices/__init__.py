"""One file a device, holding only its own logic; everything common is in devices.runtime."""
