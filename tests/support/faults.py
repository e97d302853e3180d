"""Which requests of a server fail, and how: chosen by a seed, so that a run can be repeated."""

import random
import socket
import struct
from collections import Counter

KINDS = ("busy", "reset", "stall", "short", "less")
"""A 503; a connection that is reset, before the answer or in its body; an answer that stops for a
while there; one that ends before its length; one, valid in itself, of a part of the range."""


class Faults:
    """Fails a share of the requests.

    Args:
        kinds: of `KINDS`.
        share: of the requests, for each kind.
        seed: of the choice, which depends on path, range and how often they were asked for: on
            no clock and on no order of threads.
        stall: seconds.
    """

    def __init__(self, *kinds, share=0.05, seed=0, stall=0.6):
        self.kinds, self.share, self.seed, self.stall = kinds, share, seed, stall
        self.given = Counter()
        """How many requests failed in each way."""
        self._asked = Counter()

    def next_of(self, path, wanted):
        """How this request fails and after which share of its body; None if it does not."""
        self._asked[path, wanted] += 1
        choice = random.Random(f"{self.seed} {path} {wanted} {self._asked[path, wanted]}")
        number = choice.random() / self.share
        if number >= len(self.kinds):
            return None
        kind = self.kinds[int(number)]
        self.given[kind] += 1
        return kind, choice.choice([0.0, choice.random()])


def reset(connection):
    """Close a connection so that the other side is told that it was reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(connection.detach())
