"""FlowShards: an exact, weighted, resumable stream of samples from tar shards."""

import copy
from collections.abc import Iterator
from typing import Any, Literal, Self

import webdataset as wds
from numpy.typing import ArrayLike

from flowdata.core.arrangement import Arrangement
from flowdata.core.lengths import HasLengths
from flowdata.core.pack_plan import TooLong
from flowdata.core.plan import EpochSize, Scheme
from flowdata.core.shard_packs import ShardPacks
from flowdata.core.shard_plan import ShardPlan
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.streaming.division import Division, SlotPlan
from flowdata.streaming.pack_stage import PackStage
from flowdata.streaming.passes import items_of_pass
from flowdata.streaming.progress import Progress
from flowdata.streaming.replicas import require_rank, size_and_rank
from flowdata.streaming.sample_reader import SampleReader
from flowdata.streaming.staged import Handler, StagedStream
from flowdata.streaming.stats import StreamStats
from flowdata.streaming.tables import Table, index_and_weights, lengths_of
from flowdata.streaming.views import View
from flowdata.transport.access import Access
from flowdata.transport.urls import Urls


class FlowShards(StagedStream):
    """Samples of tar shards, drawn in proportion to their weights; an IterableDataset.

    The loss table says which samples an epoch draws, and where they lie, before a byte is read.
    So ``len()`` is exact, every rank gets the same number of samples, and what is not drawn is
    not read (from files and servers that know ranges) or at least not parsed. Stages are added
    as to a WebDataset:

        shards = FlowShards(urls, table, batch_size=64).decode("torchrgb").to_tuple("jpg", "cls")
        loader = DataLoader(shards, batch_size=64, num_workers=4)

    The order is a pure function of (seed, epoch, weights) and the numbers of ranks and workers:
    shards come in a random order, ``shards_open`` of them at a time, and the draws of a
    ``window`` over these come out in a random order. Memory is that of one window of raw samples
    for each worker, of two with remote shards, and some 50 bytes a shard.

    Every pass is the next epoch, unless `set_epoch` names one. A stream made of this one, by a
    stage, counts epochs and positions for itself, from where this one is; what this one is told,
    it is told too. A sample that a stage drops (a handler that goes on after an error,
    ``select``) is replaced by the next draw: lengths are kept, and how many there were is warned
    of at the end of the pass. Do not shuffle the stream once more, nor let a framework divide it:
    it has done both.

    Args:
        urls: shards: paths, ``file:``, HTTP(S), or anything fsspec opens, with braces.
        table: a loss table of these shards, or their index, or the path of a loss table.
        weights: default those of the table; needed with an index.
        epoch_size, seed, scheme: see `EpochPlan`.
        arrange: `Strata`, to fill every batch evenly from groups of rows, or `ByLength`, to make
            batches of rows about as long, as far as a window has them. Its batch size is that of
            all ranks together; each rank has batches of its own lengths.
        strata: another name for ``arrange=Strata(...)``.
        mode: "resample", or "reweight": draw all samples alike and give each its weight, as
            ``"__weight__"``, for `flowdata.reweight.reweight`.
        alpha: draw by ``w ** alpha``: 1 to resample (the default), 0 to reweight (the default of
            that mode); between 0 and 1 needs mode="reweight", else the rest of the weight is lost.
        window: draws that are mixed with one another.
        shards_open: shards that each worker reads at once, and files it holds open.
        batch_size: that of the DataLoader, 1 where it has none: its workers then get whole batches,
            and an epoch has one incomplete batch at most. With ``.batched()`` it is known.
        num_replicas, rank: default those of torch.distributed, or of torchrun's environment.
        drop_last: where ranks do not divide an epoch, leave out its last draws; by default
            some of them are repeated.
        handler: what becomes of samples that cannot be read, as in webdataset: given the error,
            it raises it (default), or returns True to go on with the next draw.
        access: how remote shards are reached, see `Access`.

    Raises:
        InvalidLossError: for weights that cannot be sampled.
        MismatchError: for weights or URLs that are not the table's.
        ShardError: in the pass, naming shard and key of a sample that cannot be read.
        RuntimeError: for a stream built before torch.distributed was initialised, in ``len`` and
            in the pass, if that has other ranks than was assumed.
        ValueError: for an unknown option, and, in the pass, for another ``batch_size`` than that
            of a DataLoader with several workers.
    """

    def __init__(
        self,
        urls: Urls,
        table: Table,
        weights: FlowWeights | HasWeights | ArrayLike | None = None,
        *,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float | None = None,
        arrange: Arrangement | None = None,
        strata: Strata | None = None,
        mode: Literal["resample", "reweight"] = "resample",
        window: int = 1000,
        shards_open: int = 8,
        batch_size: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
        handler: Handler = wds.reraise_exception,
        access: Access | None = None,
    ) -> None:
        super().__init__()
        index, weights = index_and_weights(table, weights)
        if batch_size is not None:
            _require_positive(batch_size, "batch_size")
        if mode not in ("resample", "reweight"):
            raise ValueError(f'mode must be "resample" or "reweight", got {mode!r}')
        reweight = mode == "reweight"
        alpha = float(not reweight) if alpha is None else alpha
        plan = ShardPlan(
            weights,
            index.bounds(),
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            arrange=arrange,
            strata=strata,
        )
        ranks, own = size_and_rank(num_replicas, rank)
        self._reader = SampleReader(
            urls,
            index,
            access or Access(),
            handler,
            _require_positive(shards_open, "shards_open"),
            (weights, alpha) if reweight else None,
            name=f"rank {own} of {ranks}" if ranks > 1 else "",
        )
        division = Division(
            plan,
            ranks=ranks,
            rank=own,
            drop_last=drop_last,
            window=_require_positive(window, "window"),
            shards_open=shards_open,
        )
        self._view = View(Progress(division, batch_size=batch_size))
        self._view.belongs_to(self)
        self._ranks_given = num_replicas is not None
        self._table: Table | None = table
        # Stages of samples, and their packs, if there are any: the pipeline is then of packs.
        self._packing: PackStage | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._view.ask(lambda progress: progress.epoch)

    @property
    def running_epoch(self) -> int:
        """The epoch of the pass that began last, in whichever process; of none, the next one."""
        return self._progress.running_epoch

    @property
    def plan(self) -> ShardPlan:
        """The plan of `epoch`: how often an epoch draws each row of the table."""
        slots = self._slots()
        return slots.plan if isinstance(slots, ShardPacks) else slots

    @property
    def packs(self) -> ShardPacks | None:
        """The packs of `epoch`, if this is a stream of packs: how many, and how full."""
        slots = self._slots()
        return slots if isinstance(slots, ShardPacks) else None

    @property
    def bytes_read(self) -> int:
        """Bytes of shards that this process has read, headers and gaps included."""
        return self._reader.bytes_read

    def stats(self) -> StreamStats:
        """What reading took, in all workers, in the epoch that runs or ran last.

        Of this stream and those made of it by adding stages, in the pass that began last.
        """
        return self._reader.stats()

    @property
    def num_replicas(self) -> int:
        """Ranks that an epoch is divided between."""
        return self._progress.ranks

    @property
    def draws_an_item(self) -> int:
        """Draws, or packs, in an item of this stream: 1, or with `batched` its batch size."""
        return self._batched[1] if self._batched else 1

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` that of the next pass, in worker processes too.

        Naming the epoch that a loaded state is in does nothing, so that a resumed loop may call
        it as usual.
        """
        self._view.set_epoch(epoch)

    def __len__(self) -> int:
        """Samples, or packs, of this rank in a whole epoch; batches if `batched` makes some."""
        self._check_rank()
        self._progress.length_is_read()
        samples = self._progress.per_rank
        if self._batched is None:
            return samples
        _, size, incomplete = self._batched
        return -(-samples // size) if incomplete else samples // size

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """A fresh, JSON-able dict from which `load_state_dict` continues.

        Args:
            position: draws of the running epoch that were trained on, over all ranks (steps x
                batch size x ranks, also those before a resume). Needed where a plain DataLoader
                has workers; without, the draws given out by this process, on every rank. It
                counts samples: if stages or the handler dropped some in the workers, a warning
                says how many draws may be repeated after it.

        Raises:
            ValueError: for a position that is not one between two batches.
        """
        return self._view.ask(lambda progress: progress.save(position))

    def load_state_dict(self, state: Any) -> None:
        """Continue from a state with the same weights and options, at the next pass.

        Ranks, workers and batch size are free: the draws that are left are divided anew. Only a
        state that a StatefulDataLoader saved in its workers asks for the same number of them. One
        saved after draws were dropped goes on exactly where it was saved, on the same rank, with
        as many ranks and workers; elsewhere as many draws may be repeated, as a warning says.

        Raises:
            MismatchError: when the state is of other weights or options, or not a state at all.
        """
        self._view.load(state)

    def packed(
        self,
        max_length: int,
        lengths: HasLengths | ArrayLike | None = None,
        *,
        batch_size: int = 1,
        too_long: TooLong = "raise",
    ) -> Self:
        """A stream of packs of at most ``max_length`` tokens: the same number in every epoch.

        Give stages before that make rows of tokens, dicts with ``input_ids`` and, if not all are
        learned, ``labels``; those after it have packs. A pack is a dict of ``input_ids``,
        ``labels`` and ``position_ids``, int64 of shape (T,): positions begin anew at each sample,
        and the first label of each is -100. Each draw of an epoch is in one pack, whole. Lengths
        of the stream, positions in a state and ``batch_size`` count packs from here on. What it
        returns counts epochs for itself, from where this stream is.

        With ``mode="reweight"`` samples keep their ``"__weight__"`` beside the tokens, and packs
        are for `flowdata.reweight.reweight`, with a weight for each label.

        A sample that is dropped leaves its pack shorter; a pack without any is replaced by
        another. It takes a pass over all rows, once.

        Args:
            max_length: tokens that a pack has room for.
            lengths: tokens of each row, as the stages make them; default those of the table.
            batch_size: packs that are trained on together, by all ranks: an epoch has a multiple
                of it.
            too_long: "raise" for rows that are longer than a pack, or "truncate" to cut them.

        Raises:
            MismatchError: for another number of lengths than of rows; in the pass, for a sample
                of another length.
            TypeError: after `batched` or `packed`, or where no lengths are known.
            ValueError: for lengths that are none or too long, an arrangement, another scheme than
                systematic, or fewer draws than packs.
        """
        if self._batched is not None or self._packing is not None:
            raise TypeError("packs are made of single samples: call .packed() once, and first")
        progress = self._progress.of_packs(
            lengths_of(self._table) if lengths is None else lengths,
            max_length,
            batch_size=batch_size,
            too_long=too_long,
        )
        packs = progress.plan
        assert isinstance(packs, ShardPacks)
        made = copy.copy(self)
        made.__dict__ |= {
            "pipeline": [],
            "_packing": PackStage(self.pipeline, packs, are_weighted=self._reader.gives_weights),
            "_view": View(progress),
        }
        made.__dict__["_view"].belongs_to(made)
        return made

    def __iter__(self) -> Iterator[Any]:
        if self._is_closed:
            raise ValueError("this FlowShards is closed: iterate over it inside its `with` block")
        if self._progress.ended_before():
            return iter(())
        return self._pass()

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        view = self._view.make()
        copied.__dict__ |= self.__dict__ | {"pipeline": list(self.pipeline), "_view": view}
        view.belongs_to(copied)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are spawned do not know torch.distributed.
        self._check_rank()
        return self.__dict__ | {"_table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._view.belongs_to(self)

    def _slots(self) -> SlotPlan:
        epoch, seed = self._view.ask(lambda progress: (progress.epoch, progress.plan.seed))
        return self._view.progress.plan.at_epoch(epoch, seed=seed)

    @property
    def _progress(self) -> Progress:
        return self._view.progress

    def _count_batches_of(self, size: int) -> None:
        self._progress.batch_size = size

    def _check_rank(self) -> None:
        """Make sure that this is one of the ranks that the epoch was divided between."""
        if not self._ranks_given:
            require_rank((self._progress.ranks, self._progress.rank))

    def _pass(self) -> Iterator[Any]:
        self._check_rank()
        yield from items_of_pass(
            self._progress, self._reader, self.pipeline, self._packing, self._batched
        )


def _require_positive(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an int >= 1, got {value!r}")
    return value
