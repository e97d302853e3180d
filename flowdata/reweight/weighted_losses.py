"""WeightedLosses: losses of single elements times weights, of which linear uses alone are right."""

from typing import Any

from torch import Tensor

from flowdata.reweight.operation_names import (
    CASTING,
    INDEXING,
    JOINING,
    PADDING,
    RESHAPING,
    TAKING_DTYPE,
    TAKING_SHAPE,
    is_attribute,
    operation,
)
from flowdata.reweight.refusals import UnweightedLossError, name_of, needs_gradient
from flowdata.reweight.target_data import targets_in
from flowdata.reweight.torch_internals import left_to_eager_mode, subclasses_off

_PRODUCTS = set(
    """mul multiply dot inner outer matmul mm mv bmm einsum div divide true_divide
    __mul__ __rmul__ __imul__ __matmul__ __rmatmul__ __truediv__ __itruediv__""".split()
)
_LINEAR = _PRODUCTS | {
    *RESHAPING,
    *INDEXING,
    *CASTING,
    *TAKING_SHAPE,
    *TAKING_DTYPE,
    *JOINING,
    *PADDING,
    *"""neg negative add sub subtract rsub sum mean nansum nanmean cumsum where masked_fill
    masked_scatter index_fill index_add scatter_add nan_to_num zero fill copy
    __neg__ __pos__ __add__ __radd__ __sub__ __rsub__ __iadd__ __isub__ __setitem__""".split(),
} - {"round", "floor", "ceil"}
_NOT_LINEAR = set(
    """exp exp2 expm1 log log2 log10 log1p pow float_power square sqrt rsqrt reciprocal sigmoid
    logsigmoid tanh softmax log_softmax softmin logsumexp softplus relu clamp clip clamp_min
    clamp_max maximum minimum topk sort argsort msort kthvalue quantile nanquantile gt ge lt le
    greater greater_equal less less_equal __pow__ __rpow__ __ipow__ __gt__ __ge__ __lt__ __le__
    """.split()
)


class WeightedLosses(Tensor):
    """What a loss with ``reduction="none"`` gives for a weighted target: ``weights * losses``.

    Sums, means and multiples of it are those of a weighted loss. Focal loss, hard examples and
    what else is not linear in the losses need them without weights, and are refused, also of
    detached losses. The sum or mean of all elements is a plain tensor.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _dispatch(func, args, kwargs or {})


def as_weighted_losses(weighted: Tensor) -> Tensor:
    """Weighted losses as such, where a gradient is to come of them."""
    return weighted.as_subclass(WeightedLosses) if weighted.requires_grad else weighted


@left_to_eager_mode
def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if targets_in((args, kwargs)):
        return NotImplemented
    name = operation(func)
    # In place and not, an operation is as linear; `__iadd__` and the like are named above.
    if not name.endswith("__"):
        name = name.removesuffix("_")
    if name in _NOT_LINEAR or (name in _PRODUCTS and _is_quadratic(name, args, kwargs)):
        raise _not_linear(func)
    with subclasses_off():
        result = func(*args, **kwargs)
    if name in _LINEAR:
        return _keep_class(result)
    # What gives no tensor with a gradient is as of any tensor, and so are attributes, which
    # compute nothing: `_base`, say, which torch.compile reads.
    if not is_attribute(name) and needs_gradient(result):
        raise _not_linear(func)
    return result


def _is_quadratic(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a product is of two of them, or a quotient by one."""
    factors = sum(isinstance(part, WeightedLosses) for part in (*args, *kwargs.values()))
    return factors > 1 or ("div" in name and not isinstance(args[0], WeightedLosses))


def _keep_class(result: Any) -> Any:
    """What is linear in weighted losses is weighted losses, but for numbers."""
    if isinstance(result, list | tuple):
        return type(result)([_keep_class(item) for item in result])
    if type(result) is Tensor and result.ndim:
        return result.as_subclass(WeightedLosses)
    return result


def _not_linear(func: Any) -> UnweightedLossError:
    return UnweightedLossError(
        f"{name_of(func)} of losses that are weighted already is not what it is of losses: focal "
        "loss, hard examples and the like need them without weights. Teach the whole loss with "
        "flowdata.register_loss(function, handler), or take the explicit weights: "
        'reweight(..., entry="flow_weight") and flowdata.weighted_mean'
    )
