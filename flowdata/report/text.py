"""Tables for the terminal."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of even width: the first aligned left, the others right, a rule under the head.

    >>> print(table(["method", "kept"], [["FLOW", "9.5"], ["standard", "10.25"]]))
    method     kept
    --------  -----
    FLOW        9.5
    standard  10.25
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    rule = ["-" * width for width in widths]
    return "\n".join(line(cells).rstrip() for cells in [head, rule, *rows])
