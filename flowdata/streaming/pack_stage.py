"""PackStage: the packs of a stream, made of what its stages make of the samples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowdata.core.shard_packs import ShardPacks
from flowdata.errors import MismatchError
from flowdata.map_style.packed_rows import join, read_sample
from flowdata.map_style.weighted_item import WeightedItem
from flowdata.streaming.stages import apply_stages

_WEIGHT = "__weight__"


class PackStage:
    """Stages of single samples, and the packs that are made of what comes out of them.

    The stages see the samples of one pack after another, and are begun anew for each: so it is
    known whose samples they have dropped.

    Args:
        stages: of single samples, which make dicts with ``input_ids`` of them.
        packs: which rows are in a pack, and how long they are.
        are_weighted: whether samples have the weight of their loss, as ``"__weight__"``.
    """

    def __init__(self, stages: Sequence[Any], packs: ShardPacks, *, are_weighted: bool) -> None:
        self._stages, self._packs, self.are_weighted = list(stages), packs, are_weighted

    def join(self, drawn: Sequence[tuple[int, dict[str, Any]]]) -> tuple[Any, int]:
        """The pack of some samples, and of how many: of none, None, where the stages drop all.

        Args:
            drawn: row and raw sample of each.

        Raises:
            MismatchError: for a sample of another length than was given for its row.
            TypeError, ValueError: for what is no row of tokens, see `read_sample`, or has lost its
                weight, and for stages that make several samples of one.
        """
        samples = [sample for _, sample in drawn]
        names = [f"{sample['__key__']!r} of {sample['__url__']}" for sample in samples]
        made = self._through_stages(samples)
        if len(made) > len(samples):
            raise ValueError(
                f"the stages before .packed() make {len(made)} samples of {len(samples)}: each "
                "must make one of one, or none. Make packs of whole samples"
            )
        if not made:
            return None, 0
        lengths: Sequence[int | None] = [int(self._packs.lengths[row]) for row, _ in drawn]
        if len(made) < len(samples):
            # Which ones are missing is not known.
            names, lengths = ["in a pack"] * len(made), [None] * len(made)
        if self.are_weighted:
            made = [_with_weight(sample, name) for sample, name in zip(made, names, strict=True)]
        truncated = self._packs.max_length if self._packs.too_long == "truncate" else None
        try:
            read = [
                read_sample(sample, name, length=length, max_length=truncated)
                for sample, name, length in zip(made, names, lengths, strict=True)
            ]
        except TypeError as error:
            raise TypeError(
                f"{error}; the stages before .packed() are to make them: "
                "stream.map(tokenize).packed(max_length)"
            ) from None
        if (tokens := sum(sample.ids.size for sample in read)) > self._packs.max_length:
            raise MismatchError(
                f"the samples of a pack have {tokens:,} tokens, but it has room for "
                f"{self._packs.max_length:,}: the lengths that were given are not theirs"
            )
        return join(read, names), len(made)

    def _through_stages(self, samples: Sequence[dict[str, Any]]) -> list[Any]:
        left, made = iter(samples), list[Any]()
        taken = 0

        def noted() -> Iterator[dict[str, Any]]:
            nonlocal taken
            for sample in left:
                taken += 1
                yield sample

        # A stage may end at a sample that it cannot use; those after it are not lost for that.
        while (before := taken) < len(samples):
            made += apply_stages(self._stages, noted())
            if taken == before:
                break
        return made


def _with_weight(sample: Any, name: Any) -> WeightedItem:
    if not isinstance(sample, Mapping) or _WEIGHT not in sample:
        raise TypeError(
            f"row {name} has no {_WEIGHT} after the stages before .packed(), by which its loss is "
            'to be weighted: keep it beside the tokens, or draw by weight, with mode="resample"'
        )
    row = {column: value for column, value in sample.items() if column != _WEIGHT}
    return WeightedItem(row, float(sample[_WEIGHT]), name)
