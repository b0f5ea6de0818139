"""Which tests can see a fault in which file."""

from fnmatch import fnmatch

SCOPE = ("_step", "_weights", "averaging", "_files", "_snapshots", "merging", "metrics", "callbacks", "_trainer")
"""The parts of the library in which faults are planted where no others are named."""
_LAWS = ["tests/test_conformance.py"]
_MERGES = [f"tests/callbacks/test_merge_{name}.py" for name in ("checkpoints", "sum", "with_a_base")]
_OF_STEP = ("step", "criterion", "frozen", "distill", "transform_gradients", "logits_signal", "one_sample", "strength")
_OF_STEP += ("laws_of_the_step", "samples", "named_criteria", "teacher_calls", "problems")
_STEP = [*(f"tests/callbacks/test_{name}.py" for name in _OF_STEP), "tests/combination/test_gradient_alignment.py"]
_EVALUATION = [f"tests/callbacks/test_{name}.py" for name in ("log_metrics", "calibrate", "evaluation_steps")]
_AVERAGES = ["tests/callbacks/test_average_*.py", "tests/callbacks/test_exchange.py", *_EVALUATION[:1]]
_TEACHERS = [f"tests/callbacks/test_{name}.py" for name in ("load_network", "teacher_weights")]
_TEACHERS += ["tests/safety/test_teacher_files.py"]
_RESUMED = ["tests/callbacks/test_earlier_files.py", "tests/safety/test_resume_files.py"]
TESTS = {
    "metrics/*": ["tests/metrics/test_*.py", *_LAWS],
    "averaging/*": ["tests/averaging/test_*.py", *_LAWS],
    "merging/*": ["tests/merging/test_*.py", *_LAWS],
    "_files/network.py": _TEACHERS,
    "_files/fitting.py": _TEACHERS,
    "_files/logit_cache.py": ["tests/callbacks/test_logit_cache.py", "tests/safety/test_cache_files.py"],
    "_files/*": [
        "tests/merging/test_*.py",
        "tests/safety/test_merge_files.py",
        "tests/safety/test_export_files.py",
        "tests/safety/test_folder_files.py",
        "tests/safety/test_writers.py",
        "tests/callbacks/test_load_network.py",
    ],
    "_snapshots/*": [*_MERGES, *_RESUMED],
    "_weights/*": ["tests/averaging/test_*.py", *_AVERAGES, *_MERGES, *_RESUMED],
    "_step/*": [
        "tests/callbacks/test_{stem}.py",
        *_STEP,
        *_EVALUATION,
        "tests/test_signals.py",
        "tests/test_strangers.py",
    ],
    "_trainer/*": [
        "tests/callbacks/test_{stem}.py",
        "tests/callbacks/test_restore_random_state.py",
        "tests/test_mixins.py",
        "tests/test_random.py",
        *_RESUMED,
        *_AVERAGES,
        *_STEP,
        *_EVALUATION,
    ],
    "callbacks/average_weights.py": [*_AVERAGES, *_RESUMED],
    "callbacks/merge_checkpoints.py": [*_MERGES, *_RESUMED],
    "callbacks/distill.py": [
        *_STEP,
        "tests/callbacks/test_logit_cache.py",
        "tests/callbacks/test_named.py",
        "tests/test_random.py",
    ],
    "callbacks/*": [
        "tests/callbacks/test_{stem}.py",
        "tests/callbacks/test_named.py",
        "tests/test_mixins.py",
        "tests/test_random.py",
        *_RESUMED,
        *_STEP,
    ],
    "*": ["tests/*/test_{stem}.py", "tests/test_{stem}.py"],
}
"""Patterns of test files for patterns of files of the library; the first that fits. ``{stem}`` is the file's name."""

SLOW_TESTS = {
    "_trainer/lightning.py": ["tests/test_other_name.py"],
    "_trainer/ranks.py": ["tests/callbacks/test_averaging_processes.py", "tests/test_step_processes.py"],
    "_weights/shards.py": ["tests/callbacks/test_sharded_processes.py"],
}
"""Files of slow tests, for what no quick test reaches; they are shown only the faults that the quick ones miss."""


def patterns_for(file: str) -> list[str]:
    """The patterns of the tests of a file of the library, such as ``metrics/brier_score.py``."""
    stem = file.rpartition("/")[2].removesuffix(".py")
    return [
        test.format(stem=stem) for test in next(tests for pattern, tests in TESTS.items() if fnmatch(file, pattern))
    ]


def slow_tests_for(file: str) -> list[str]:
    """The files of slow tests for a file of the library; none for most."""
    return next((tests for pattern, tests in SLOW_TESTS.items() if fnmatch(file, pattern)), [])
