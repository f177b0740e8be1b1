"""How open_clip's towers compute under Surefoot: attention without detours, of the last block only what is read, texts as trees.

All are exact: the same features and gradients up to rounding. They hold for one forward pass; the modules are as before afterwards.
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

from surefoot.prefixes import Trees

_whole: ContextVar[bool] = ContextVar("whole", default=False)
_ALL = "all"
_BLOCK = ("open_clip.transformer", "ResidualAttentionBlock")
_STACK = ("open_clip.transformer", "Transformer")


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Let the last block of a tower compute every token while this is open, for whoever reads more than the pooled one."""
    before = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(before)


@contextlib.contextmanager
def quickly(tower: nn.Module, kernel: str, texts: Trees | Tensor | None = None) -> Iterator[None]:
    """Compute a forward pass of `tower` without what its result does not need, while this is open.

    Every plain `nn.MultiheadAttention` computes as `attend` does. The last block of open_clip's plain transformers computes only the
    tokens that are pooled, as no other is read behind it: query, MLP and sums. Blocks whose activations are
    computed again in the backward pass are computed so both times. Modules with a `forward` of their own are left as they are.

    Args:
        tower: open_clip's, or a part of it.
        kernel: of attention, "math" or "fused".
        texts: of a causal text tower, the place [B] of the token that it pools in each row; or the trees that it is given in place of rows,
            if it `grows`: the result has a row for each text. None for all other towers: image towers say what they pool.
    """
    written_out = kernel == "math"
    modules = _modules(tower)
    attentions: dict[int, Any] = {id(module): module for module in modules if _plain(module)}
    last = None if _whole.get() else _last_block(tower, image=texts is None)
    with contextlib.ExitStack() as stack:
        for module in modules:
            if "forward" in module.__dict__ and _free(module):
                stack.enter_context(_without(module, "forward"))  # that of a pass around this one
        for transformer in [m for m in modules if torch.is_grad_enabled() and getattr(m, "grad_checkpointing", False)]:
            blocks: list[Any] = list(getattr(transformer, "resblocks", []))
            if blocks and all(_known(block) and id(block.attn) in attentions for block in blocks):
                stack.enter_context(_with(transformer, "grad_checkpointing", False))
                for block in blocks:
                    forward = functools.partial(_block, block, written_out, texts if block is last else _ALL)
                    stack.enter_context(_with(block, "forward", functools.partial(_again, forward)))
            for module in transformer.modules():
                attentions.pop(id(module), None)
        for module in attentions.values():
            stack.enter_context(_with(module, "forward", functools.partial(attend, module, written_out=written_out)))
        if last is not None and id(last.attn) in attentions:
            stack.enter_context(_with(last, "forward", functools.partial(_block, last, None, texts)))
        if isinstance(texts, Trees):
            stack.enter_context(_planted(tower, texts))
        yield


def grows(tower: nn.Module) -> bool:
    """Whether a causal text tower takes texts as trees: it is computed by open_clip's code alone, of each row by itself, seen by nobody.

    What has a hook is left alone, as that would see trees where it expects texts; but for those of FSDP, and those with an attribute
    `only_notes`, which do not care. So are towers that draw random numbers for each row, and tables that do not lie here whole.
    """
    stack, table = getattr(tower, "transformer", None), tower._parameters.get("positional_embedding")
    blocks = _blocks(tower)
    return (
        not _whole.get()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and _is(stack, _STACK)
        and len(blocks) > 0
        and all(_known(block) and _plain(block.attn) for block in blocks)
        and all(_by_row(module) and not _watched(module) for module in _modules(tower))
        and table is not None
        and not hasattr(table, "placements")  # it may lie in several processes
        and "attn_mask" in tower._buffers
    )


def _by_row(module: nn.Module) -> bool:
    """Whether a module computes every token by itself, and the same wherever it stands."""
    if module.training and isinstance(module, nn.RReLU | nn.modules.dropout._DropoutNd | nn.modules.batchnorm._NormBase):
        return getattr(module, "p", 1) == 0
    return type(module).__module__.partition(".")[0] in ("torch", "open_clip", "surefoot") and _free(module)


def _watched(module: nn.Module) -> bool:
    """Whether a module has hooks that may change or expect something."""
    kinds: Any = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    hooks = [hook for kind in kinds for hook in kind.values() if not hasattr(hook, "only_notes")]
    return any(not str(getattr(hook, "__module__", "")).startswith("torch.distributed.") for hook in hooks)


@contextlib.contextmanager
def shortened(tower: nn.Module, length: int) -> Iterator[None]:
    """Let a causal text tower take `length` positions: its mask and, of open_clip.CLIP, its table of positions are sliced for the call."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_with(tower, "attn_mask", _own(tower, "attn_mask")[:length, :length]))
        if "visual" in tower._modules:
            stack.enter_context(_with(tower, "positional_embedding", _own(tower, "positional_embedding")[:length]))
        else:  # the others slice their table themselves
            stack.enter_context(_without(tower, "positional_embedding"))
        yield


@contextlib.contextmanager
def _planted(tower: Any, texts: Trees) -> Iterator[None]:  # noqa: ANN401
    """Let a causal text tower take trees: each node at its position, seeing what it grew from."""
    mask, count = _own(tower, "attn_mask"), texts.place.shape[1]
    seen = mask[texts.place[:, :, None], texts.place[:, None, :]].masked_fill(~texts.sees, -torch.inf)[:, None]
    stack = tower.transformer
    with (
        _with(tower, "attn_mask", seen),
        _with(tower, "positional_embedding", _own(tower, "positional_embedding")[texts.place.flatten()]),
        _with(stack, "forward", functools.partial(_in_trees, stack, count)),
    ):
        yield


def _in_trees(stack: Any, count: int, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # noqa: ANN401
    """What the blocks compute of nodes [1, G * count, D], as trees [G, count, D]."""
    out: Tensor = type(stack).forward(stack, x.view(-1, count, x.shape[-1]), attn_mask=attn_mask)
    return out


def _own(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a module, whatever a pass around this one has put before it."""
    found = module._parameters.get(name, module._buffers.get(name))
    return getattr(module, name) if found is None else found


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


@contextlib.contextmanager
def _without(module: nn.Module, name: str) -> Iterator[None]:
    """No such attribute of the module itself while this is open; what was there comes back."""
    if name not in module.__dict__:
        yield
        return
    before = module.__dict__.pop(name)
    try:
        yield
    finally:
        module.__dict__[name] = before


def _modules(tower: nn.Module) -> list[nn.Module]:
    """All modules of a tower; of open_clip.CLIP, which holds the parts of its text tower itself, those alone."""
    other = {id(module) for module in tower.get_submodule("visual").modules()} if "visual" in tower._modules else set()
    return [module for module in tower.modules() if id(module) not in other]


def _free(module: nn.Module) -> bool:
    """Whether a module computes by its class, or by this file in a pass around this one."""
    forward = module.__dict__.get("forward")
    return forward is None or (isinstance(forward, functools.partial) and forward.func in (attend, _block, _again, _in_trees))


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


def _is(module: Any, name: tuple[str, str]) -> bool:  # noqa: ANN401
    """Whether a module computes by the class of that file and name, and by nothing else."""
    kinds: list[Any] = [kind for kind in type(module).__mro__ if (kind.__module__, kind.__name__) == name]
    return bool(kinds) and type(module).forward is kinds[0].forward and _free(module)


def _known(block: nn.Module) -> bool:
    """A block of open_clip's plain transformer that is computed by nothing but its own class."""
    return _is(block, _BLOCK)


def _blocks(tower: nn.Module) -> list[Any]:
    """The blocks of a tower; none where they are not held as open_clip's transformers hold them."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def _last_block(tower: nn.Module, *, image: bool) -> Any:  # noqa: ANN401
    """The last block of a tower that pools one token behind it; None where that is not so, or not known."""
    if image and not (getattr(tower, "pool_type", "") == "tok" and getattr(tower, "attn_pool", tower) is None and not tower.output_tokens):
        return None
    return last if (blocks := _blocks(tower)) and _known(last := blocks[-1]) else None


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
    are rounded too, which fused kernels keep in float32, and so does a single query, which is projected to the tokens.

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
    if query.shape[1] == 1:
        return module.out_proj(_of_one(module, query, key, attn_mask)), None
    q, k, v = _projected(module, query, key)
    mask = None if attn_mask is None else _additive(attn_mask, q.shape[1], q.dtype)
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


def _of_one(module: nn.MultiheadAttention, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [B, 1, D] of one query [B, 1, D] over [B, S, D], before `out_proj`, without keys and values of all these.

    q_h . (W_h x + b_h) is (W_h^T q_h) . x + q_h . b_h, whose last part is the same for every x and leaves softmax as it is; and the mean of
    W_h x + b_h is W_h times the mean, plus b_h. So each row asks for two projections of single tokens in place of two of all S.
    """
    count, size = module.num_heads, module.head_dim
    of_q, of_k, of_v = module.in_proj_weight.reshape(3, count, size, -1)  # each [heads, d, D]
    bias = module.in_proj_bias
    b_q, _, b_v = (None, None, None) if bias is None else bias.reshape(3, count, size)
    with torch.autocast(query.device.type, enabled=False):  # so little that it need not be rounded
        query, key = query.to(of_q.dtype), key.to(of_q.dtype)
        q = torch.einsum("hed,bd->hbe", of_q, query[:, 0])
        q = q if b_q is None else q + b_q[:, None]
        asked = (size**-0.5 * q @ of_k).transpose(0, 1)  # [B, heads, D]
        logits = asked @ key.mT
        if mask is not None:
            logits = logits + _additive(mask, count, logits.dtype).squeeze(-2)
        mean = logits.softmax(dim=-1) @ key  # [B, heads, D]
        mixed = torch.einsum("hed,bhd->bhe", of_v, mean)
        return (mixed if b_v is None else mixed + b_v).flatten(1)[:, None]


def _additive(mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """A mask of torch's kinds (True: not seen) as numbers to add to [B, heads, L, S]."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
    return (mask.view(-1, heads, *mask.shape[1:]) if mask.ndim == 3 else mask).to(dtype)


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
    read: Trees | Tensor | str | None,
    q_x: Tensor,
    k_x: Tensor | None = None,
    v_x: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """What `block` computes of tokens q_x [B, L, D] and a mask, for the tokens that are read.

    Args:
        block: open_clip's ResidualAttentionBlock, without cross-attention.
        written_out: as for `attend`; None for the module's own attention.
        read: `_ALL`; None for the first token of each row, the result is [B, 1, D]; the place [B] of one in each row, which stands in the
            place of every token of the result [B, L, D]; or the trees that q_x holds, for the ends of their texts, the result is [T, 1, D].
        q_x: tokens.
        k_x: not used; open_clip passes it on.
        v_x: not used.
        attn_mask: of a text tower, [L, L]; of trees [B, 1, L, L].
    """
    normed = block.ln_1(q_x)
    kept, query, mask = q_x, normed, attn_mask
    if read is None:
        kept, query = q_x[:, :1], normed[:, :1]
    elif isinstance(read, Trees | Tensor):
        row, ends = torch.arange(len(q_x), device=q_x.device)[:, None], read.ends if isinstance(read, Trees) else read[:, None]
        kept, query = q_x[row, ends], normed[row, ends]
        if mask is not None:  # what each sees, [B, 1, E, L]
            mask = (mask[:, 0][row, ends] if isinstance(read, Trees) else mask[ends])[:, None]
    if written_out is None:
        mixed = block.attention(q_x=query, k_x=normed, v_x=normed, attn_mask=mask)
    else:
        mixed = attend(block.attn, query, normed, normed, need_weights=False, attn_mask=mask, written_out=written_out)[0]
    x: Tensor = kept + block.ls_1(mixed)
    if isinstance(read, Trees):
        x = x.flatten(0, 1)[read.row][:, None]
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
