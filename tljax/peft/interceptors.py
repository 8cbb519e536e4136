"""LoRA, adapters, prompts and noise in a backbone's forward pass.

The backbones know nothing of it. `apply_adapters` intercepts the calls of their modules
(`flax.linen.intercept_methods`, as gemma's `peft` does), and what is new becomes parameters of the module that it acts
on: `backbone/block_0/attention/qkv/lora_a`. So a pretrained parameter's path is the same with adapters and without.
Regexes are of whole module paths below `backbone/`.
"""

import contextlib
import difflib
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.errors import InputError
from tljax.models import remat
from tljax.models.base import Backbone
from tljax.models.convolution import Conv
from tljax.models.kernels import ops
from tljax.models.layers import Dense
from tljax.peft.config import ADAPTERS, Adapter, AdapterConfig, Lora, MlpHead, Prompt

# torch's Kaiming-uniform with a = sqrt(5): between -1/sqrt(inputs) and 1/sqrt(inputs).
_kaiming = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_zeros = nn.initializers.zeros
_PARTS_OF_QKV = ("query", "key", "value", "q_proj", "k_proj", "v_proj")  # as other libraries have them


@contextlib.contextmanager
def _lora(lora: Lora, backbone: Backbone, noisy: Collection[str], whole: bool) -> Iterator[None]:
    """Adapts the layers that are called inside.

    Raises:
        InputError: they are the whole backbone's and a target matches none of them, or the convolutions are
            weight-standardized.
    """
    if backbone.standardizes_weights:
        raise InputError(
            f"no LoRA on {type(backbone).__name__}: it standardizes its weights, so that adapters could not be merged"
        )
    targets = lora.targets or backbone.adapter_targets
    layers: list[str] = []
    sides: dict[str, tuple[int, int]] = {}  # of the kernels that are adapted

    def act(module, call, x, *rest):
        y, path = call(x, *rest), _path(module)
        if not _is_linear(module):
            return y
        layers.append(path)
        if not any(re.fullmatch(target, path) for target in targets):
            return y
        sides[path] = x.shape[-1], y.shape[-1]
        rate = lora.dropout if _group(module) in noisy else 0.0
        return y + _low_rank(lora, module, x, y.shape[-1], rate)

    with _at(".*", act):
        yield
    for target in targets:
        if whole and not any(re.fullmatch(target, path) for path in layers):
            raise InputError(_no_layer(target, layers))
    if sides and lora.rank > min(map(min, sides.values())):
        path = min(sides, key=lambda path: min(sides[path]))
        across, down = sides[path]
        raise InputError(
            f"tuning.rank={lora.rank} is larger than the smaller side of the {path} kernel ({across} x {down}):"
            f" give 1 to {min(across, down)}"
        )


def _no_layer(target: str, layers: Sequence[str]) -> str:
    """Says that LoRA's target is no layer: the nearest name, or a few of those that there are."""
    examples = ", ".join(layers[:: max(1, len(layers) // 4)][:4]) or "none"
    names = sorted({layer.rsplit("/", 1)[-1] for layer in layers})
    parts = _PARTS_OF_QKV if "qkv" in names else ()
    near = next(iter(difflib.get_close_matches(target.rsplit("/", 1)[-1], [*names, *parts], n=1)), "")
    meant = f"'.*/qkv', of which {near} is a part here" if near in parts else f"'.*/{near}'"
    hint = f" (did you mean {meant}?)" if near else ""
    return f"tuning.targets: {target!r} matches no layer that LoRA can adapt{hint}; there are: {examples}"


def _low_rank(lora, module, x, outputs, rate):
    if isinstance(module, Conv):
        x = x[:, :: module.stride, :: module.stride]
    a = module.param("lora_a", _kaiming, (x.shape[-1], lora.rank))
    b = module.param("lora_b", _zeros, (lora.rank, outputs))
    return lora.scale * ops.linear(ops.linear(_dropped(module, x, rate), a), b)


def _adapter(
    adapter: Adapter, backbone: Backbone, noisy: Collection[str], whole: bool
) -> contextlib.AbstractContextManager[None]:
    """Adapts the branches that are called inside.

    Raises:
        InputError: AdaptFormer's on a backbone without an MLP.
    """
    del noisy, whole
    if not adapter.parallel:
        return _at(backbone.residual_branches, functools.partial(_after, adapter))
    if not backbone.mlp_branches:
        name = type(backbone).__name__
        raise InputError(f"tuning.parallel goes beside the MLP of a transformer's block, and a {name} has none")
    return _at(backbone.mlp_branches, functools.partial(_beside, adapter))


def _after(adapter, module, call, *args):
    y = call(*args)
    return y + _bottleneck(adapter, module, y, ops.gelu)


def _beside(adapter, module, call, x):
    return call(x) + _bottleneck(adapter, module, x, nn.relu)


def _bottleneck(adapter, module, x, activation):
    width = x.shape[-1]
    down = module.param("adapter_down", _kaiming, (width, adapter.bottleneck))
    down_bias = module.param("adapter_down_bias", _zeros, (adapter.bottleneck,))
    up = module.param("adapter_up", _zeros, (adapter.bottleneck, width))
    up_bias = module.param("adapter_up_bias", _zeros, (width,))
    return adapter.scale * ops.linear(activation(ops.linear(x, down, down_bias)), up, up_bias)


def _prompt(
    prompt: Prompt, backbone: Backbone, noisy: Collection[str], whole: bool
) -> contextlib.AbstractContextManager[None]:
    """Puts prompts before the blocks that are called inside.

    Raises:
        InputError: a backbone without tokens.
    """
    del noisy, whole
    if not backbone.prompt_width:
        raise InputError(f"prompts are tokens of a transformer, and a {type(backbone).__name__} has none")
    blocks = _blocks(backbone)
    shape = prompt.tokens, backbone.prompt_width

    def act(module, call, x, *rest):
        if prompt.deep or _path(module) == blocks[0]:
            x = _with_prompt(x, module.param("prompt", backbone.prompt_init, shape))
        x = call(x, *rest)
        return _without_prompt(x, prompt.tokens) if prompt.deep or _path(module) == blocks[-1] else x

    return _at(r"block_\d+", act)


_INTERCEPTORS = {Lora: _lora, Adapter: _adapter, Prompt: _prompt}


@contextlib.contextmanager
def apply_adapters(
    backbone: Backbone,
    adapters: tuple[AdapterConfig, ...],
    *,
    whole: bool = True,
    noisy: Collection[str] = (),
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Iterator[None]:
    """Gives every call of `backbone` inside the adapters and, in the groups `noisy`, dropout and stochastic depth.

    Noise acts on what `backbone.residual_branches` give, after adapters and before LayerScale and the sum. Dropout as
    BERT's (1810.04805) hidden dropout; stochastic depth (1603.09382) silences a branch for a whole example, in block i
    of n at the rate `drop_path * i / (n - 1)` as timm does. What stays is scaled up by 1 / (1 - rate).

    Args:
        backbone: the network.
        adapters: at most one of each kind; an `MlpHead` is nothing of the backbone's.
        whole: whether all groups are called, so that an adapter can tell whether it has a place at all.
        noisy: the groups with noise.
        dropout: the rate at which single outputs of branches are silenced.
        drop_path: the rate of stochastic depth in the last block.

    Raises:
        InputError: two adapters of one kind, or one that the backbone cannot take.
    """
    kinds = [type(adapter) for adapter in adapters]
    for name, kind in ADAPTERS.items():
        if kinds.count(kind) > 1:
            raise InputError(f"{name} twice among the adapters: their parameters would have the same names")
    with contextlib.ExitStack() as stack:
        if noisy and (dropout or drop_path):  # entered first, so that it acts last
            stack.enter_context(_noise(backbone, noisy, dropout, drop_path))
        for adapter in adapters:
            if not isinstance(adapter, MlpHead):
                stack.enter_context(_INTERCEPTORS[type(adapter)](adapter, backbone, noisy, whole))
        yield


def merge_lora(params: Mapping[str, Any], adapters: tuple[AdapterConfig, ...]) -> dict[str, Any]:
    """Returns a classifier's `params` with every LoRA pair folded into its kernel, `W + scale * A @ B`, and gone.

    The sum is taken in float32 and rounded to the kernel's own dtype.

    Raises:
        InputError: there are pairs, and the adapters have no `Lora` to scale them by.
    """
    leaves = flatten_dict(params, sep="/")
    layers = [path.removesuffix("/lora_a") for path in leaves if path.endswith("/lora_a")]
    scale = next((adapter.scale for adapter in adapters if isinstance(adapter, Lora)), None)
    if layers and scale is None:
        raise InputError(f"{layers[0]} has LoRA parameters, but lora is not among the adapters")
    for layer in layers:
        a, b = (leaves.pop(f"{layer}/{name}").astype(jnp.float32) for name in ("lora_a", "lora_b"))
        kernel = leaves[f"{layer}/kernel"]
        change = scale * jnp.matmul(a, b, precision="highest").reshape(kernel.shape)
        leaves[f"{layer}/kernel"] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return unflatten_dict(leaves, sep="/")


def drop(key: jax.Array, x: jax.Array, rate: float, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Returns `x` with a share of its entries silenced, and the rest scaled up.

    Args:
        key: the noise's.
        x: any array.
        rate: the share.
        shape: of what is drawn, which is broadcast to `x`; by default that of `x`.
    """
    keep_mask = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    return jnp.where(keep_mask, x / (1 - rate), jnp.zeros_like(x))


@contextlib.contextmanager
def _at(pattern: str, act: Callable) -> Iterator[None]:
    """Calls `act(module, call, *args)` for the modules at paths like `pattern`; `call` is their own `__call__`."""
    regex = re.compile(pattern)

    def intercept(call, args, kwargs, context):
        if context.method_name != "__call__" or not regex.fullmatch(_path(context.module)):
            return call(*args, **kwargs)
        return act(context.module, functools.partial(call, **kwargs), *args)

    with remat.trace_each_group(), nn.intercept_methods(intercept):
        yield


def _path(module: nn.Module) -> str:
    return "/".join(module.path).removeprefix("backbone/")


def _group(module: nn.Module) -> str:
    return _path(module).split("/")[0]


def _blocks(backbone: nn.Module) -> list[str]:
    return [group for group in backbone.groups if group.startswith("block_")]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, Dense) or (isinstance(module, Conv) and module.size == 1)


def _dropped(module: nn.Module, x, rate: float, shape=None):
    return drop(module.make_rng("dropout"), x, rate, shape) if rate else x


def _noise(backbone, noisy, dropout, drop_path):
    blocks = _blocks(backbone)
    rates = {block: drop_path * i / max(len(blocks) - 1, 1) for i, block in enumerate(blocks)}

    def act(module, call, *args):
        y, group = call(*args), _group(module)
        if group not in noisy:
            return y
        y = _dropped(module, y, dropout)
        return _dropped(module, y, rates[group], (len(y),) + (1,) * (y.ndim - 1))

    return _at(backbone.residual_branches, act)


def _after_first(x, prompt):
    """Returns `x` [batch, length, …] with `prompt` [tokens, …] after the first of each row."""
    return jnp.concatenate([x[:, :1], jnp.broadcast_to(prompt, (len(x), *prompt.shape)), x[:, 1:]], axis=1)


def _with_prompt(x, prompt):
    if not isinstance(x, Mapping):
        return _after_first(x, prompt)
    ones = jnp.ones(len(prompt), x["attention_mask"].dtype)
    tokens = {"hidden": _after_first(x["hidden"], prompt), "attention_mask": _after_first(x["attention_mask"], ones)}
    return {**x, **tokens}


def _without_prompt(x, tokens):
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf[:, :1], leaf[:, 1 + tokens :]], axis=1), x)
