"""Decoding of members by webdataset's decoders: no pickles, and errors that name the sample."""

from collections.abc import Callable, Sequence
from typing import Any

from webdataset import autodecode

from flowdata.errors import ShardError

# What webdataset's decoders hand to pickle or torch.load, by extension.
_PICKLED = frozenset({"pyd", "pickle", "pkl", "pth", "pt"})


class SampleDecoder:
    """A sample to a sample with decoded members.

    Args:
        decoders: of webdataset: names of image formats, or functions (name, bytes) -> value.
        post: decoders after these; default those of webdataset for common extensions.
        allow_pickle: decode pickles, which runs whatever code they hold.
        options: others of webdataset's ``Decoder``.
    """

    def __init__(
        self,
        decoders: Sequence[str | Callable[[str, bytes], Any]],
        *,
        post: Sequence[Callable[[str, bytes], Any]] | None,
        allow_pickle: bool,
        **options: Any,
    ) -> None:
        last = [autodecode.basichandlers] if post is None else list(post)
        self._decoder = autodecode.Decoder(
            [autodecode.ImageHandler(item) if isinstance(item, str) else item for item in decoders],
            post=last if allow_pickle else [_refuse_pickle, *last],
            **options,
        )

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with its members decoded.

        Raises:
            ShardError: naming the member that cannot be decoded, and its sample and shard.
        """
        try:
            decoded: dict[str, Any] = self._decoder(sample)
        except autodecode.DecodingError as error:
            raise ShardError(
                f"{error.k} of the sample {error.key!r} of {error.url} cannot be decoded: "
                f"{error.__cause__}"
            ) from error.__cause__
        return decoded


def _refuse_pickle(name: str, content: Any) -> None:
    suffix = name.rsplit(".", 1)[-1].lower()
    if suffix in _PICKLED and isinstance(content, bytes):
        raise ShardError(
            "it holds a pickle, which can run any code when it is decoded; for shards that you "
            "trust use .decode(..., allow_pickle=True), or give a decoder of your own: "
            f'.decode(wds.handle_extension("{suffix}", function))'
        )
