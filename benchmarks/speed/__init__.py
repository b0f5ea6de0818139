"""What each part costs beside its peers and beside what the hardware allows; run with ``python -m benchmarks.speed``.

One file is one row: ``run(bench)`` measures, and ``benchmarks/results/<row>.json`` keeps what was measured.
``docs/performance.md`` is made of these files alone, by ``python -m benchmarks.page``.
"""
