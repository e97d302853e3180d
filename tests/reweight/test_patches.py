"""Patches of libraries: made once, soft, and not at all, or undone, with guards off."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch._dynamo.config as compiler
from torch_release import needs
from transformers.trainer_pt_utils import LabelSmoother
from weighted_language import LENGTHS, make_rows, padded, small_model

from flowdata import guards
from flowdata.reweight import UnweightedLossError, WeightedTarget

pytestmark = pytest.mark.guard

HAS_SETTING = hasattr(compiler, "nontraceable_tensor_subclasses")


def test_label_smoothing_is_what_it_was_for_plain_labels():
    smoother = LabelSmoother(epsilon=0.1)
    batch = padded(make_rows())
    outputs = {"logits": small_model()(**batch).logits}
    ones = WeightedTarget(batch["labels"], torch.ones(len(LENGTHS)))
    for options in ({}, {"num_items_in_batch": 7}, {"num_items_in_batch": torch.tensor(7)}):
        for shift in (True, False):
            torch.testing.assert_close(
                smoother(outputs, ones, shift_labels=shift, **options),
                smoother(outputs, batch["labels"], shift_labels=shift, **options),
            )


def test_label_smoothing_without_weights_is_refused_while_guards_are_off():
    smoother = LabelSmoother(epsilon=0.1)
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    target = WeightedTarget(torch.tensor([[0, 1, 2]]), torch.full((1,), 2.0))
    weighted = smoother({"logits": logits}, target)
    guards.off()
    try:
        with pytest.raises(UnweightedLossError, match="gather mixes a weighted target"):
            smoother({"logits": logits}, target)
    finally:
        guards.on()
    assert smoother({"logits": logits}, target) == weighted


def said(script, environment=None):
    """What a script prints, as JSON, in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = os.environ | (environment or {})
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


SEEN = """
    import json, sys, torch
    import flowdata.guards, flowdata.reweight
    imported = sorted({"torch._dynamo", "transformers"} & set(sys.modules))
    import torch._dynamo.config as config
    from transformers.trainer_pt_utils import LabelSmoother
    def seen():
        known = getattr(config, "nontraceable_tensor_subclasses", ())
        return [LabelSmoother.__call__.__name__, len(known)]
    def make_target():
        flowdata.reweight.WeightedTarget(torch.arange(3), torch.ones(3))
        return seen()
    before = seen()
    after = make_target()
    call = LabelSmoother.__call__
    again = make_target()
    wrapped = hasattr(call, "__wrapped__"), LabelSmoother.__call__ is call
    flowdata.guards.off()
    off = make_target()
    flowdata.guards.on()
    print(json.dumps([imported, before, after, again, wrapped, off, make_target()]))
"""


@pytest.mark.slow
def test_they_are_made_with_the_first_target_and_once_and_undone_with_guards_off():
    imported, before, after, again, wrapped, off, on = said(SEEN)
    classes = 2 * HAS_SETTING
    assert imported == []
    assert before == off == ["__call__", 0]
    assert after == again == on == ["__call__", classes]
    assert wrapped == [True, True]


@pytest.mark.slow
def test_with_guards_off_none_is_made():
    _, before, after, again, wrapped, *_ = said(SEEN, {"FLOWDATA_GUARDS": "off"})
    assert before == after == again
    assert wrapped == [False, True]


REFUSED = """
    import json, torch
    from torch.nn import functional as F
    from transformers.trainer_pt_utils import LabelSmoother
    {before}
    from flowdata.reweight import UnweightedLossError, WeightedTarget
    target = WeightedTarget(torch.tensor([0, 1, 2]), torch.tensor([0.5, 1.0, 3.0]))
    logits = torch.randn(1, 3, 4, requires_grad=True)
    found = []
    try:
        LabelSmoother(0.1)({{"logits": logits}}, target[None])
    except UnweightedLossError:
        found.append("label smoothing")
    def loss(logits, target):
        return F.cross_entropy(2 * logits, target)
    compiled = torch.compile(loss, backend="eager")(logits[0], target)
    torch.testing.assert_close(compiled, loss(logits[0], target))
    print(json.dumps(found))
"""

UNEXPECTED = {
    "guards off": "import flowdata; flowdata.guards.off()",
    "another signature": "LabelSmoother.__call__ = lambda self, outputs, labels, more=0: (\n"
    "        outputs['logits'].gather(-1, labels[..., None]))",
    "no such field": "del LabelSmoother.epsilon\n"
    "    LabelSmoother.__init__ = lambda self, epsilon: setattr(self, 'ignore_index', -100)",
    "no such class": "import transformers; del transformers.trainer_pt_utils.LabelSmoother",
    "no such decorator": "decorate = torch._compile._disable_dynamo\n"
    "    del torch._compile._disable_dynamo\n"
    "    import flowdata.reweight\n"
    "    torch._compile._disable_dynamo = decorate",
}
OTHER_SETTING = pytest.param(
    "import torch._dynamo.config as config\n    config.nontraceable_tensor_subclasses = ()",
    marks=needs(HAS_SETTING, "setting of classes that the compiler does not trace"),
    id="another kind of setting",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    [*(pytest.param(before, id=name) for name, before in UNEXPECTED.items()), OTHER_SETTING],
)
def test_where_a_library_is_not_as_expected_losses_are_weighted_or_raise(before):
    smoother_is_as_expected = "dynamo" in before
    refused = [] if smoother_is_as_expected else ["label smoothing"]
    assert said(REFUSED.format(before=before)) == refused
