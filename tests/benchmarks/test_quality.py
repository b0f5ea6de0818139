"""The evidence's own tests: statistics by hand, resuming, pairing, the tasks' data, the page, a run of each kind."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.quality import budget, grid, nets, page, pool, teacher, train
from benchmarks.quality.arms import AVERAGES, METHODS, averages, logged_names
from benchmarks.quality.data import SIMILAR, Batchable, Fashion, Splits, Windows, chosen_of, noisy, train_loader
from benchmarks.quality.measures import measures, text_measures
from benchmarks.quality.readouts import MERGES, SNAPSHOTS
from benchmarks.quality.results import Results, first_below, smooth
from benchmarks.quality.stats import paired, verdict
from benchmarks.quality.store import Store
from lightning_objectives import cli, discovery

# -- statistics --


def test_a_paired_difference_by_hand():
    """Differences 1, 2 and 3: of all 27 resamples one has the mean 1 and one 3, so 3.7 % are at either end."""
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.values, found.mean) == ((1.0, 2.0, 3.0), 2.0)
    assert (found.low, found.high) == (1.0, 3.0)  # 1/27 > 2.5 %
    assert paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == found  # the generator is its own


def test_an_interval_is_that_of_all_resamples():
    """Five values: each of the 3125 resamples is as likely as every other."""
    values = np.array([-3.0, -1.0, 0.5, 2.0, 4.0])
    every = values[np.stack(np.meshgrid(*[range(5)] * 5), -1).reshape(-1, 5)].mean(1)
    found = paired(values, np.zeros(5))
    np.testing.assert_allclose([found.low, found.high], np.percentile(every, [2.5, 97.5]), atol=0.15)


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([-1, -2, -1, -3, -1], "gain"),
        ([1, 2, 1, 3, 1], "hurts"),
        ([-1, -2, 1, 2, 1], "no gain"),
        ([-4, -4, -4, -4, 0.1], "no gain"),  # the interval is below 0, but one seed in five is not
        ([-1, -2, -1, -3], "not shown"),
    ],
)
def test_the_word_of_a_comparison(differences, word):
    assert paired(differences, [0.0] * len(differences)).word == word


def test_values_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["gain", "no gain"], "gain"),
        (["gain", "no gain", "no gain"], "mixed"),
        (["gain", "hurts"], "mixed"),
        (["hurts", "no gain"], "hurts"),
        (["no gain"], "no gain"),
        (["gain", "not shown"], "not shown"),
        ([], "not shown"),
    ],
)
def test_the_word_of_a_claim(words, word):
    assert verdict(words) == word


def test_measures_by_hand():
    """Two of three are right: class 0 once of two, class 1 always; each prediction has the probability 3/4 or so."""
    logits = torch.full((12, 10), -50.0)
    target = torch.arange(12) % 10
    logits[torch.arange(12), target] = np.log(3.0)
    logits[torch.arange(12), (target + 1) % 10] = 0.0
    logits[10] = logits[11]  # the label is 0, and the logits are those of a 1
    found = measures(logits, target)
    assert found["error"] == pytest.approx(1 / 12, abs=1e-4)
    assert found["worst class"] == pytest.approx(1 / 2, abs=1e-4)
    lost = 50 + np.log(4)  # class 0 has the logit -50 there, of 4 in all
    assert found["nll"] == pytest.approx((11 * np.log(4 / 3) + lost) / 12, abs=1e-3)


def test_the_worst_tenth_of_a_text():
    logits = torch.zeros(40, 2)
    logits[:2, 1] = 10.0
    found = text_measures(logits, torch.zeros(40, dtype=torch.long), context=2)
    assert found["worst tenth"] == pytest.approx((10 + np.log(2)) / 2, abs=1e-3)  # one bad window and one of log 2


def test_the_first_step_below_a_loss():
    curve = smooth([4.0, 2.0, 3.0, 1.0], width=2)
    np.testing.assert_allclose(curve, [4.0, 3.0, 2.5, 2.0])
    assert (first_below(curve, 2.6), first_below(curve, 1.0)) == (0.75, 1.0)


# -- the store and the queue --


def test_half_a_line_is_done_again(tmp_path):
    file = tmp_path / "results.jsonl"
    store = Store(file)
    store.add({"key": "a", "value": 1})
    store.add({"key": "b", "value": 2})
    file.write_text(file.read_text()[:-5])  # a kill within the last line
    again = Store(file)
    assert set(again.runs) == {"a"}
    again.add({"key": "b", "value": 3})
    assert Store(file).runs == {"a": {"key": "a", "value": 1}, "b": {"key": "b", "value": 3}}


def searched(task, arm, values):
    """Runs of the search with these validation errors, by factor."""
    runs = {}
    for job, value in zip(grid.searches("", task, arm), values):
        final = {"raw": {"val": {"error": value}}}
        runs[job.key] = {"key": job.key, "final": final, "factor": job.factor}
    return runs


def test_a_run_waits_for_its_search_and_takes_its_choice(tmp_path):
    store = Store(tmp_path / "none")
    final = grid.Job("dropout", "MLP", grid.LONGER.name, 0, "final")
    assert pool.ready(store, [final]) is None
    store.runs = searched("MLP", grid.ONE.name, [0.3, 0.1, 0.2])
    assert pool.ready(store, [final]) == replace(final, factor=grid.FACTORS[1])


def test_nothing_is_run_twice(tmp_path, monkeypatch):
    store = Store(tmp_path / "results.jsonl")
    for job in list(grid.jobs())[:-1]:
        store.runs[job.key] = {"key": job.key}
    asked = []
    monkeypatch.setattr(pool, "ready", lambda store, waiting: asked.extend(waiting))
    pool.run(store, workers=1)
    assert asked == [list(grid.jobs())[-1]]


# -- the grid --


def test_the_budget_is_within_its_limits():
    planned = list(grid.jobs())
    assert len(planned) <= budget.LIMIT_RUNS
    assert sum(map(budget.seconds, planned)) <= 3600 * budget.LIMIT_HOURS * budget.CORES
    rows = budget.rows()
    assert sum(row[3] + row[4] for row in rows) == len(planned)


def test_every_comparison_is_of_arms_that_are_run_on_five_seeds():
    for claim in grid.CLAIMS.values():
        for asked in claim.judged:
            for arm in (asked.arm, asked.against):
                groups = [g for g in grid.GROUPS if g.task == asked.task]
                seeds = [g.seeds for g in groups for a in g.arms if a.name == arm.partition(": ")[0]]
                assert seeds, (claim.name, arm)
                assert all(len(s) >= 5 for s in seeds)


def test_arms_and_their_searches_are_known():
    for task in grid.TASKS:
        arms = grid.arms(task)
        assert len({(arm.name, str(arm.settings())) for arm in arms.values()}) == len(arms)
        for arm in arms.values():
            assert all(part.method in METHODS for part in arm.parts)
            assert arm.as_long_as is None or arm.as_long_as in arms


def test_a_merge_takes_the_newest_snapshots(tmp_path):
    files = [tmp_path / f"{n}" for n in range(1, SNAPSHOTS + 1)]
    assert [int(f.name) for f in MERGES["WSM 1-sqrt"].files(files)] == list(range(28, 37))
    assert [int(f.name) for f in MERGES["WSM 1-sqrt, window 18/36, every 6"].files(files)] == [24, 30, 36]
    assert [int(f.name) for f in MERGES["WSM 1-sqrt, after a third"].files(files)] == [10, 11, 12]


def test_averages_are_logged_under_names_of_their_own():
    carried = averages("all", 100)
    assert list(carried) == list(AVERAGES)
    assert logged_names(carried)["ema_2"] == list(AVERAGES)[1]
    assert carried["SWA from 0.75"].start_step == 75


# -- the data --


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_label_noise_is_of_the_stated_rate_in_every_class(kind):
    clean = torch.arange(10).repeat_interleave(50)
    target = noisy(clean, 0.4, kind, torch.Generator().manual_seed(0))
    wrong = target != clean
    assert [wrong[clean == label].sum().item() for label in range(10)] == [20] * 10
    if kind == "asymmetric":
        assert all(t == SIMILAR[c] for c, t in zip(clean[wrong].tolist(), target[wrong].tolist()))
    assert set(SIMILAR) == set(SIMILAR.values()) == set(range(10))


def test_the_long_tail_falls_geometrically_from_a_hundred_to_one():
    counts = Fashion(size=8000, tail=100.0).counts()
    assert counts[0] / counts[-1] == pytest.approx(100, rel=0.02)
    assert counts[0] / counts[1] == pytest.approx(100 ** (1 / 9), rel=0.01)
    assert sum(counts) == pytest.approx(8000, abs=5)
    labels = torch.arange(10).repeat_interleave(4000)
    chosen = chosen_of(labels, counts, torch.Generator().manual_seed(0))
    assert Counter(labels[chosen].tolist()) == Counter(dict(enumerate(counts)))
    with pytest.raises(ValueError, match="5 samples of class 0 are asked for, but there are 2"):
        chosen_of(torch.zeros(2), [5], torch.Generator())


def tiny(size=256):
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(size, 1, 28, 28, generator=generator), torch.arange(size) % 10
    return Batchable(images, target, index=torch.arange(size))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Every task on a few images or characters, and an untrained teacher."""
    text = torch.randint(0, 20, (3000,), generator=torch.Generator().manual_seed(0))
    images = Splits(tiny(), tiny(200), tiny(200))
    words = Splits(*(Windows(text, 64) for _ in range(3)))
    monkeypatch.setattr(Fashion, "splits", lambda self, seed: images)
    monkeypatch.setattr("benchmarks.quality.data.Text.splits", lambda self, seed: words)
    monkeypatch.setattr(grid, "vocabulary", lambda: 20)
    monkeypatch.setattr(teacher, "network", lambda: nets.resnet8(8).eval())
    monkeypatch.setenv("QUALITY_ANSWERS", str(tmp_path))


def test_noise_and_tail_leave_validation_and_test_alone(monkeypatch):
    whole = Splits(tiny(2000), tiny(100), tiny(100))
    monkeypatch.setattr("benchmarks.quality.data._fashion", lambda: whole)
    splits = Fashion(size=1000, noise=0.4).splits(3)
    assert splits.val is whole.val
    assert splits.test is whole.test
    clean = whole.train.tensors[1][splits.train.index]
    assert (splits.train.tensors[1] != clean).double().mean() == pytest.approx(0.4)


def test_a_seed_pairs_data_order_and_initial_weights(small, monkeypatch):
    """The first batches and the weights before them, of an arm with nothing and one with everything."""
    seen = {}

    class Spy(nets.Module):
        def on_train_start(self):
            names = sorted(name for name in self.state_dict() if name.startswith("network."))
            seen[self.key] = [torch.cat([self.state_dict()[name].flatten().double() for name in names])]

        def training_step(self, batch, batch_idx):
            seen[self.key].append(batch[1].clone())
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(train, "Module", Spy)
    for arm, seed in (("plain", 0), (grid.EIGHT.name, 0), ("plain", 1)):
        Spy.key = f"{arm} {seed}"
        train.execute(grid.Job("", "MLP", arm, seed, "final", 1.0), steps=3, evaluate=False)
    plain, other, third = seen.values()
    assert all(torch.equal(a, b) for a, b in zip(plain, other))
    assert not torch.equal(plain[0], third[0])
    assert not all(torch.equal(a, b) for a, b in zip(plain[1:], third[1:]))


def test_batches_are_whole_and_of_every_sample():
    loader = train_loader(tiny(256), batch_size=64, seed=0)
    batches = [batch[1] for batch in loader]
    assert [len(batch) for batch in batches] == [64] * 4
    assert Counter(torch.cat(batches).tolist()) == Counter((torch.arange(256) % 10).tolist())


# -- runs and the page --

KINDS = [
    ("MLP", grid.EIGHT.name),
    ("clean", grid.UPPER.name),
    ("clean", "DHKD, MLP head, aligned"),
    ("clean", grid.ALONE.name),
    ("clean", grid.ALL),
    ("characters", "constant"),
    ("characters", grid.TOKENS.name),
]


@pytest.mark.parametrize(("task", "arm"), KINDS)
def test_a_run_of_each_kind(small, task, arm):
    job = grid.Job("a claim", task, arm, 0, "final", 1.0)
    run = json.loads(json.dumps(train.execute(job, steps=SNAPSHOTS if grid.arms(task)[arm].carries else 4)))
    assert (run["key"], run["task"], run["arm"], run["seed"]) == (job.key, task, arm, 0)
    assert run["versions"]["torch"] == torch.__version__
    assert {"training", "all"} <= run["seconds"].keys()
    assert np.isfinite(run["loss"]["values"]).all()
    assert np.isfinite([v for found in run["final"].values() for v in found["test"].values()]).all()
    expected = {"": 1, "few": 4, "all": 1 + len(AVERAGES) + len(MERGES)}[grid.arms(task)[arm].carries]
    assert len(run["final"]) == expected
    if expected > 4:
        assert {f"{name}/nll" for name in ("raw", *AVERAGES)} <= run["curves"].keys()


def test_a_search_never_sees_the_test(small):
    run = train.execute(grid.Job("", "MLP", "plain", 0, "search", 1.0), steps=2)
    assert set(run["final"]["raw"]) == {"val"}


def test_the_page_of_a_few_results(tmp_path, monkeypatch):
    """Two arms on five seeds, the first better by 0.01 each: a gain where it was promised, *not shown* elsewhere."""
    store = Store(tmp_path / "none")
    for seed in grid.SEEDS:
        for arm, error in ((grid.EIGHT.name, 0.10), (grid.ONE.name, 0.11)):
            key = grid.Job("", "MLP", arm, seed, "final").key
            test = dict.fromkeys(("error", "worst class", "nll", "ece", "ece scaled"), error + 0.001 * seed)
            loss = {"every": 5, "values": [2.0, 1.0, error, error]}
            about = {"factor": 1.0, "steps": 20, "seconds": {"training": 1.0, "all": 2.0}, "revision": "abc"}
            about |= {"versions": {"torch": "2"}, "loss": loss, "final": {"raw": {"test": test}}}
            store.runs[key] = {"key": key, **about}
    page.write(store, docs=tmp_path / "docs", verdicts=tmp_path / "words.json")
    text = (tmp_path / "docs" / "index.md").read_text()
    row = "| MLP | MSD M=8 p=0.3 | dropout p=0.3 | error | 0.1020 | 0.1120 | -0.0100 [-0.0100, -0.0100] | 5 | gain |"
    assert row in text
    assert "**Not run, or not on all seeds**" in text
    assert json.loads((tmp_path / "words.json").read_text())["MultiSampleDropout"] == "not shown"
    assert (tmp_path / "docs" / "dropout.png").read_bytes()[:4] == b"\x89PNG"
    assert Results(store).compared(grid.CLAIMS["dropout"].judged[0]).word == "gain"


def test_the_words_are_of_methods_that_exist_and_the_command_says_them(capsys):
    said = json.loads(page.WORDS.read_text())
    assert set(said) <= {cls.__name__ for _, cls in discovery.methods()}
    assert set(said.values()) <= {"gain", "no gain", "hurts", "mixed", "not shown"}
    cli.main(["methods", "BEMA"])
    assert f"evidence: {said['BEMA']}" in capsys.readouterr().out
