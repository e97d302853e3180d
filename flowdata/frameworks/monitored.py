"""What a Monitor is told of a framework's loader: which items of an epoch each batch has."""

from typing import Any

from torch.utils.data import DistributedSampler, SequentialSampler

from flowdata.frameworks.sources import is_stream, sources_of
from flowdata.map_style.epoch_items import EpochItems
from flowdata.map_style.plan_sampler import PlanSampler
from flowdata.monitoring.monitor import Monitor
from flowdata.monitoring.places import Order, RunningPass, Stretch


class MonitoredLoader:
    """A loader whose batches a Monitor counts, in the order in which it reads an epoch.

    Args:
        monitor: it watches what the loader draws from.
        loaders: among which that is.
        ranks: that share each batch, or have one each.

    Raises:
        ValueError: where it is not known what is drawn from, or how many draws a batch has.
    """

    def __init__(self, monitor: Monitor, *loaders: Any, ranks: int) -> None:
        self._monitor = monitor
        self.source, self.loader = _drawn_from(monitor, loaders)
        self._drawn = monitor.watch(self.source)
        self._batches = _batch_sampler(self.loader)
        self._items = self._items_a_batch(ranks)
        self._end = self._end_of_epoch()
        self.length = _length(self.loader)
        """Batches of the loader; 0 if it does not tell."""
        self._pass: RunningPass | None = None
        self._order: Order = "unknown"
        self._first = 0

    def begin_epoch(self) -> None:
        """The next batch is the first one that is trained on in an epoch."""
        self._pass = None

    def look(self, batch: int, *, assume: bool = False) -> None:
        """Note which epoch is read, while its first batch is trained on.

        Args:
            batch: its number in the epoch.
            assume: count what comes before it as trained on.
        """
        if self._pass is not None:
            return
        self._pass, self._order, self._first = self._drawn.running(), self._order_now(), batch
        if not assume:
            return
        seed, epoch = self._pass.seed, self._pass.epoch
        for before in range(epoch):
            self._monitor.add(Stretch(seed, before, "plan", 0, self._drawn.items))
        if batch:
            stop = min(batch * self._items, self._end)
            self._monitor.add(Stretch(seed, epoch, self._order, 0, stop))

    def trained(self, batch: int) -> None:
        """Count a batch of an epoch, which `look` has seen the first one of."""
        assert self._pass is not None
        passes = 0
        if self.length:
            # Lightning goes through a shorter loader again, which draws the next epoch then.
            passes = batch // self.length - self._first // self.length
            batch %= self.length
        start, stop = (min(number * self._items, self._end) for number in (batch, batch + 1))
        if self._order == "unknown" and batch + 1 == self.length:
            # The last batch of a loader, which may have dropped the rest.
            stop = max(stop, self._drawn.items)
        epoch = self._pass.epoch + passes
        self._monitor.add(Stretch(self._pass.seed, epoch, self._order, start, stop))

    def _items_a_batch(self, ranks: int) -> int:
        """Items of all ranks for a batch of each."""
        source, batches = self.source, self._batches
        if batches is source:
            # What a FlowPackSampler draws are packs, each of them a batch.
            size: Any = 1
        else:
            size = getattr(self.loader if batches is None else batches, "batch_size", None)
            size = size or (1 if is_stream(source) else None)
        if not isinstance(size, int):
            raise ValueError(
                "how many draws a batch takes is not known, as its loader has no batch_size: "
                "count them by monitor.step(batch_size) in your loop"
            )
        if isinstance(source, EpochItems) and len(self.loader.dataset) != self._drawn.items:
            raise ValueError(
                f"the loader's data set has {len(self.loader.dataset):,} items, and the "
                f"{type(source).__name__} in it {self._drawn.items:,}: which of them are read is "
                "not known to a Monitor"
            )
        if is_stream(source):
            return size * source.num_replicas * source.draws_an_item
        if getattr(getattr(self.loader, "batch_sampler", None), "split_batches", False):
            return size
        own = source.num_replicas if isinstance(source, PlanSampler) else 1
        return size * max(own, ranks)

    def _end_of_epoch(self) -> int:
        """The items of an epoch, and those that are repeated so that all ranks have as many."""
        items, batches = self._drawn.items, getattr(self.loader, "batch_sampler", None)
        if getattr(batches, "num_processes", 1) > 1 and getattr(batches, "even_batches", False):
            # accelerate 1.15, BatchSamplerShard: batches too are filled up, from the first items.
            return -(-items // self._items) * self._items
        sampler = getattr(self._batches, "sampler", self._batches)
        ranks = getattr(sampler, "num_replicas", 1)
        return ranks * (
            items // ranks if getattr(sampler, "drop_last", False) else -(-items // ranks)
        )

    def _order_now(self) -> Order:
        """The order in which the pass that has begun reads an epoch."""
        source = self.source
        if is_stream(source):
            return "unknown"
        sampler: Any = getattr(self._batches, "sampler", None)
        if self._batches is source or sampler is source:
            return "plan"
        # Lightning wraps a FlowSampler in such a one, too.
        if isinstance(sampler, DistributedSampler):
            return sampler.seed + sampler.epoch if sampler.shuffle else "plan"
        if isinstance(sampler, SequentialSampler) and not isinstance(source, PlanSampler):
            return "plan"
        # accelerate 1.15, SeedableRandomSampler: it seeds its generator when a pass begins.
        if type(sampler).__name__ == "SeedableRandomSampler" and sampler.generator is not None:
            return int(sampler.generator.initial_seed())
        return "unknown"


def _drawn_from(monitor: Monitor, loaders: tuple[Any, ...]) -> tuple[Any, Any]:
    found = {id(source): (source, loader) for loader in loaders for source in sources_of(loader)}
    if id(monitor.source) in found:
        return found[id(monitor.source)]
    if len(found) != 1:
        what = "several of them" if found else "none that can be found"
        raise ValueError(
            "a Monitor counts what one FlowDataset, FlowSampler or FlowShards draws, and this "
            f"trainer draws from {what}: make it of that one, Monitor(sampler)"
        )
    [(source, loader)] = found.values()
    return source, loader


def _batch_sampler(loader: Any) -> Any:
    """What makes the batches of a loader, without what accelerate has put around it."""
    batches: Any = getattr(loader, "batch_sampler", None)
    if batches is None and isinstance(getattr(loader, "sampler", None), PlanSampler):
        return loader.sampler
    # accelerate 1.15, data_loader.py: BatchSamplerShard, SkipBatchSampler.
    while not isinstance(batches, PlanSampler) and hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return batches


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return 0
