"""Interrupt controllers and timers of machines with one CPU, for a backend that has none."""
