"""The loss in chunks: what cross entropy over all logits gives, without ever having all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.race import peak_gib
from radvision_utils.environment import choose_device
from radvision_utils.model.base import attach_adapter, load_base, load_processor
from radvision_utils.model.stage import checkpoint_layers, select_stage
from radvision_utils.planning.step import GIB
from radvision_utils.runs import Stage
from radvision_utils.training import loss
from radvision_utils.training.collator import IGNORED, Collator
from radvision_utils.training.loss import MODEL_INPUTS, report_token_losses


def plain_losses(model, batch):
    """Cross entropy over the logits of every position from the report's first token on."""
    logits = model(**{name: batch[name] for name in MODEL_INPUTS}, use_cache=False).logits
    targets = batch["labels"][:, 1 - batch["logits_to_keep"] :]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return losses, targets != IGNORED


@pytest.fixture(scope="module")
def model(small_profile):
    model = attach_adapter(load_base(small_profile.model, choose_device()), small_profile)
    select_stage(model, Stage(small_profile, 2))
    return model


@pytest.fixture(scope="module")
def batch(small_profile, dataset):
    return Collator(load_processor(small_profile.model, 512), small_profile.model)(dataset.split("train")[:5])


@pytest.mark.parametrize("tokens_at_a_time", [1, 7, 100_000])
def test_losses_and_gradients_are_those_of_plain_cross_entropy(model, batch, monkeypatch, tokens_at_a_time):
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 4 * len(model.get_output_embeddings().weight) * tokens_at_a_time)
    results = []
    for way in (plain_losses, report_token_losses):
        losses, counts = way(model, batch)
        (losses.sum() / counts.sum()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        results.append((losses.detach(), counts, gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=2e-5)


def test_no_more_logits_at_a_time_than_a_chunk_and_none_of_prompt_and_padding(model, batch, monkeypatch):
    words = model.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(loss, "_CHUNK_BYTES", 4 * words * 16)
    rows, linear = [], F.linear

    def counting(inputs, weight, bias=None):
        if len(weight) == words:
            rows.append(len(inputs))
        return linear(inputs, weight, bias)

    monkeypatch.setattr(F, "linear", counting)
    with torch.no_grad():
        report_token_losses(model, batch)
    assert max(rows) == 16
    assert sum(rows) == (batch["labels"] != IGNORED).sum()


def test_however_many_chunks_two_are_in_memory_at_most(monkeypatch):
    words, rows = 50_000, 4
    chunk = 4 * words * rows
    monkeypatch.setattr(loss, "_CHUNK_BYTES", chunk)
    hidden, weight = torch.randn(5 * rows, 8, requires_grad=True), torch.randn(words, 8)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss._TokenLosses.apply(hidden, weight, torch.zeros(5 * rows, dtype=torch.int64))
    assert chunk < peak_gib(recorded) * GIB < 2.1 * chunk


@pytest.mark.parametrize("layers", [0, None])
def test_the_last_feed_forward_network_sees_the_report_alone_unless_it_is_checkpointed(
    model, batch, layers, small_profile
):
    checkpoint_layers(model, Stage(small_profile, 2), layers)
    seen = []
    networks = [layer.mlp.gate_proj for layer in model.get_decoder().layers]
    hooks = [
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        for network in (networks[0], networks[-1])
    ]
    model.train()
    losses, _ = report_token_losses(model, batch)
    whole = batch["input_ids"].shape[1]
    assert seen == [whole, batch["logits_to_keep"] if layers == 0 else whole]
    losses.sum().backward()
    for hook in hooks:
        hook.remove()
    checkpoint_layers(model, Stage(small_profile, 2), 0)
    model.eval()


def test_the_model_gives_logits_again_afterwards_even_after_a_failure(model, batch):
    with pytest.raises(KeyError):
        report_token_losses(model, {name: batch[name] for name in batch if name != "pixel_values"})
    with torch.no_grad():
        assert model(**{name: batch[name] for name in MODEL_INPUTS}).logits.shape[-1] == len(
            model.get_output_embeddings().weight
        )


def test_a_head_that_trains_gets_its_gradient(model, batch):
    head = model.get_output_embeddings().weight.requires_grad_()
    gradients = []
    for way in (plain_losses, report_token_losses):
        way(model, batch)[0].sum().backward()
        gradients.append(head.grad)
        model.zero_grad(set_to_none=True)
    head.requires_grad_(False)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


def test_half_precision_does_not_lose_the_many_small_probabilities():
    generator = torch.Generator().manual_seed(0)
    # Every word of 152,000 is as likely as the other: 7e-6 each, which float16 has with one digit.
    hidden = (torch.randn(3, 8, generator=generator) * 1e-3).half().requires_grad_()
    weight, targets = (torch.randn(152_064, 8, generator=generator) + 0.5).half(), torch.tensor([5, 70_000, 151_000])
    loss._TokenLosses.apply(hidden, weight, targets).sum().backward()
    exact = hidden.detach().double().requires_grad_()
    F.cross_entropy(exact @ weight.double().T, targets, reduction="sum").backward()
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=5e-3, atol=5e-3)
