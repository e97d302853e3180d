"""Operations of torch in groups, by the names under which `__torch_function__` sees them."""

from typing import Any

RESHAPING = """
    view reshape flatten unflatten ravel squeeze unsqueeze transpose swapaxes swapdims permute t
    movedim moveaxis adjoint expand repeat tile narrow select masked_select take take_along_dim
    gather flip fliplr flipud roll rot90 repeat_interleave split split_with_sizes chunk unbind
    tensor_split hsplit vsplit dsplit unfold diagonal broadcast_to atleast_1d atleast_2d atleast_3d
    slice_copy tril triu clone contiguous detach alias pin_memory share_memory_
    .T .mT .H .mH .data .real
""".split()
"""What chooses elements, or puts them elsewhere, whatever their values."""

INDEXING = "__getitem__ index_select".split()
"""The same, where a target may also be the index."""

CASTING = """
    cpu cuda float double half bfloat16 long int short char byte bool type round floor ceil
""".split()
"""What changes how elements are stored."""

TAKING_SHAPE = "view_as reshape_as expand_as".split()
TAKING_DTYPE = "type_as to".split()
"""What may also be called of another tensor, and asks the target for its shape or dtype only."""

ELEMENTWISE = """
    add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod neg
    negative abs absolute clamp clip clamp_min clamp_max pow square sqrt log log1p log2 exp expm1
    sigmoid tanh nan_to_num masked_fill index_fill where __add__ __radd__ __sub__ __rsub__ __mul__
    __rmul__ __truediv__ __rtruediv__ __floordiv__ __mod__ __neg__ __pow__ one_hot
""".split()
"""What gives each element another value, in its place."""

ALONG_A_DIMENSION = "softmax log_softmax".split()

JOINING = "cat concat concatenate stack hstack vstack dstack column_stack row_stack".split()

PADDING = "pad constant_pad_nd".split()

RESHAPING_IN_PLACE = """
    squeeze_ unsqueeze_ transpose_ swapaxes_ swapdims_ t_
""".split()

ELEMENTWISE_IN_PLACE = """
    add_ sub_ subtract_ mul_ multiply_ div_ divide_ true_divide_ floor_divide_ remainder_ fmod_
    neg_ negative_ abs_ absolute_ clamp_ clip_ clamp_min_ clamp_max_ pow_ square_ sqrt_ log_ log1p_
    log2_ exp_ expm1_ sigmoid_ tanh_ round_ floor_ ceil_ nan_to_num_ masked_fill_ index_fill_ fill_
    zero_ requires_grad_
    __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__
""".split()

_BITWISE_IN_PLACE = "__iand__ __ior__ __ixor__ __ilshift__ __irshift__".split()
"""Operators in place that torch has beside those above."""

CREATING = """
    new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like rand_like
    randn_like
""".split()
"""New tensors, which take only shape, dtype and device from the target."""


def operation(func: Any) -> str:
    """The name by which rules know an operation; of attributes with a dot before."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return f".{func.__self__.__name__}" + ("=" if name == "__set__" else "")
    return str(name)


def is_attribute(name: str) -> bool:
    """Whether an operation reads or sets an attribute."""
    return name.startswith(".")


def is_in_place(name: str) -> bool:
    """Whether an operation, by torch's convention for names, changes the tensor that is there."""
    if name.endswith("__"):
        return name in ELEMENTWISE_IN_PLACE or name in _BITWISE_IN_PLACE
    return name.endswith("_")
