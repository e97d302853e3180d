"""The packs of an epoch: every draw once, as many packs in every epoch, none too long."""

import copy
import pickle
import tracemalloc

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from test_packing import KINDS, lengths_like

from flowdata import ByLength, EpochPlan, MismatchError, PackPlan, Strata
from flowdata.core.cursor import Cursor
from flowdata.core.pack_template import Slots
from flowdata.core.shard_plan import ShardPlan

laws = examples(120)
CAPACITY = 40


@st.composite
def rows(draw):
    """Weights, lengths and groups of some rows, of which at least one is drawn."""
    some = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0.0, 1e-9, 0.1, 0.5, 1.0, 30.0]),
                st.integers(1, CAPACITY),
                st.integers(-2, 2),
            ),
            min_size=1,
            max_size=60,
        ).filter(lambda rows: any(weight for weight, _, _ in rows))
    )
    return tuple(np.array(column) for column in zip(*some, strict=True))


@st.composite
def plans(draw):
    weights, lengths, groups = draw(rows())
    kind = draw(st.sampled_from(["systematic", "multinomial", "distinct", "strata", "alpha"]))
    options = {"epoch_size": 4 * draw(st.integers(1, 50)), "seed": draw(st.integers(0, 2**63))}
    if kind == "multinomial":
        options["scheme"] = kind
    elif kind == "distinct":
        options["epoch_size"] = kind
    elif kind == "strata":
        options["arrange"] = Strata(groups, 4, levels=2)
    elif kind == "alpha":
        options["alpha"] = 0.5
    return EpochPlan(weights, **options), lengths


def counts_of(packs, rows):
    return np.bincount(np.concatenate([np.zeros(0, int), *packs]), minlength=rows)


@laws
@given(plans(), st.sampled_from([1, 4]), st.sampled_from([1, 2, 3, 8]))
def test_ranks_have_every_draw_of_every_epoch_once_in_packs_that_are_not_too_long(
    made, batch_size, ranks
):
    plan, lengths = made
    batch_size = 1 if len(plan) % batch_size else batch_size
    packs = PackPlan(plan, lengths, CAPACITY, batch_size=batch_size)
    assert len(packs) % batch_size == 0
    for epoch in (0, 1, 12):
        drawn = packs.at_epoch(epoch)
        assert len(drawn) == len(packs)
        cursors = [
            Cursor(drawn, rank=rank, replicas=ranks, drop_last=True) for rank in range(ranks)
        ]
        dealt = [pack for at in cursors for pack in drawn.of(at.numbers(0, len(at)))]
        left = drawn[len(cursors[0]) * ranks :]
        counts = counts_of(dealt + left, lengths.size)
        assert np.array_equal(counts, drawn.plan.counts())
        assert counts.sum() == len(plan)
        assert all(pack.size and lengths[pack].sum() <= CAPACITY for pack in dealt + left)
        expected = plan.weights.expected_counts(len(plan))
        if plan.scheme == "systematic":
            assert (np.floor(expected - 1e-9) <= counts).all()
            assert (counts <= np.ceil(expected + 1e-9)).all()
        else:
            assert np.array_equal(counts, plan.at_epoch(epoch).counts())


@laws
@given(rows(), st.integers(1, 60), st.booleans())
def test_no_slot_ever_has_a_row_longer_than_its_width(made, draws, in_strata):
    """Of all offsets of the pass: the proof that the number of packs is constant, in numbers."""
    weights, lengths, groups = made
    order = np.lexsort((lengths, groups)) if in_strata else lengths.argsort(kind="stable")
    bits = 6
    masses = np.floor(weights / weights.sum() * (draws << bits)).astype(np.int64)
    masses[masses.argmax()] += (draws << bits) - masses.sum()
    runs = groups if in_strata else np.zeros_like(groups)
    slots = Slots(lengths[order], masses[order], bits, runs[order])
    ends = np.cumsum(masses[order])
    for parts in (1, 8):
        widths = np.array([slots.widths(part, parts) for part in range(parts)])
        longest = np.zeros_like(widths)
        for offset in range(1 << bits):
            points = (np.arange(1, draws + 1) << bits) - offset
            drawn = lengths[order][np.searchsorted(ends, points)]
            part = offset * parts >> bits
            longest[part] = np.maximum(longest[part], drawn)
        # As wide as it has to be, and no wider than the longest row in it.
        assert (widths >= longest).all()
        if not in_strata:
            assert np.array_equal(widths, longest)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("options", [{}, {"arrange": "strata"}, {"scheme": "multinomial"}])
def test_the_number_of_packs_is_one_constant_over_200_epochs(options, batch_size):
    random = np.random.default_rng(5)
    lengths, capacity = lengths_like("long tail", 500)
    if "arrange" in options:
        options = {"arrange": Strata(random.integers(0, 4, 500), 8)}
    plan = EpochPlan(random.exponential(size=500), **options)
    packs = PackPlan(plan, lengths, capacity, batch_size=batch_size)
    for epoch in range(200):
        drawn = packs.at_epoch(epoch)[:]
        assert len(drawn) == len(packs)
        assert all(pack.size and lengths[pack].sum() <= capacity for pack in drawn)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "least"), [(20_000, 0.99), (2_000, 0.98)])
def test_packs_are_full(kind, rows, least):
    lengths, capacity = lengths_like(kind, rows)
    weights = np.exp(-np.random.default_rng(1).gamma(2, 0.5, rows))
    packs = PackPlan(EpochPlan(weights), lengths, capacity)
    tokens = [lengths[packs.at_epoch(epoch).plan[:]].sum() for epoch in range(5)]
    fill = np.mean(tokens) / (len(packs) * capacity)
    assert fill >= least
    assert packs.fill == pytest.approx(fill, abs=0.003)


@pytest.mark.parametrize("groups", [4, 40])
def test_packs_of_strata_are_full(groups):
    lengths, capacity = lengths_like("chat", 20_000)
    strata = Strata(np.arange(20_000) % groups, 8)
    packs = PackPlan(EpochPlan(np.ones(20_000), arrange=strata), lengths, capacity)
    assert packs.fill >= 0.99


def test_each_group_has_its_share_of_every_epoch():
    random = np.random.default_rng(2)
    lengths, capacity = lengths_like("chat", 900)
    groups, weights = random.integers(0, 3, 900), random.random(900)
    plan = EpochPlan(weights, arrange=Strata(groups, 8, levels=1))
    packs = PackPlan(plan, lengths, capacity)
    expected = np.bincount(groups, weights=plan.weights.expected_counts())
    for epoch in range(20):
        counts = np.bincount(groups[packs.at_epoch(epoch).plan[:]])
        assert (np.abs(counts - expected) < 1).all()


def small_packs(**options):
    lengths, capacity = lengths_like("chat", 300)
    weights = np.random.default_rng(3).random(300)
    return PackPlan(EpochPlan(weights, seed=5, **options), lengths, capacity, batch_size=2)


def same_packs(some, others):
    assert len(some) == len(others)
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


def test_packs_are_a_pure_function_of_their_epoch():
    packs = small_packs().at_epoch(3)
    again = small_packs().at_epoch(9).at_epoch(3)
    assert same_packs(packs[:], again[:])
    assert not same_packs(packs[:], packs.at_epoch(4)[:])
    assert not same_packs(packs[:], packs.at_epoch(3, seed=6)[:])
    assert packs.at_epoch(3) is packs


@pytest.mark.parametrize("options", [{}, {"scheme": "multinomial"}])
def test_one_pack_a_slice_and_any_numbers_are_the_same_packs(options):
    packs = small_packs(**options)
    assert same_packs(packs[:], list(packs))
    assert same_packs(packs[3:9:2], packs.of([3, 5, 7]))
    assert np.array_equal(packs[-1], packs[len(packs) - 1])
    assert packs[0].dtype == np.int64
    assert np.array_equal(packs.plan[:], np.concatenate(packs[:]))
    assert packs.of([]) == []
    with pytest.raises(IndexError):
        packs[len(packs)]
    for wrong in ([0, -1], [len(packs)]):
        with pytest.raises(IndexError, match="not all in an epoch"):
            packs.of(wrong)


def test_a_copy_in_another_process_makes_the_same_packs_and_travels_without_them():
    packs = small_packs()
    fresh = len(pickle.dumps(small_packs()))
    first = packs[:]
    assert len(pickle.dumps(packs)) == fresh
    copied = pickle.loads(pickle.dumps(packs))
    assert len(copied) == len(packs)
    assert copied.fill == packs.fill
    assert same_packs(copied.at_epoch(1)[:], packs.at_epoch(1)[:])
    assert same_packs(copied[:], first)
    assert same_packs(copy.deepcopy(packs)[:], first)
    assert same_packs(packs.released()[:], first)


def test_cursors_of_packs_go_on_from_a_state_with_any_number_of_ranks():
    packs = small_packs().at_epoch(2)
    state = Cursor(packs, rank=1, replicas=2).step(5).state()
    fresh = small_packs()
    left = []
    for rank in range(3):
        cursor = Cursor(fresh, rank=rank, replicas=3, drop_last=True).load(state, owner="Packs")
        left += cursor.plan.of(cursor.numbers(0, len(cursor)))
    at = Cursor(fresh).load(state, owner="Packs")
    assert at.position == 10
    rest = packs[10 + len(left) :]
    assert np.array_equal(counts_of(left + rest, 300), counts_of(packs[10:], 300))


@pytest.mark.parametrize(
    "other",
    [
        {"max_length": 2050},
        {"batch_size": 1},
        {"too_long": "truncate"},
        {"lengths": np.full(300, 9)},
    ],
    ids=["max_length", "batch_size", "too_long", "lengths"],
)
def test_a_state_of_other_packs_is_refused(other):
    lengths, capacity = lengths_like("chat", 300)
    options = {"lengths": lengths, "max_length": capacity, "batch_size": 2}
    plan = EpochPlan(np.ones(300))
    state = Cursor(PackPlan(plan, **options)).state()
    with pytest.raises(MismatchError, match=f"it has {next(iter(other))}="):
        Cursor(PackPlan(plan, **(options | other))).load(state, owner="Packs")


def test_a_state_of_draws_is_none_of_packs():
    packs = small_packs()
    with pytest.raises(MismatchError):
        Cursor(packs).load(Cursor(EpochPlan(np.ones(300))).state(), owner="Packs")


@pytest.mark.parametrize(
    ("lengths", "max_length", "draws", "expected"),
    [
        ([7], 7, 1, 1),
        ([7], 20, 10, 5),
        ([5, 5, 5], 5, 3, 3),
        ([1] * 50, 10**6, 50, 1),
        ([1] * 50, 1, 50, 50),
        ([10**6, 1], 10**6, 2, 2),
        ([10**12, 10**12], 10**12 + 5, 4, 4),
    ],
)
def test_extremes(lengths, max_length, draws, expected):
    packs = PackPlan(EpochPlan(np.ones(len(lengths)), epoch_size=draws), lengths, max_length)
    assert len(packs) == expected
    assert counts_of(packs[:], len(lengths)).sum() == draws


def test_very_heavy_rows_and_rows_that_are_never_drawn_are_packed():
    weights = np.array([1e300, 1.0, 0.0, 1e-300, 5e299])
    packs = PackPlan(EpochPlan(weights, epoch_size=90), [3, 4, 10**9, 9, 2], 10)
    for epoch in range(5):
        counts = counts_of(packs.at_epoch(epoch)[:], 5)
        assert counts[[1, 2, 3]].sum() == 0
        assert counts.sum() == 90


def test_rows_of_weight_0_may_be_of_any_length():
    packs = PackPlan(EpochPlan([1.0, 0.0, 1.0, 0.0]), [3, 0, 4, 99], 7)
    assert len(packs) == 2


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"lengths": [3, 9, 4]},
            ValueError,
            r"packs hold 8 tokens: 1 of 3 .*\(row 1: 9\).*truncate",
        ),
        ({"lengths": [3, 0, 4]}, ValueError, r"at least 1: 1 of 3 rows are shorter \(row 1: 0\)"),
        ({"lengths": [3, np.nan, 4]}, ValueError, r"whole numbers: 1 of 3 .*\(row 1: nan\)"),
        ({"lengths": [3, 2.5, 4]}, ValueError, r"whole numbers: 1 of 3 .*\(row 1: 2.5\)"),
        ({"lengths": [3, np.inf, 4]}, ValueError, "whole numbers"),
        (
            {"lengths": np.array([3, 2**63, 4], dtype=np.uint64)},
            ValueError,
            "whole numbers: 1 of 3",
        ),
        ({"lengths": None}, ValueError, "None has no lengths of its rows: give a whole number"),
        ({"lengths": [[3, 4, 5]]}, ValueError, r"shape \(1, 3\)"),
        ({"lengths": [True, True, False]}, ValueError, "bool"),
        ({"lengths": ["a", "b", "c"]}, ValueError, "numbers"),
        ({"lengths": [3, 4]}, MismatchError, "lengths are of 2 rows, but there are 3 weights"),
        ({"max_length": 0}, ValueError, "max_length must be an int >= 1, got 0"),
        ({"max_length": 7.5}, ValueError, "max_length must be an int >= 1, got 7.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be an int >= 1, got 0"),
        ({"batch_size": 4}, ValueError, "4 to be a multiple of batch_size=4, but .* only 3 draws"),
        ({"too_long": "drop"}, ValueError, 'too_long must be "raise" or "truncate", got \'drop\''),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_refused_with_what_was_found(change, error, text):
    options = {"lengths": [3, 5, 4], "max_length": 8} | change
    with pytest.raises(error, match=text):
        PackPlan(EpochPlan(np.ones(3)), **options)


def test_rows_that_are_too_long_count_as_what_is_left_of_them():
    packs = PackPlan(EpochPlan(np.ones(4)), [3, 90, 5, 8], 8, too_long="truncate")
    assert sorted(sorted(pack.tolist()) for pack in packs[:]) == [[0, 2], [1], [3]]


def test_whole_floats_and_tables_with_lengths_are_lengths():
    class Table:
        lengths = np.array([3, 4, 5], dtype=np.int32)

    plan = EpochPlan(np.ones(3))
    of_floats = PackPlan(plan, [3.0, 4.0, 5.0], 8)
    assert of_floats.identity() == PackPlan(plan, Table(), 8).identity()
    Table.lengths = None
    with pytest.raises(ValueError, match="this Table has no lengths of its rows"):
        PackPlan(plan, Table(), 8)


def test_packs_of_a_plan_by_length_are_refused():
    plan = EpochPlan(np.ones(3), arrange=ByLength([1, 2, 3], 2))
    with pytest.raises(ValueError, match="give the plan no ByLength"):
        PackPlan(plan, [1, 2, 3], 3)


def test_packs_of_another_plan_are_refused():
    shards = ShardPlan(np.ones(3), np.array([0, 3]))
    with pytest.raises(TypeError, match="made of an EpochPlan, got ShardPlan"):
        PackPlan(shards, [1, 2, 3], 3)


def test_independent_draws_that_need_more_packs_say_so(monkeypatch):
    monkeypatch.setattr("flowdata.core.packed_plan._SIGMAS", 0.0)
    packs = small_packs(scheme="multinomial")
    with pytest.raises(ValueError, match=r"need \d+ packs of 2,048 tokens, more than the \d+"):
        [packs.at_epoch(epoch)[:] for epoch in range(40)]


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_an_epoch_takes_at_most_60_bytes_a_draw(scheme):
    lengths, capacity = lengths_like("chat", 100_000)
    packs = PackPlan(EpochPlan(np.ones(100_000), scheme=scheme), lengths, capacity)
    packs.plan.weights.hold()
    tracemalloc.start()
    drawn = packs.at_epoch(1)
    drawn[0]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * 100_000
    assert held < 8 * 100_000
