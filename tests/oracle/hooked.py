"""A decoder of ours as a HookedTransformer of TransformerLens with the same weights, and prompts for both.

Nothing is folded or centred, so that both have the same activations and not only the same outputs.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from positionbias.analysis.base import last_rows, right_answer
from positionbias.analysis.pairs import corrupted

NORMS = {"layer": "LN", "rms": "RMS"}
EPSILON = 1e-6  # of `models.block.Norm`


def tensor(array):
    """An array of ours, for torch."""
    return torch.tensor(np.asarray(array))


def hooked(run):
    """The HookedTransformer that computes what the model of a loaded run does.

    Of a decoder without biases of linear maps, with softmax, `rope` or `learned` positions, gelu and its own readout.
    """
    model, length = run.config.model, run.experiment.blueprint.length
    size, rotary = run.experiment.blueprint.head_size, model.position.startswith("rope")
    config = HookedTransformerConfig(
        n_layers=model.layers,
        d_model=model.width,
        n_heads=model.heads,
        d_head=size,
        d_mlp=model.mlp_width or 4 * model.width,
        n_ctx=length + 1,  # `detect_head` wants one more than it reads
        d_vocab=run.task.input.size,
        d_vocab_out=run.task.output.size,
        act_fn="gelu_pytorch_tanh",  # as jax.nn.gelu computes it
        normalization_type=NORMS[model.norm],
        eps=EPSILON,
        positional_embedding_type="rotary" if rotary else "standard",
        rotary_dim=size if rotary else None,
        rotary_adjacent_pairs=True,
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
        device="cpu",
    )
    made = HookedTransformer(config)
    untouched = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    made.load_and_process_state_dict(state(run, rotary), **untouched)
    return made.requires_grad_(False)


def state(run, rotary):
    """The weights by the names that TransformerLens has for them."""
    ours, heads = run.model, run.config.model.heads
    embedding, found = ours.embedding, dict[str, Any]()

    def by_head(dense):
        """[D, N H] as [N, D, H]."""
        weight = tensor(dense.weight[...])
        return weight.reshape(len(weight), heads, -1).movedim(1, 0).contiguous()

    def norm(name, of):
        found[f"{name}.w"] = tensor(of.scale[...])
        if of.shift is not None:
            found[f"{name}.b"] = tensor(of.shift[...])

    found["embed.W_E"] = tensor(embedding.table[...])
    if not rotary:
        table = tensor(embedding.params["table"][...])
        found["pos_embed.W_pos"] = torch.cat([table, torch.zeros_like(table[:1])])
    for layer, block in enumerate(ours.stack.blocks):
        name, attention = f"blocks.{layer}", block.attention
        norm(f"{name}.ln1", block.norm_attention)
        norm(f"{name}.ln2", block.norm_mlp)
        for letter, dense in (("Q", attention.query), ("K", attention.key), ("V", attention.value)):
            found[f"{name}.attn.W_{letter}"] = by_head(dense)
        output = tensor(attention.output.weight[...])
        found[f"{name}.attn.W_O"] = output.reshape(heads, -1, output.shape[1])
        found[f"{name}.mlp.W_in"] = tensor(block.mlp.first.weight[...])
        found[f"{name}.mlp.W_out"] = tensor(block.mlp.second.weight[...])
    norm("ln_final", ours.stack.norm)
    found["unembed.W_U"] = tensor(ours.readout.last.weight[...])
    return found


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Items and the same corrupted as by `pairs.corrupted`, for torch: tokens [B, T], and of the last answer [B]."""

    clean: torch.Tensor
    corrupted: torch.Tensor
    row: torch.Tensor  # that answers
    evidence: torch.Tensor  # the row of it
    right: torch.Tensor
    wrong: torch.Tensor  # what the model says of the corrupted ones

    @classmethod
    def of(cls, subject, model, key):
        """Those that an analysis of this subject draws by this key."""
        batch = subject.batch(key)
        found = (
            batch.inputs,
            corrupted(batch),
            last_rows(subject, batch),
            batch.last_evidence[:, -1],
            right_answer(batch),
        )
        clean, other, row, evidence, right = (tensor(x).long() for x in jax.device_get(found))
        return cls(clean, other, row, evidence, right, model(other)[torch.arange(len(row)), row].argmax(dim=-1))

    def margins(self, logits):
        """The margin m of `patching` of every item, 0 where both answers are one."""
        each = torch.arange(len(self.row))
        last = logits[each, self.row]
        return last[each, self.right] - last[each, self.wrong]
