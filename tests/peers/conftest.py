"""Agreement with other libraries: ``make test-peers``. Without the environment of the peers no test is collected."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("mergekit") else ["test_*.py"]
