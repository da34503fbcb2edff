"""``vibevmm experiment``: what holding a device costs, and what it buys, measured.

::

    file        what is asked for, read and checked      matrix      its cells, in an order by seed
    trials      what is done in a cell: raw samples      results     where they are kept
    measures    figures from raw samples                 report      tables of them
    plots       pictures of them                         command     all of it
"""
