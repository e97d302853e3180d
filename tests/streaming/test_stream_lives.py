"""Lives of one batch each: torchdata asks each worker for its state before its first batch."""

import pytest
from shard_files import make_table, name_of, write_shards
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import FlowShards


@pytest.mark.parametrize("life", [1, 2, 3])
def test_what_is_left_comes_in_the_same_order_however_short_the_lives_are(tmp_path, life):
    urls = write_shards(tmp_path, (20, 13))
    table = make_table(urls)

    def make():
        stream = FlowShards(urls, table, batch_size=4).map(name_of)
        return StatefulDataLoader(stream, 4, num_workers=2)

    whole, taken, state = list(make()), [], None
    while len(taken) < len(whole):
        loader = make()
        if state is not None:
            loader.load_state_dict(state)
        for given, batch in enumerate(loader, 1):
            taken.append(batch)
            if given == life:
                break
        state = loader.state_dict()
    assert taken == whole
