"""The ledger sees every change of a weight, wherever the weight lies and however it is stored."""

import hashlib

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radvision_utils.model import stage as ledger
from radvision_utils.model.stage import fingerprint, weight_ledger

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64)
SHAPES = ((), (1,), (7,), (3, 5), (2, 3, 4), (41,))


def of(tensor, label="weight"):
    return fingerprint(label, tensor).item()


def filled(dtype, shape, seed=0):
    """A tensor of random bytes, NaN and infinities among its numbers."""
    count = torch.Size(shape).numel() * dtype.itemsize
    values = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return values.view(dtype).reshape(shape)


def flip(tensor, bit):
    flipped = tensor.clone()
    flipped.view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8
    return flipped


tensors = st.builds(filled, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.integers(0, 99))


@given(tensors, st.data())
def test_flipping_any_bit_changes_the_fingerprint(tensor, data):
    bit = data.draw(st.integers(0, 8 * tensor.nbytes - 1))
    assert of(flip(tensor, bit)) != of(tensor)


@given(tensors, st.data())
def test_flipping_two_bits_changes_it_too_the_signs_of_two_numbers_among_them(tensor, data):
    one, other = data.draw(st.lists(st.integers(0, 8 * tensor.nbytes - 1), min_size=2, max_size=2, unique=True))
    assert of(flip(flip(tensor, one), other)) != of(tensor)
    if tensor.is_floating_point() and not tensor.isnan().any():
        assert of(-tensor) != of(tensor)


@given(tensors, st.data())
def test_moving_numbers_changes_it(tensor, data):
    order = data.draw(st.permutations(range(tensor.numel())))
    moved = tensor.reshape(-1)[torch.tensor(order)].reshape(tensor.shape)
    same = torch.equal(moved.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    assert (of(moved) == of(tensor)) == same


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_flipping_a_truth_value_changes_it(values, data):
    place = data.draw(st.integers(0, len(values) - 1))
    changed = [value != (i == place) for i, value in enumerate(values)]
    assert of(torch.tensor(changed)) != of(torch.tensor(values))


def test_name_shape_and_number_format_count_even_where_there_is_no_byte():
    tensor = filled(torch.float16, (4, 6))
    others = [tensor.view(6, 4), tensor.view(torch.bfloat16), torch.empty(0), torch.empty(0, 3), torch.empty(0).half()]
    prints = [of(tensor), of(tensor, "bias"), of(torch.empty(0), "bias"), *map(of, others)]
    assert len(set(prints)) == len(prints)


@given(tensors)
def test_only_the_numbers_count_and_not_where_they_lie(tensor):
    spread = torch.stack([tensor, tensor], -1)[..., 0]
    shifted = torch.cat([tensor.view(-1)[:1], tensor.view(-1)])[1:].view(tensor.shape)  # begins within a word
    assert of(spread) == of(shifted) == of(tensor)


@pytest.mark.parametrize("words", [1, 3, 1000])
def test_the_size_of_the_pieces_it_is_computed_in_changes_nothing(monkeypatch, words):
    tensor = filled(torch.bfloat16, (41, 3))
    whole = of(tensor)
    monkeypatch.setattr(ledger, "_WORDS", words)
    assert of(tensor) == whole


def test_the_digits_are_those_of_python_integers():
    def finalized(word):  # SplitMix64 as it was published
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    tensor = filled(torch.uint8, (83,))
    data = bytes(tensor.tolist()) + bytes(5)
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    start = int.from_bytes(hashlib.sha256(b"weight torch.uint8 (83,)").digest()[:8], "little")
    total = start + sum(finalized((w + i * 0x9E3779B97F4A7C15 + start) % 2**64) for i, w in enumerate(words))
    assert of(tensor) % 2**64 == total % 2**64


class Small(torch.nn.Module):
    """Two 4-bit layers under a name that the ledger knows."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        layers = [bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compress_statistics=True) for _ in range(2)]
        self.language_model = torch.nn.Sequential(*layers).to("cpu")


def stored(model):
    """Every tensor that a 4-bit layer is expanded from."""
    for layer in model.language_model:
        state = layer.weight.quant_state
        yield layer.weight.data
        yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_flipping_any_bit_of_a_4_bit_weight_or_of_its_scales_changes_the_ledger(data):
    model = Small(0)
    before = weight_ledger(model)
    tensors = list(stored(model))
    tensor = tensors[data.draw(st.integers(0, len(tensors) - 1))]
    tensor.copy_(flip(tensor, data.draw(st.integers(0, 8 * tensor.nbytes - 1))))
    assert weight_ledger(model) != before


def test_4_bit_layers_that_change_places_change_the_ledger_and_the_same_weights_do_not():
    one, other = Small(0), Small(0)
    assert weight_ledger(one) == weight_ledger(other) != weight_ledger(Small(1))
    other.language_model = torch.nn.Sequential(*reversed(other.language_model))
    assert weight_ledger(one) != weight_ledger(other)


def test_the_type_and_the_block_of_a_4_bit_weight_count():
    one, other = Small(0), Small(0)
    other.language_model[0].weight.quant_state.blocksize *= 2
    assert weight_ledger(one) != weight_ledger(other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card here")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_digits_are_the_same_on_a_card(dtype):
    tensor = filled(dtype, (41, 3))
    assert of(tensor.cuda()) == of(tensor)
