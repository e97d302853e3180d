"""What is found on the call stack, and what is not as expected there."""

import pytest

from flowdata.guards.detection import Caller, find_caller
from flowdata.guards.epochs import advise_even_batches

FIT_LOOP = "lightning.pytorch.loops.fit_loop"


class Raising:
    """An object of a framework that has nothing of what is looked for."""

    def __getattr__(self, name):
        raise RuntimeError(name)


def call_from(module, function, source, **names):
    """The caller that a function of this module and name finds, run with these globals."""
    code = compile(source, "<framework>", "exec")
    space = {"__name__": module, "find_caller": find_caller, **names}
    exec(code, space)
    method = eval(function, space)
    return method()


LOOP = """
class _FitLoop:
    def advance(self):
        return find_caller()
    trainer, restarting = trainer, False
"""


@pytest.mark.guard
def test_a_trainer_is_found_by_the_function_that_runs():
    class Trainer:
        callbacks, ckpt_path, current_epoch = (), None, 1

    caller = call_from(FIT_LOOP, "_FitLoop().advance", LOOP, trainer=Trainer())
    assert caller.lightning_fits
    assert caller.lightning_restarts_workers
    assert not caller.callback_sets_epoch


@pytest.mark.parametrize("module", [FIT_LOOP, None, 3, "", "accelerate.data_loader"])
def test_what_is_not_as_expected_is_not_found(module):
    caller = call_from(module, "_FitLoop().advance", LOOP, trainer=Raising())
    assert caller == Caller()


@pytest.mark.parametrize("count", [None, 0, "2"])
def test_batches_that_are_counted_in_another_way_are_no_error(count):
    caller = find_caller()
    for shard in (Raising(), object()):
        caller.batch_shard = shard
        advise_even_batches(caller, 7)
    known = type("Shard", (), {"even_batches": False, "drop_last": False, "split_batches": False})
    caller.batch_shard = known()
    caller.batch_shard.batch_size, caller.batch_shard.num_processes = 4, count
    advise_even_batches(caller, 7)
