"""The table of rules: what is done where an operation is called with a WeightedTarget.

An operation that is not here, nor an attribute, nor in place, gets the plain target, and raises if
its result has a gradient: an unregistered loss is never computed without weights.
"""

from collections.abc import Iterable

from torch.nn import functional as F

from flowdata.reweight import in_place, losses, onehot, operations
from flowdata.reweight import operation_names as names
from flowdata.reweight.operations import Function, Rule

RULES: dict[str, Rule] = {
    **dict.fromkeys(names.RESHAPING, operations.reshape),
    **dict.fromkeys(names.TAKING_SHAPE, operations.take_shape),
    **dict.fromkeys(names.CASTING, operations.cast),
    **dict.fromkeys(names.TAKING_DTYPE, operations.take_dtype),
    **dict.fromkeys(names.ELEMENTWISE, operations.compute_elements),
    **dict.fromkeys(names.ALONG_A_DIMENSION, onehot.normalise_along),
    **dict.fromkeys(names.INDEXING, onehot.one_hot_by_index),
    **dict.fromkeys(names.JOINING, operations.join),
    **dict.fromkeys(names.PADDING, operations.pad),
    **dict.fromkeys(names.CREATING, operations.call_plain),
    **dict.fromkeys(names.ELEMENTWISE_IN_PLACE, in_place.change_elements),
    **dict.fromkeys(names.RESHAPING_IN_PLACE, in_place.reshape_in_place),
    "pad_sequence": operations.pad_sequences,
    "scatter": onehot.scatter_rows,
    "scatter_": in_place.scatter_in_place,
    "index_put_": in_place.put_elements,
    "__setitem__": in_place.set_elements,
    "copy_": in_place.copy_elements,
    "detach_": in_place.keep_detached,
    ".data=": in_place.refuse_in_place,
    "record_stream": operations.record_stream,
    "__hash__": operations.call_on_object,
}
"""By the name of an operation; of an attribute with a dot before."""


def _existing(names: Iterable[str], rule: Rule) -> dict[Function, Rule]:
    """A rule for those functions that this release of torch has."""
    return {getattr(F, name): rule for name in names if hasattr(F, name)}


LOSS_RULES: dict[Function, Rule] = {
    **_existing(
        ["cross_entropy", "nll_loss", "linear_cross_entropy"], losses.weighted_over_class_weights
    ),
    **_existing(["mse_loss", "l1_loss", "huber_loss"], losses.weighted_over_element_weights),
    **_existing(
        """smooth_l1_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div
        poisson_nll_loss gaussian_nll_loss soft_margin_loss multi_margin_loss
        multilabel_margin_loss multilabel_soft_margin_loss hinge_embedding_loss
        margin_ranking_loss cosine_embedding_loss""".split(),
        losses.weighted_over_count,
    ),
    F.ctc_loss: losses.weighted_ctc_loss,
}
"""By the function of a loss; `register_loss` adds those of users."""


def rule_of(func: Function) -> Rule:
    """What is done where a function is called with a weighted target."""
    rule = LOSS_RULES.get(func)
    if rule is not None:
        return rule
    name = names.operation(func)
    rule = RULES.get(name)
    if rule is not None:
        return rule
    if names.is_attribute(name):
        return operations.use_attribute
    return in_place.refuse_in_place if names.is_in_place(name) else operations.call_unweighted
