"""Decoding of members by webdataset's decoders: no pickles, and errors that name the sample."""

import io
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from webdataset import autodecode

from flowdata.errors import ShardError
from flowdata.tar.compression import gunzip, require_harmless

# What webdataset's decoders hand to pickle or torch.load, by extension.
_PICKLED = frozenset({"pyd", "pickle", "pkl", "pth", "pt"})


class SampleDecoder:
    """A sample to a sample with decoded members.

    Args:
        decoders: of webdataset: names of image formats, or functions (name, bytes) -> value.
        post: decoders after these; default those of webdataset for common extensions.
        allow_pickle: decode pickles, which runs whatever code they hold.
        max_expansion: how many times its size a compressed member (.gz, .npz) may unpack to, from
            256 MB on.
        options: others of webdataset's ``Decoder``.
    """

    def __init__(
        self,
        decoders: Sequence[str | Callable[[str, bytes], Any]],
        *,
        post: Sequence[Callable[[str, bytes], Any]] | None,
        allow_pickle: bool,
        max_expansion: float = 100.0,
        **options: Any,
    ) -> None:
        last = [autodecode.basichandlers] if post is None else list(post)
        last.insert(0, partial(_check_archive, max_expansion))
        # In place of webdataset's, which unpacks whatever comes.
        if options.get("pre") is None:
            options["pre"] = [partial(_gunzip, max_expansion)]
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


def _gunzip(max_expansion: float, name: str, content: bytes) -> autodecode.Continue | None:
    if not name.endswith(".gz"):
        return None
    return autodecode.Continue(name[: -len(".gz")], gunzip(content, max_expansion))


def _check_archive(max_expansion: float, name: str, content: Any) -> None:
    """Refuse arrays (.npz is a zip archive) that expand beyond their limit."""
    if name.rsplit(".", 1)[-1].lower() != "npz" or not isinstance(content, bytes):
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    require_harmless(len(content), size, max_expansion)


def _refuse_pickle(name: str, content: Any) -> None:
    suffix = name.rsplit(".", 1)[-1].lower()
    if suffix in _PICKLED and isinstance(content, bytes):
        raise ShardError(
            "it holds a pickle, which can run any code when it is decoded; for shards that you "
            "trust use .decode(..., allow_pickle=True), or give a decoder of your own: "
            f'.decode(wds.handle_extension("{suffix}", function))'
        )
