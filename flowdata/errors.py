"""What flowdata raises and warns, so that callers can catch it by kind."""


class FlowDataError(Exception):
    """Base of every error that is about the data, a file or a state rather than a call."""


class InvalidLossError(FlowDataError, ValueError):
    """Losses or weights from which no sampling distribution can be made."""


class TableFileError(FlowDataError):
    """A loss table file that is missing, truncated, foreign or cannot be written."""


class ShardError(FlowDataError):
    """A tar shard that is missing, compressed, cut off, or has a key twice."""


class MismatchError(FlowDataError, ValueError):
    """A loss table or a saved state that belongs to other data, weights or another model."""


class FlowDataWarning(UserWarning):
    """Something is probably not what the user wants, but the result is well defined."""
