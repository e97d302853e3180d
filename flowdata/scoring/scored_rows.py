"""Scores of some rows, as passes make them: what a part of a table has."""

from flowdata.table.scored_rows import ScoredRows as ScoredRows
from flowdata.table.scored_rows import concatenate_parts as concatenate_parts
from flowdata.table.scored_rows import sort_by_row as sort_by_row
