"""StagedStream: a pipeline of webdataset's that has the stages which a stream can have."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeAlias

import webdataset as wds
from webdataset.compat import FluidInterface

from flowdata.streaming.decoding import SampleDecoder
from flowdata.streaming.stages import (
    batch_arguments,
    is_batched,
    is_cache,
    is_shuffle,
    is_slice,
    require_stage,
)

Handler: TypeAlias = Callable[[Exception], bool]


class StagedStream(wds.DataPipeline, FluidInterface):  # type: ignore[misc]
    """Stages of a stream that knows how long an epoch is, and in which order samples come.

    Attributes:
        pipeline: the stages.
    """

    def __init__(self) -> None:
        super().__init__()
        # The place of the stage that makes batches, and its arguments.
        self._batched: tuple[int, int, bool] | None = None
        self._is_closed = False

    @abstractmethod
    def _count_batches_of(self, size: int) -> None:
        """Items are batches from here on."""

    def append(self, stage: Any) -> None:
        """Add a stage of webdataset's at the end; `compose` returns a copy that has it.

        Raises:
            TypeError: for one that shuffles.
        """
        if is_cache(stage):
            return
        if is_shuffle(stage):
            self.shuffle()
        if is_slice(stage):
            self.slice()
        if is_batched(stage):
            if self._batched is not None:
                raise TypeError(
                    "a stream makes batches once: of batches of batches, no length nor position "
                    "would be right"
                )
            self._batched = (len(self.pipeline), *batch_arguments(stage))
            self._count_batches_of(self._batched[1])
        self.pipeline.append(require_stage(stage))

    def decode(
        self,
        *decoders: Any,
        post: Any = None,
        allow_pickle: bool = False,
        handler: Handler = wds.reraise_exception,
        **options: Any,
    ) -> Self:
        """Decode members by their extension, as WebDataset does, but no pickles.

        Args:
            decoders: of webdataset, ``"pil"``, ``"torchrgb"``, functions (name, bytes) -> value.
            allow_pickle: decode pickles too. That runs whatever code the shard holds.
            handler: what becomes of samples that cannot be decoded.
            post, options: as in webdataset.
        """
        decoder = SampleDecoder(decoders, post=post, allow_pickle=allow_pickle, **options)
        result: Self = self.map(decoder, handler=handler)
        return result

    def shuffle(self, *_: Any, **__: Any) -> Any:
        """Not here.

        Raises:
            TypeError: always, saying what to do instead.
        """
        raise TypeError(
            "FlowShards shuffles by itself, over window= draws of shards_open= shards; a buffer "
            "after it would lose samples when a run is resumed. Give a larger window"
        )

    def _only_whole_epochs(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "an epoch of FlowShards has an exact length, len(shards); choose it by epoch_size="
        )

    with_epoch = with_length = repeat = slice = _only_whole_epochs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the stages that can be closed; no pass begins after it."""
        self._is_closed = True
        for stage in self.pipeline:
            if hasattr(stage, "close"):
                stage.close()

    def iterator(self) -> Iterator[Any]:
        """The same as ``iter()``."""
        return iter(self)
