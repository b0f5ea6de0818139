"""Modules of published packages, unedited, under every callback: what works, what is refused, and what goes wrong.

``python -m thirdparty`` builds an environment for each package, runs its cases there, records them in ``records/`` and
writes ``docs/third_party.md``. It is no part of the tests, because it downloads.
"""
