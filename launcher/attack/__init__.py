"""Attacks: what a device, or a guest, that was taken over tries, and what comes of it.

::

    table      every attack: its name, what it is, and what it should come to at each level
    machine    one machine with up to eleven hostile devices, or a hostile guest, and a victim
    command    ``vibevmm attack``
"""
