"""Compiled layers train as layers that are not: the same losses and gradients, and little to compile."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from radvision_utils.environment import choose_device
from radvision_utils.model.base import attach_adapter, load_base, load_processor
from radvision_utils.model.faster import compiled_layers, speed_up_lora
from radvision_utils.model.stage import checkpoint_layers, select_stage
from radvision_utils.runs import Stage
from radvision_utils.training.collator import Collator
from radvision_utils.training.loss import report_token_losses


@pytest.fixture
def batches(small_profile, dataset):
    """Of several sizes and lengths."""
    collator, train = Collator(load_processor(small_profile.model, 512), small_profile.model), dataset.split("train")
    return [collator(train[first:last]) for first, last in ((0, 3), (3, 6), (6, 8), (8, 12))]


def losses_and_gradients(model, batches, autocast):
    found = []
    for batch in batches:
        with autocast():
            losses, counts = report_token_losses(model, batch)
        (losses.sum() / counts.sum()).backward()
        found.append((losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad(set_to_none=True)
    return found


def model_of(profile, stage):
    model = attach_adapter(load_base(profile.model, choose_device()), profile)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    select_stage(model, stage)
    speed_up_lora(model)
    return model.train()


@pytest.mark.parametrize(("number", "checkpointed"), [(1, None), (2, 0), (3, None)])
def test_losses_and_gradients_are_those_of_layers_as_they_are(small_profile, batches, number, checkpointed, old_torch):
    stage = Stage(small_profile, number)
    model, autocast = model_of(small_profile, stage), choose_device().autocast
    checkpoint_layers(model, stage, checkpointed)
    expected = losses_and_gradients(model, batches, autocast)
    counter = CompileCounterWithBackend("aot_eager")
    with compiled_layers(model, counter):
        found = losses_and_gradients(model, batches[:1], autocast)
        compiled = counter.frame_count
        found += losses_and_gradients(model, batches[1:], autocast)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert 0 < compiled <= counter.frame_count <= compiled + old_torch  # nothing anew for batches of other sizes
    assert torch.equal(losses_and_gradients(model, batches[:1], autocast)[0][0], expected[0][0])
