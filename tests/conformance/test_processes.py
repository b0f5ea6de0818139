"""Every plug-in in several processes: the cells of the table that one process cannot fill."""

import json

import processes_run
import pytest
import torch
from processes import finished
from processes_conditions import fits

from lightning_objectives.testing.conformance import Case, every_method, exemplars

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]
RUNS = processes_run.__file__


def test_conditions_of_two_processes(tmp_path, record_property):
    finished(RUNS, "conditions", tmp_path)
    pair, other, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("pair0", "pair1", "one"))
    assert [cell[:2] for cell in pair] == [cell[:2] for cell in other]
    wrong = [cell for cell in [*pair, *other, *one] if not cell[2].startswith(("pass", "refuses: "))]
    assert not wrong, "\n".join(f"{row}, {condition}: {found}" for row, condition, found in wrong)
    rows = {row for row, _, _ in pair}
    assert rows == {str(plug_in) for plug_in in (*exemplars(), *filter(fits, every_method()))}
    for row, condition, found in [*pair, *one]:
        record_property("cell", f"ranks|{row}|{condition}|{found}")


def test_one_process_of_32_is_two_of_16_and_four_of_8(tmp_path, record_property):
    finished(RUNS, "joined", tmp_path)
    ends = {count: [torch.load(tmp_path / f"{count}-{rank}.pt") for rank in range(count)] for count in (1, 2, 4)}
    (alone,) = ends[1]
    for row in filter(fits, every_method()):
        why = "; ".join(method.by_process for c in row.make(Case()) for method in c.methods() if method.by_process)
        for count in (2, 4):
            far = [
                name
                for mine in ends[count]
                for name, value in mine[str(row)].items()
                if not torch.allclose(value, alone[str(row)][name], rtol=0, atol=1e-6)
            ]
            found = f"differs: {why}" if why else "pass"
            assert bool(far) == bool(why), f"{row}, {count} processes: declared {why!r}, but these differ: {far}"
            record_property("cell", f"ranks|{row}|one_process_is_{count}|{found}")
