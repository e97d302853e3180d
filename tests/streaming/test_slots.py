import numpy as np
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata.streaming.slots import Slots

laws = examples(200)


@st.composite
def slots(draw):
    """Runs apart, and at the end some numbers twice."""
    steps = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), max_size=8))
    starts, stops, at = [], [], 0
    for gap, length in steps:
        starts.append(at + gap)
        at += gap + length
        stops.append(at)
    for _ in range(draw(st.integers(0, 3))):
        starts += [at, at]
        at += 1
        stops += [at, at]
    return Slots(starts, stops)


def listed(found):
    return [n for pair in zip(found.starts, found.stops, strict=True) for n in range(*pair)]


@laws
@given(slots(), st.data())
def test_slots_are_an_ascending_list(found, data):
    numbers = listed(found)
    assert len(found) == len(numbers)
    assert found.array().tolist() == numbers == sorted(numbers)
    first = data.draw(st.integers(0, len(numbers)))
    last = data.draw(st.integers(first, len(numbers)))
    assert found.cut(first, last).array().tolist() == numbers[first:last]
    bounds = np.arange(-1, 80)
    assert found.count_below(bounds).tolist() == [sum(n < b for n in numbers) for b in bounds]


@laws
@given(slots(), st.data())
def test_some_of_them_and_the_others_are_all(found, data):
    numbers = listed(found)
    size = len(numbers)
    pairs = data.draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=5))
    places = Slots.joined([Slots.run(min(pair), max(pair)) for pair in pairs])
    chosen = set(listed(places))
    assert found.without(places).array().tolist() == [
        number for place, number in enumerate(numbers) if place not in chosen
    ]
    once = Slots.of(np.array(sorted(chosen), dtype=np.int64))
    assert found.select(once).array().tolist() == [numbers[place] for place in sorted(chosen)]


def test_memory_is_that_of_the_runs():
    whole = Slots.run(0, 10**12)
    left = whole.without(Slots([5, 10**6], [10**5, 10**11]))
    assert left.starts.size == 3
    assert len(left) == 10**12 - (10**5 - 5) - (10**11 - 10**6)
