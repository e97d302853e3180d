"""View: the progress of a stream, and of the streams that are made of it by adding stages."""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from flowdata.streaming.progress import Progress

Answer = TypeVar("Answer")


class View:
    """One stream's progress, of its own, and the views of the streams that are made of it.

    A view begins where the stream that it is made of is. What a stream is told, an epoch or a
    state, those made of it are told too. How far it is, it knows itself if it was iterated over
    since; else the one that is made of it and was, also if that one is gone by now: a loop may
    make its view anew for every epoch.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.made: list[View] = []
        """Views made of this one, in that order."""
        self.was_told = False
        """Whether it was told something that the one it is made of was not."""
        self._owner: weakref.ref[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        self._remembered()
        return self.__dict__ | {"_owner": None}

    def belongs_to(self, stream: Any) -> None:
        """Say whose progress it is; a view is gone when its stream is."""
        self._owner = weakref.ref(stream)

    def make(self) -> "View":
        """The view of a stream that is made of this one."""
        furthest = max([self.progress, *self.moved()], key=lambda progress: progress.epoch)
        view = View(furthest.following(self.progress.batch_size))
        self.made.append(view)
        return view

    def set_epoch(self, epoch: int) -> None:
        """Tell this view and those made of it which epoch is the next."""
        self.tell(lambda progress: progress.set_epoch(epoch))

    def load(self, state: Any) -> None:
        """Tell this view and those made of it where to go on.

        Raises:
            MismatchError: see `Progress.load`.
        """
        self.tell(lambda progress: progress.load(state))

    def ask(self, question: Callable[[Progress], Answer]) -> Answer:
        """What the progress answers that knows how far this stream is.

        Raises:
            RuntimeError: where several do, and do not agree.
        """
        answers = [question(progress) for progress in self.moved() or [self.progress]]
        if any(answer != answers[0] for answer in answers[1:]):
            raise RuntimeError(
                f"{len(answers)} streams, this one and those made of it by adding stages, were "
                "iterated over and are at different places: ask the one that is meant"
            )
        return answers[0]

    def tell(self, tell: Callable[[Progress], None]) -> None:
        """Tell this view and those made of it."""
        tell(self.progress)
        self.was_told = True
        self.made = [view for view in self.made if view.is_there()]
        for view in self.made:
            view.tell(tell)
            view.was_told = False

    def moved(self) -> list[Progress]:
        """Those that are at a place of their own, where the one they are made of did not put them.

        This view's, and those of the views made of it; of views that are gone the last one's, if
        no other is.
        """
        views = self._remembered()
        there = [progress for view, moved in views if view.is_there() for progress in moved]
        if self.progress.has_begun:
            there.append(self.progress)
        gone = [progress for _, moved in views for progress in moved]
        return there or gone[-1:] or [self.progress] * self.was_told

    def _remembered(self) -> list[tuple["View", list[Progress]]]:
        """The views made of this one, with what `moved` says of them; others are forgotten."""
        found: list[tuple[View, list[Progress]]] = []
        superseded = False
        for view in reversed(self.made):
            moved = view.moved()
            if view.has_owner() or (moved and (view.is_there() or not superseded)):
                found.append((view, moved))
            elif not moved:
                # The views made of it are those of this one.
                found += [(below, []) for below in reversed(view.made)]
            superseded |= bool(moved)
        found.reverse()
        self.made = [view for view, _ in found]
        return found

    def is_there(self) -> bool:
        """Whether its stream exists, or one made of it."""
        return self.has_owner() or any(view.is_there() for view in self.made)

    def has_owner(self) -> bool:
        """Whether its stream exists."""
        return self._owner is not None and self._owner() is not None
