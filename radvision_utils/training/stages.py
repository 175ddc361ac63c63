"""What each of the three stages trains, and the check that gradients reach that and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from radvision_utils.config import Profile, RadVisionError
from radvision_utils.model.components import component_of, is_adapter


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    number: int
    component: str  # what gets gradients
    title: str
    how: str


STAGES = {
    1: Stage(1, "vision_encoder", "vision encoder", "LoRA on the linear layers of its blocks"),
    2: Stage(2, "projector", "projector", "all weights of the merger"),
    3: Stage(3, "language_model", "language model", "LoRA on the linear layers of its decoder, over 4-bit weights"),
}


def select_stage(model: PeftModel, profile: Profile, number: int) -> list[str]:
    """Give gradients to exactly the stage's part of the adapter, and dropout to its LoRA alone.

    Returns:
        Names of the tensors that will train.
    """
    component = STAGES[number].component
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            rate = profile.stage(number).lora_dropout if component_of(name + ".") == component else 0.0
            for adapter in module.lora_dropout:
                module.lora_dropout[adapter] = nn.Dropout(rate) if rate else nn.Identity()
    chosen = []
    for name, parameter in model.named_parameters():
        trains = is_adapter(name) and component_of(name) == component
        parameter.requires_grad_(trains)
        if trains:
            chosen.append(name)
    return chosen


def checkpoint_layers(model: nn.Module, number: int, layers: int | None) -> None:
    """Let layers compute their activations again in the backward pass instead of keeping them.

    transformers' own switch takes all layers or every n-th, those of a frozen vision encoder too. Since 5.24 it also
    makes what enters the vision encoder require gradients: stages 2 and 3 would go back through all of it for nothing.

    Args:
        model: in whatever wrapper.
        number: of the stage; the vision encoder's blocks are checkpointed where they train.
        layers: of the language model, counted from the first; None: all; 0: none at all. The first ones, because
            what the last ones keep is used up before the first are computed again.
    """
    seen = 0
    for name, module in model.named_modules():
        if not isinstance(module, GradientCheckpointingLayer):
            continue
        if component_of(name + ".") == "vision_encoder":
            chosen = number == 1 and layers != 0
        else:
            chosen, seen = layers is None or seen < layers, seen + 1
        module.gradient_checkpointing = chosen
        # Re-entrant checkpointing gives a LoRA whose inputs need no gradient (stage 1's first block) none at all.
        module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def assert_gradients(model: nn.Module, number: int) -> None:
    """After a backward pass: every tensor of the stage has a gradient, no other tensor has one.

    Re-entrant checkpointing, a frozen input or a wrong target pattern would leave LoRA untrained without a word.

    Raises:
        RadVisionError: it is not so; the sentence names the first such tensor.
    """
    stage = STAGES[number]
    for name, parameter in model.named_parameters():
        belongs = is_adapter(name) and component_of(name) == stage.component
        if belongs != (parameter.grad is not None):
            what = "has no gradient" if belongs else "has a gradient"
            raise RadVisionError(
                f"stage {number} trains the {stage.title} only, but after the first batch {name} {what}: "
                "this is a fault of the set-up, not of the data; please report it with your library versions."
            )
