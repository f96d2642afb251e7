"""Which attention layers a module has, and how many heads: what the symmetries of its weights depend on."""

from __future__ import annotations

from torch import nn

__all__ = ["attention_heads"]


def attention_heads(module: nn.Module) -> dict[str, int]:
    """{name of the attention module: number of heads} of every ``nn.MultiheadAttention`` with one ``in_proj_weight``.

    Attention with a key or value bias of its own or an added zero key is left out, because mixing the columns of its
    keys changes what it computes. So is attention of other classes (timm, EVA), whose tensors are laid out otherwise.
    """
    return {
        name: int(m.num_heads)
        for name, m in module.named_modules()
        if isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None and m.bias_k is None
        and not m.add_zero_attn
    }  # fmt: skip
