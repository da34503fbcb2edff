"""The interrupt controllers and timers of a PC with one CPU, for a backend that has none."""
