"""How open_clip's towers compute under Surefoot: attention without detours, and of the last block only what is read.

Both are exact: the same features and gradients up to rounding. They hold for one forward pass; the modules are as before afterwards.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

_whole: ContextVar[bool] = ContextVar("whole", default=False)
_ALL = "all"
_BLOCK = ("open_clip.transformer", "ResidualAttentionBlock")


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Let the last block of a tower compute every token while this is open, for whoever reads more than the pooled one."""
    before = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(before)


@contextlib.contextmanager
def quickly(tower: nn.Module, kernel: str, pooled: Tensor | None = None) -> Iterator[None]:
    """Compute a forward pass of `tower` without what its result does not need, while this is open.

    Every plain `nn.MultiheadAttention` computes as `attend` does. The last block of open_clip's plain transformers computes only the
    token that is pooled, as no other is read behind it: of all tokens keys and values, of that one query, MLP and sums. Blocks whose
    activations are computed again in the backward pass are computed so both times. Modules with a `forward` of their own are left as
    they are.

    Args:
        tower: open_clip's, or a part of it.
        kernel: of attention, "math" or "fused".
        pooled: [B] place of the token that a causal text tower pools in each row; None for all others: image towers say what they pool.
    """
    written_out = kernel == "math"
    modules = _modules(tower)
    attentions: dict[int, Any] = {id(module): module for module in modules if _plain(module)}
    last = None if _whole.get() else _last_block(tower, image=pooled is None)
    with contextlib.ExitStack() as stack:
        for transformer in [m for m in modules if torch.is_grad_enabled() and getattr(m, "grad_checkpointing", False)]:
            blocks: list[Any] = list(getattr(transformer, "resblocks", []))
            if blocks and all(_known(block) and id(block.attn) in attentions for block in blocks):
                stack.enter_context(_with(transformer, "grad_checkpointing", False))
                for block in blocks:
                    forward = functools.partial(_block, block, written_out, pooled if block is last else _ALL)
                    stack.enter_context(_with(block, "forward", functools.partial(_again, forward)))
            for module in transformer.modules():
                attentions.pop(id(module), None)
        for module in attentions.values():
            stack.enter_context(_with(module, "forward", functools.partial(attend, module, written_out=written_out)))
        if last is not None and id(last.attn) in attentions:
            stack.enter_context(_with(last, "forward", functools.partial(_block, last, None, pooled)))
        yield


@contextlib.contextmanager
def shortened(tower: nn.Module, length: int) -> Iterator[None]:
    """Let a causal text tower take `length` positions: its mask and, of open_clip.CLIP, its table of positions are sliced for the call."""
    mask, parameters = tower.attn_mask, tower._parameters
    tower.attn_mask = mask[:length, :length]  # type: ignore[index]
    if "visual" in tower._modules:  # the others slice their table themselves
        tower._parameters = {name: p for name, p in parameters.items() if name != "positional_embedding"}
        tower.positional_embedding = parameters["positional_embedding"][:length]  # type: ignore[index]
    try:
        yield
    finally:
        tower.attn_mask = mask
        tower.__dict__.pop("positional_embedding", None)
        tower._parameters = parameters


@contextlib.contextmanager
def _with(module: nn.Module, name: str, value: object) -> Iterator[None]:
    """An attribute of the module itself while this is open; what was there comes back."""
    there, before = name in module.__dict__, module.__dict__.get(name)
    module.__dict__[name] = value
    try:
        yield
    finally:
        if there:
            module.__dict__[name] = before
        else:
            module.__dict__.pop(name, None)


def _modules(tower: nn.Module) -> list[nn.Module]:
    """All modules of a tower; of open_clip.CLIP, which holds the parts of its text tower itself, those alone."""
    other = {id(module) for module in tower.get_submodule("visual").modules()} if "visual" in tower._modules else set()
    return [module for module in tower.modules() if id(module) not in other]


def _free(module: nn.Module) -> bool:
    """Whether a module computes by its class, or by this file in a pass around this one."""
    forward = module.__dict__.get("forward")
    return forward is None or (isinstance(forward, functools.partial) and forward.func in (attend, _block, _again))


def _plain(module: nn.Module) -> bool:
    """Attention of one width without dropout or extra keys, whose batches come first; computed by nothing but torch."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and _free(module)
        and module.batch_first
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
        and module.dropout == 0
    )


def _known(block: nn.Module) -> bool:
    """A block of open_clip's plain transformer that is computed by nothing but its own class."""
    kinds: list[Any] = [kind for kind in type(block).__mro__ if (kind.__module__, kind.__name__) == _BLOCK]
    return bool(kinds) and type(block).forward is kinds[0].forward and _free(block)


def _last_block(tower: nn.Module, *, image: bool) -> Any:  # noqa: ANN401
    """The last block of a tower that pools one token behind it; None where that is not so, or not known."""
    if image and not (getattr(tower, "pool_type", "") == "tok" and getattr(tower, "attn_pool", tower) is None and not tower.output_tokens):
        return None
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return None
    return blocks[-1] if _known(blocks[-1]) else None


def attend(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    written_out: bool,
) -> tuple[Tensor, Tensor | None]:
    """What `module` computes, without turning its input to [L, B, D] and back.

    torch turns batches, so that neighbouring rows of every matrix lie far apart in memory, projects them there (frozen weights in bfloat16
    by one product for each position, each with a copy of the weight), and writes attention out in float32. Here rows stay where
    they are, the projection is one product, and attention that is written out computes in the format of the tower: in bfloat16 its logits
    are rounded too, which fused kernels keep in float32.

    Args:
        module: its weights; those of `_plain`.
        query: [B, L, D].
        key: [B, S, D].
        value: the same tensor as `key`; other cases are left to the module, as are weights that are asked for and padding masks.
        key_padding_mask: see `nn.MultiheadAttention`, as for all that follow.
        need_weights: see there.
        attn_mask: [L, S], [B * heads, L, S], or what broadcasts to [B, heads, L, S].
        average_attn_weights: see there.
        is_causal: see there.
        written_out: two matrix products and a softmax; otherwise the kernel that torch picks.
    """
    if key is not value or query.ndim != 3 or need_weights or key_padding_mask is not None or is_causal:
        torchs: Any = type(module).forward
        out: tuple[Tensor, Tensor | None] = torchs(
            module, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )
        return out
    q, k, v = _projected(module, query, key)
    mask = None if attn_mask is None else _additive(attn_mask, q)
    mixed = _written_out(q, k, v, mask) if written_out else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return module.out_proj(mixed.transpose(1, 2).flatten(2)), None


def _projected(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values [B, heads, L or S, D / heads]."""
    weight, bias, size = module.in_proj_weight, module.in_proj_bias, module.embed_dim

    def heads(given: Tensor, rows: slice, count: int) -> tuple[Tensor, ...]:
        out = F.linear(given, weight[rows], None if bias is None else bias[rows])
        return out.view(*given.shape[:2], count, module.num_heads, module.head_dim).permute(2, 0, 3, 1, 4).unbind()

    if query is key:
        return heads(query, slice(None), 3)
    return *heads(query, slice(size), 1), *heads(key, slice(size, None), 2)


def _additive(mask: Tensor, q: Tensor) -> Tensor:
    """A mask of torch's kinds (True: not seen) as numbers to add to [B, heads, L, S]."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, -torch.inf)
    return (mask.view(-1, q.shape[1], *mask.shape[1:]) if mask.ndim == 3 else mask).to(q.dtype)


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d) + mask) v [B, heads, L, d]."""
    added = q.new_zeros(1, 1, 1) if mask is None else mask
    if added.ndim == 4:
        added = added.expand(*q.shape[:3], k.shape[2]).flatten(0, 1)
    beta, alpha = 0 if mask is None else 1, q.shape[-1] ** -0.5
    logits = torch.baddbmm(added, q.flatten(0, 1), k.flatten(0, 1).mT, beta=beta, alpha=alpha)
    return logits.softmax(dim=-1).view(*q.shape[:3], k.shape[2]).to(v.dtype) @ v


def _block(
    block: Any,  # noqa: ANN401
    written_out: bool | None,
    read: Tensor | str | None,
    q_x: Tensor,
    k_x: Tensor | None = None,
    v_x: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """What `block` computes of tokens q_x [B, L, D] and a mask [L, L], for the tokens that are read.

    Args:
        block: open_clip's ResidualAttentionBlock, without cross-attention.
        written_out: as for `attend`; None for the module's own attention.
        read: `_ALL`; None for the first token, the result is [B, 1, D]; or the place [B] of one in each row, which stands in the place of
            every token of the result [B, L, D].
        q_x: tokens.
        k_x: not used; open_clip passes it on.
        v_x: not used.
        attn_mask: of a text tower.
    """
    normed = block.ln_1(q_x)
    kept, query, mask = q_x, normed, attn_mask
    if read is None:
        kept, query = q_x[:, :1], normed[:, :1]
    elif isinstance(read, Tensor):
        row = torch.arange(len(q_x), device=q_x.device)
        kept, query = q_x[row, read][:, None], normed[row, read][:, None]
        mask = None if mask is None else mask[read][:, None, None]  # what each sees, [B, 1, 1, S]
    if written_out is None:
        mixed = block.attention(q_x=query, k_x=normed, v_x=normed, attn_mask=mask)
    else:
        mixed = attend(block.attn, query, normed, normed, need_weights=False, attn_mask=mask, written_out=written_out)[0]
    x: Tensor = kept + block.ls_1(mixed)
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x.expand(-1, q_x.shape[1], -1) if isinstance(read, Tensor) else x


def _again(
    forward: Any,  # noqa: ANN401
    q_x: Tensor,
    k_x: Tensor | None = None,
    v_x: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """The same, keeping nothing for the backward pass but what goes in."""
    out: Tensor = checkpoint(forward, q_x, k_x, v_x, attn_mask, use_reentrant=False)
    return out
