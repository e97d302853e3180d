"""``flowdata index``: where the samples of shards lie."""

import argparse

from flowdata.commands.options import Commands, path_of, require_place, seconds


def add_index(commands: Commands) -> None:
    """The command ``index``."""
    index = commands.add_parser(
        "index",
        help="where the samples of tar shards lie, without scoring them",
        description="Walk through the headers of WebDataset shards and write the shard, key, "
        "offset and size of each sample to a Parquet file. A loss table that was scored over "
        "ShardRows holds the same; this is for losses from elsewhere: "
        "LossTable.from_losses(losses, index=ShardIndex.load(file)).",
    )
    index.add_argument("urls", nargs="+", help="shards: paths or URLs, also with {000..009}")
    index.add_argument("--output", type=path_of, required=True, help="the index, a .parquet file")
    index.add_argument(
        "--allow-pipe", action="store_true", help="run the shell commands of pipe: URLs"
    )
    index.add_argument(
        "--timeout", type=seconds, default=30.0, help="seconds a server may be silent (default 30)"
    )
    index.set_defaults(run=_run_index, parser=index)


def _run_index(options: argparse.Namespace) -> None:
    from flowdata.tar.indexing import index_shards
    from flowdata.transport.access import Access

    access = Access(allow_pipe=options.allow_pipe, timeout=options.timeout)
    require_place(options.output)
    index = index_shards(options.urls, access=access)
    index.save(options.output)
    print(
        f"{len(index):,} samples in {len(index.shards):,} shards, "
        f"{index.sizes.sum() / 1e6:,.1f} MB; {options.output} is written"
    )
