"""Which of webdataset's stages a stream can have; what they all do is in tests/conformance."""

from itertools import count

import pytest
import webdataset as wds
from shard_files import make_table, name_of, planned, write_shards

from flowdata import FlowDataWarning, FlowShards

OPTIONS = {"epoch_size": 40, "seed": 3, "window": 7, "shards_open": 2}


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), (20, 3, 12))


@pytest.fixture(scope="module")
def table(urls):
    return make_table(urls)


@pytest.fixture
def stream(urls, table):
    return FlowShards(urls, table, **OPTIONS).map(name_of)


class Doubled(wds.PipelineStage):
    def run(self, source):
        for sample in source:
            yield sample * 2


class Idle(wds.PipelineStage):
    """It has no ``run``."""


@pytest.mark.parametrize(
    "stage", [Doubled, Idle(), None, 3, "map", [], {"a": 1}, wds.filters.Cached]
)
def test_what_is_no_stage_is_refused_when_it_is_added(stream, stage):
    with pytest.raises(TypeError, match=r"is no stage: give a function .* or an object of a class"):
        stream.compose(stage)
    with pytest.raises(TypeError, match="is no stage"):
        stream.append(stage)
    assert len(list(stream)) == 40


@pytest.mark.parametrize(
    "stage", [wds.slice(10), wds.slice(2, 10), wds.shuffle(5), wds.detshuffle(5)]
)
def test_a_stage_that_would_lose_draws_is_refused_as_its_method_is(stream, stage):
    with pytest.raises(TypeError, match=r"epoch_size=|larger window"):
        stream.compose(stage)


@pytest.mark.parametrize(
    "add", [lambda s: s.batched(2), lambda s: s.listed(2), lambda s: s.compose(wds.batched(2))]
)
def test_batches_of_batches_are_refused(stream, add):
    batches = stream.batched(4, collation_fn=list)
    with pytest.raises(TypeError, match="makes batches once"):
        add(batches)


@pytest.mark.parametrize("add", [lambda s: s.mcached(), lambda s: s.compose(wds.filters.Cached())])
def test_a_cache_of_samples_does_not_repeat_the_first_epoch(stream, table, add):
    with pytest.warns(FlowDataWarning, match="Cached is left out: .*cache_dir="):
        cached = add(stream)
    for epoch in range(2):
        drawn = sorted(cached)
        assert drawn == sorted(planned(table, epoch=epoch, epoch_size=40, seed=3).elements())


class Remembering(wds.PipelineStage):
    """A cache that flowdata does not know."""

    items = None

    def run(self, source):
        if self.items is None:
            self.items = list(source)
        yield from self.items


def test_a_stage_that_gives_old_samples_again_is_an_error_and_not_an_epoch(stream):
    cached = stream.compose(Remembering())
    assert len(list(cached)) == 40
    with pytest.raises(ValueError, match="samples that it was not given: several of one, or old"):
        list(cached)


def test_batches_that_a_later_stage_drops_are_told(stream):
    every = count()
    shorter = stream.batched(8, collation_fn=list).select(lambda batch: next(every) % 2)
    with pytest.warns(FlowDataWarning, match=r"24 draws .* shorter than len\(\) says"):
        assert len(list(shorter)) == 2
    partial = stream.batched(7, collation_fn=list, partial=False)
    assert len(list(partial)) == len(partial) == 5


def test_a_closed_stream_begins_no_pass_and_can_be_closed_again(stream):
    with stream as entered:
        assert entered is stream
        made = stream.compose(Doubled())
        assert len(list(made)) == 40
    stream.close()
    with pytest.raises(ValueError, match="this FlowShards is closed"):
        next(iter(stream))
    assert len(list(made)) == 40
    # Its length and its state are still known.
    assert len(stream) == 40
    assert stream.state_dict()["epoch"] == made.state_dict()["epoch"]


def test_an_error_in_a_with_block_is_not_hidden(stream):
    with pytest.raises(KeyError), stream:
        raise KeyError
