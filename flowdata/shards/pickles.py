"""Members that hold pickles, which run code when they are decoded."""

from typing import Any

from flowdata.errors import ShardError

_PICKLED = frozenset({"pyd", "pickle", "pkl", "pth", "pt"})


def refuse_pickle(name: str, content: Any) -> None:
    """A decoder of webdataset that leaves everything alone but pickles.

    Raises:
        ShardError: for a member that only unpickling could decode.
    """
    suffix = name.rsplit(".", 1)[-1].lower()
    if suffix in _PICKLED and isinstance(content, bytes):
        raise ShardError(
            f"a member {name} holds a pickle, which can run any code when it is decoded; for "
            "shards that you trust use .decode(..., allow_pickle=True), or give a decoder of your "
            f'own: .decode(wds.handle_extension("{suffix}", function))'
        )
