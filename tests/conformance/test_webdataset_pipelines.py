"""What webdataset's tests of pipelines assert, with FlowShards in place of WebDataset.

The assertions are those of webdataset 1.0, tests/test_pipeline.py, test_compat.py, test_filters.py,
test_loaders.py and test_mix.py, in our words and over shards made here; README.md lists what does
not apply. The order of samples is FlowShards' own, so they are compared without it.
"""

import json
import pickle
from functools import partial

import numpy as np
import PIL.Image
import pytest
import torch
import webdataset as wds
from image_shards import write_images
from torch.utils.data import DataLoader
from webdataset import autodecode, handlers

from flowdata import FlowShards, ShardError, index_shards

SAMPLES = 47
FIELDS = {"png", "cls", "wnid", "json", "txt.gz"}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards") / "images.tar.gz"
    write_images(path, SAMPLES)
    return str(path)


@pytest.fixture(scope="module")
def index(url):
    return index_shards(url, progress=False)


@pytest.fixture
def pipeline(url, index):
    """Makes a stream of each sample once, and stages."""

    def make(*stages, **options):
        return FlowShards(url, index, np.ones(SAMPLES), **options).compose(*stages)

    return make


def number_of(sample):
    return int(sample["cls"])


def fields(sample):
    return {name for name in sample if not name.startswith("_")}


# Reading


def test_a_pass_gives_every_sample_with_its_key_its_url_and_its_raw_fields(pipeline, url):
    samples = list(pipeline())
    assert sorted(map(number_of, samples)) == list(range(SAMPLES))
    for sample in samples:
        assert (sample["__key__"], sample["__url__"]) == (f"{number_of(sample):04d}", url)
        assert fields(sample) == FIELDS
        assert all(isinstance(sample[name], bytes) for name in FIELDS)


def test_two_passes_give_as_many_samples(pipeline):
    stream = pipeline()
    assert len(list(stream)) == len(list(stream)) == len(stream) == SAMPLES


def test_a_shard_that_is_missing_is_an_error_in_the_pass(pipeline, index, tmp_path):
    stream = FlowShards(str(tmp_path / "images.tar.gz"), index, np.ones(SAMPLES))
    with pytest.raises(ShardError, match="there is no shard"):
        list(stream)


def test_a_shard_that_is_cut_off_is_an_error_or_left_to_the_handler(url, index, tmp_path):
    with open(url, "rb") as whole:
        (tmp_path / "images.tar.gz").write_bytes(whole.read(1000))
    cut = partial(FlowShards, str(tmp_path / "images.tar.gz"), index, np.ones(SAMPLES))
    with pytest.raises(ShardError):
        list(cut())


# Stages


def doubled(source):
    for sample in source:
        yield number_of(sample) * 2


class Doubled(wds.PipelineStage):
    def run(self, source):
        return doubled(source)


class LaterDoubled(wds.PipelineStage):
    def __init__(self, times):
        self.times = times

    def run(self, source):
        for sample in source:
            yield number_of(sample) * self.times


@pytest.mark.parametrize(
    "stage", [doubled, Doubled(), LaterDoubled(2), wds.map(lambda sample: number_of(sample) * 2)]
)
@pytest.mark.parametrize("way", ["compose", "append"])
def test_a_stage_is_a_function_a_curried_function_or_an_object_with_run(pipeline, stage, way):
    stream = pipeline(stage) if way == "compose" else pipeline()
    if way == "append":
        stream.append(stage)
    assert sorted(stream) == list(range(0, 2 * SAMPLES, 2))


def test_stages_are_numbered_and_compose_leaves_what_it_is_called_on(pipeline):
    base = pipeline()
    first, second = Doubled(), wds.map(str)
    made = base.compose(first, second)
    assert made.stage(0) is first
    assert made.stage(1) is second
    assert base.pipeline == []
    assert {type(item) for item in made} == {str}


STAGES = {
    "to_tuple": (wds.to_tuple("png;jpg", "cls"), lambda item: (type(item), len(item)), (tuple, 2)),
    "to_tuple, one text": (wds.to_tuple("png;jpg cls"), len, 2),
    "extract_keys": (wds.extract_keys("*png;*jpg", "*cls"), len, 2),
    "extract_keys, some missing": (
        wds.extract_keys("cls", "none", ignore_missing=True), len, 1
    ),
    "rename": (wds.rename(image="png;jpg", keep=False), fields, {"image"}),
    "rename and keep": (wds.rename(image="png"), fields, FIELDS - {"png"} | {"image"}),
    "rename_keys": (wds.rename_keys(image="png"), fields, {"image"}),
    "rename_keys and keep": (
        wds.rename_keys(image="png", keep_unselected=True),
        lambda sample: fields(sample) >= FIELDS - {"png"} | {"image"},
        True,
    ),
    "map_dict": (wds.map_dict(cls=int), lambda sample: type(sample["cls"]), int),
    "select": (wds.select(lambda sample: number_of(sample) >= 0), fields, FIELDS),
    "rsample": (wds.rsample(1.0), fields, FIELDS),
    "associate": (
        wds.associate({f"{n:04d}": {"extra": n} for n in range(SAMPLES)}),
        lambda sample: sample["extra"] == number_of(sample),
        True,
    ),
    "decode": (wds.decode(), lambda sample: type(sample["cls"]), int),
    "decode of members that are compressed": (
        wds.decode(), lambda sample: sample["txt.gz"], "hello\n"
    ),
    "decode rgb": (
        wds.decode("rgb"), lambda sample: (sample["png"].shape, sample["png"].dtype.name),
        ((5, 4, 3), "float32"),
    ),
    "decode rgb8": (
        wds.decode(autodecode.ImageHandler("rgb8")), lambda sample: sample["png"].dtype.name,
        "uint8",
    ),
    "decode pil": (
        wds.decode("pil"), lambda sample: isinstance(sample["png"], PIL.Image.Image), True
    ),
    "decode torchrgb": (
        wds.decode("torchrgb"), lambda sample: tuple(sample["png"].shape), (3, 5, 4)
    ),
    "decode of one ending": (
        wds.decode(wds.handle_extension("png", len)), lambda sample: type(sample["png"]), int
    ),
    "decode by a function": (
        wds.decode(lambda name, content: len(content)), lambda sample: type(sample["png"]), int
    ),
    "xdecode": (
        wds.xdecode(("*wnid", lambda stream: stream.read().decode().upper()), must_decode=False),
        lambda sample: sample["wnid"][0],
        "N",
    ),
    "log_keys": (wds.filters.log_keys(None), fields, FIELDS),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_makes_of_every_sample_what_it_makes_under_webdataset(pipeline, url, name):
    stage, look, expected = STAGES[name]
    items = list(pipeline(stage))
    assert len(items) == SAMPLES
    assert all(look(item) == expected for item in items)
    theirs = wds.WebDataset(url, shardshuffle=False).compose(stage)
    for ours, other in zip(sorted(items, key=repr), sorted(theirs, key=repr), strict=True):
        assert type(ours) is type(other)
        assert repr(look(ours)) == repr(look(other))


FLUID = {
    "map": (lambda s: s.map(number_of), sorted, list(range(SAMPLES))),
    "map_dict": (lambda s: s.map_dict(cls=int).map(number_of), sorted, list(range(SAMPLES))),
    "to_tuple and map_tuple": (
        lambda s: s.to_tuple("cls").map_tuple(int).map(lambda item: item[0]), sorted,
        list(range(SAMPLES)),
    ),
    "select": (lambda s: s.select(lambda sample: True), len, SAMPLES),
    "rename": (lambda s: s.rename(c="cls", keep=False), lambda items: fields(items[0]), {"c"}),
    "rename_keys": (lambda s: s.rename_keys(c="cls"), lambda items: fields(items[0]), {"c"}),
    "extract_keys": (lambda s: s.extract_keys("cls"), lambda items: len(items[0]), 1),
    "decode": (lambda s: s.decode("rgb8"), lambda items: items[0]["png"].shape, (5, 4, 3)),
    "xdecode": (
        lambda s: s.xdecode(("*json", json.load), must_decode=False),
        lambda items: type(items[0]["json"]),
        dict,
    ),
    "log_keys": (lambda s: s.log_keys(), len, SAMPLES),
    "rsample": (lambda s: s.rsample(1.0), len, SAMPLES),
    "listed": (
        lambda s: s.map(number_of).listed(7),
        lambda items: [len(batch) for batch in items],
        [7] * 6 + [5],
    ),
    "batched": (
        lambda s: s.to_tuple("cls").map_tuple(int).batched(7),
        lambda items: [len(batch[0]) for batch in items],
        [7] * 6 + [5],
    ),
    "batched, whole ones": (
        lambda s: s.to_tuple("cls").map_tuple(int).batched(7, partial=False),
        lambda items: [len(batch[0]) for batch in items],
        [7] * 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLUID)
def test_the_fluid_interface_adds_the_same_stages(pipeline, name):
    add, look, expected = FLUID[name]
    stream = add(pipeline())
    items = list(stream)
    assert len(items) == len(stream)
    assert look(items) == expected


def test_numpy_and_torch_decoding_give_the_same_image(pipeline):
    images = [dict(pipeline().decode(kind).to_tuple("cls", "png")) for kind in ("rgb", "torchrgb")]
    for number, image in images[0].items():
        assert (image == images[1][number].permute(1, 2, 0).numpy()).all()


# Errors and handlers


def fails(_):
    raise ValueError("no")


@pytest.mark.parametrize(
    "stage",
    [
        wds.map(fails),
        wds.map_dict(png=fails),
        wds.map_dict(none=int),
        wds.to_tuple("foo", "bar"),
        wds.rename(x="foo", y="bar"),
        wds.rename_keys(x="foo", must_match=True),
        wds.extract_keys("*", duplicate_is_error=True),
        wds.decode(wds.handle_extension("png", fails)),
        wds.xdecode(must_decode=True),
    ],
)
def test_an_error_in_a_stage_ends_the_pass(pipeline, stage):
    with pytest.raises((ValueError, KeyError, wds.DecodingError)):
        list(pipeline(stage))


def fails_for_even(sample):
    if number_of(sample) % 2 == 0:
        raise ValueError("even")
    return sample


@pytest.mark.filterwarnings("ignore:.*draws were dropped:flowdata.FlowDataWarning")
def test_a_handler_leaves_out_the_samples_that_a_stage_fails_on(pipeline):
    """webdataset's epoch is shorter then, ours has other samples in their place."""
    good = list(pipeline().map(fails_for_even, handler=handlers.ignore_and_continue))
    assert len(good) == SAMPLES
    assert {number_of(sample) % 2 for sample in good} == {1}
    assert {number_of(sample) for sample in good} == set(range(1, SAMPLES, 2))


@pytest.mark.parametrize("chance", [0.0, 0.5])
@pytest.mark.filterwarnings("ignore:.*draws were dropped:flowdata.FlowDataWarning")
def test_an_epoch_of_which_nothing_is_left_is_an_error_and_else_it_keeps_its_length(
    pipeline, chance
):
    stream = pipeline(wds.rsample(chance))
    if chance:
        assert len(list(stream)) == SAMPLES
    else:
        with pytest.raises(ShardError, match="none of the 47 samples"):
            list(stream)


# Batches and loaders


@pytest.mark.parametrize(
    ("combines", "expected"), [(False, list), (True, np.ndarray)], ids=["lists", "arrays"]
)
def test_batches_of_dicts_and_tuples_are_collated_as_asked(pipeline, combines, expected):
    collate = partial(
        wds.filters.default_collation_fn, combine_scalars=combines, combine_tensors=combines
    )
    numbers = pipeline().decode().map(lambda sample: {"a": sample["cls"], "b": np.zeros(2)})
    for batch in numbers.batched(4, collation_fn=collate, partial=False):
        assert batch.keys() == {"__key__", "a", "b"}
        assert type(batch["a"]) is type(batch["b"]) is expected
        assert len(batch["a"]) == 4
    pairs = numbers.map(lambda sample: (sample["a"], torch.zeros(2)))
    for batch in pairs.batched(4, collation_fn=collate, partial=False):
        assert isinstance(batch[1], torch.Tensor if combines else list)


def decoded(sample):
    return number_of(sample), torch.zeros(3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 3])
def test_a_loader_gives_every_sample_in_batches(pipeline, workers):
    stream = pipeline(wds.map(decoded), batch_size=3)
    batches = list(DataLoader(stream, num_workers=workers, batch_size=3))
    assert len(batches) == (SAMPLES + 2) // 3
    assert sorted(number for numbers, _ in batches for number in numbers.tolist()) == list(
        range(SAMPLES)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_loader_in_a_pipeline_is_unbatched_repeated_and_counted(pipeline):
    stream = pipeline(wds.map(decoded), batch_size=3)
    loader = wds.WebLoader(stream, num_workers=3, batch_size=3)
    assert sum(1 for _ in loader.unbatched()) == SAMPLES
    assert sum(1 for _ in loader.repeat(nepochs=2)) == 2 * ((SAMPLES + 2) // 3)
    whole = DataLoader(stream, num_workers=3, batch_size=3, drop_last=True)
    assert sum(1 for _ in wds.DataPipeline(whole, wds.unbatched())) <= SAMPLES
    shuffled = wds.WebLoader(stream, batch_size=None).shuffle(10).batched(5)
    assert [len(numbers) for numbers, _ in shuffled] == [5] * 9 + [2]


def test_a_stream_is_the_source_of_another_pipeline(pipeline):
    stream = pipeline(wds.map(number_of))
    assert sorted(wds.DataPipeline(stream, wds.map(lambda number: -number))) == list(
        range(1 - SAMPLES, 1)
    )
    assert len(list(wds.DataPipeline(stream, wds.slice(29)))) == 29
    assert len(list(wds.DataPipeline(stream).with_epoch(100))) == 100


def test_streams_are_mixed_by_turns_and_at_random(pipeline):
    def streams(count):
        return [pipeline(wds.map(number_of)) for _ in range(count)]

    assert len(list(wds.RoundRobin(streams(2)))) == 2 * SAMPLES
    assert len(list(wds.FluidWrapper(wds.RoundRobin(streams(3))).shuffle(10))) == 3 * SAMPLES
    assert len(list(wds.RandomMix(streams(2), longest=True))) == 2 * SAMPLES
    # The same stream twice: two passes of it at once, each a whole epoch.
    [one] = streams(1)
    assert sorted(wds.RoundRobin([one, one])) == sorted([*range(SAMPLES)] * 2)


def test_a_stream_with_stages_is_pickled(pipeline):
    stream = pipeline().decode("torchrgb").to_tuple("png", "cls").batched(7)
    again = pickle.loads(pickle.dumps(stream))
    for ours, other in zip(stream, again, strict=True):
        assert ours[0].shape[1:] == (3, 5, 4)
        assert torch.equal(ours[0], other[0])
        assert list(ours[1]) == list(other[1])


def test_a_stream_is_closed_by_its_with_block(pipeline):
    class Closes(Doubled):
        closed = 0

        def close(self):
            self.closed += 1

    stage = Closes()
    with pipeline(stage) as stream:
        assert len(list(stream)) == SAMPLES
    assert stage.closed == 1
    with pytest.raises(ValueError, match="is closed"):
        list(stream)
