"""Interrupt controllers and timers, for backends that have none of their own."""
