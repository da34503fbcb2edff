"""ACPI: the tables through which a guest finds CPUs, interrupts, power control and devices."""
