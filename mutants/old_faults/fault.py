"""One fault that the library once had, and the tests that look for such faults."""

from dataclasses import dataclass

LAWS = "tests/callbacks/test_laws_of_the_step.py"
NAMED = "tests/callbacks/test_named_criteria.py"
SAMPLES = "tests/callbacks/test_samples.py"
EVALUATION = "tests/callbacks/test_evaluation_steps.py"
PROBLEMS = "tests/callbacks/test_problems.py"
TEACHERS = "tests/callbacks/test_teacher_calls.py"
TEACHER_FILES = "tests/callbacks/test_load_network.py tests/callbacks/test_teacher_weights.py"
AVERAGES = "tests/averaging tests/callbacks/test_average_weights.py tests/callbacks/test_exchange.py"
FILES = "tests/callbacks/test_average_checkpoints.py"
BATCH = "tests/callbacks/test_batch.py"
EPOCHS = "tests/callbacks/test_epochs.py"
MERGES = (
    "tests/callbacks/test_merge_checkpoints.py tests/callbacks/test_merged_file.py tests/merging/test_merged_content.py"
)
STEP, WEIGHTS, SNAPSHOTS = (f"lightning_objectives/{room}" for room in ("_step", "_weights", "_snapshots"))
CALLBACKS, FILES_OF = "lightning_objectives/callbacks", "lightning_objectives/_files"


@dataclass(frozen=True)
class OldFault:
    """One fault.

    Args:
        name: what it is called.
        wrong: what goes wrong, in a sentence.
        file: where it is planted.
        now: the text of today, which occurs once in the file.
        then: the text that takes its place.
        tests: the files of tests that look for it, with spaces between them.
    """

    name: str
    wrong: str
    file: str
    now: str
    then: str
    tests: str


def planted_text(fault: OldFault, source: str) -> str:
    """The source of the fault's file with the fault in it.

    Raises:
        ValueError: the text of today is not there, or not once.
    """
    count = source.count(fault.now)
    if count != 1:
        raise ValueError(
            f"{fault.name!r}: {fault.now!r} occurs {count} times in {fault.file}, but must occur once. Write the fault "
            "anew for the code of today."
        )
    return source.replace(fault.now, fault.then)
