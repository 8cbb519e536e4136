"""What a strategy adds to a backbone: LoRA, adapters, prompts, noise; and, in the head's place, an MLP.

The backbones know nothing of it. `added` intercepts the calls of their modules (`flax.linen.intercept_methods`, as
gemma's `peft` does), and what is new becomes parameters of the module that it acts on: `backbone/block_0/attention/
qkv/lora_a`. So a pretrained parameter's path is the same with additions and without. Regexes are of whole module
paths below `backbone/`.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from tljax.errors import InputError
from tljax.models import ops
from tljax.models.bit import BiT
from tljax.models.resnet import Conv, ResNet
from tljax.models.transformer import Dense
from tljax.models.vit import ViT

# torch's Kaiming-uniform with a = sqrt(5): between -1/sqrt(inputs) and 1/sqrt(inputs).
_kaiming = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_zeros = nn.initializers.zeros
_ADDED = {"lora_a", "lora_b", "adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias", "prompt"}


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (2106.09685): `y = layer(x) + scale * (dropout(x) @ lora_a) @ lora_b`.

    `lora_a` [inputs, rank] starts Kaiming-uniform (a = sqrt 5), `lora_b` [rank, outputs] at zero, as in Microsoft's
    loralib and Hugging Face's peft. Adapts dense layers and 1x1 convolutions (of the pixels that a stride keeps).

    Attributes:
        rank: r, the width in the middle.
        alpha: the scale is `alpha / rank`.
        dropout: the share of the adapter's inputs that noise silences.
        rslora: whether the scale is `alpha / sqrt(rank)` instead (2312.03732).
        targets: regexes of the layers; () is the backbone's own choice, `lora_targets`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ()

    def __post_init__(self):
        _check_size("lora.rank", self.rank)
        _check_rate("lora.dropout", self.dropout)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @contextlib.contextmanager
    def on(self, backbone: nn.Module, noisy: Collection[str] = ()) -> Iterator[None]:
        """Adapts the layers that are called inside, which must be the whole backbone's.

        Raises:
            InputError: a target matches none of them, or the convolutions are weight-standardised.
        """
        if isinstance(backbone, BiT):
            raise InputError(
                "no LoRA on BiT: its convolutions standardise their weights, so that adapters could not be merged"
            )
        targets = self.targets or backbone.lora_targets
        layers = []

        def act(module, call, x, *rest):
            y, path = call(x, *rest), _path(module)
            if not _is_linear(module):
                return y
            layers.append(path)
            if not any(re.fullmatch(target, path) for target in targets):
                return y
            rate = self.dropout if _group(module) in noisy else 0.0
            return y + self._low_rank(module, x, y.shape[-1], rate)

        with _at(".*", act):
            yield
        for target in targets:
            if not any(re.fullmatch(target, path) for path in layers):
                some = ", ".join(layers[:: max(1, len(layers) // 4)][:4]) or "none"
                raise InputError(f"lora.targets: {target!r} matches no layer that LoRA can adapt; there are: {some}")

    def _low_rank(self, module, x, outputs, rate):
        if isinstance(module, Conv):
            x = x[:, :: module.stride, :: module.stride]
        a = module.param("lora_a", _kaiming, (x.shape[-1], self.rank))
        b = module.param("lora_b", _zeros, (self.rank, outputs))
        return self.scale * ops.linear(ops.linear(_dropped(module, x, rate), a), b)


@dataclass(frozen=True)
class Adapter:
    """A bottleneck on a residual branch, before the branch is added; `adapter_up` starts at zero, so it adds nothing.

    Houlsby's (1902.00751), after attention and after the MLP: `y + scale * up(gelu(down(y)))`; on a ResNet over the
    channels of each branch's last layer. AdaptFormer's (2205.13535), beside the MLP and nothing else:
    `mlp(x) + scale * up(relu(down(x)))`, `x` normalised as the MLP's. LayerScale, where there is one, comes after.
    `adapter_down` starts as AdaptFormer's, Kaiming-uniform; Houlsby's own starts at a standard deviation of 1e-3.

    Attributes:
        bottleneck: the width in the middle.
        parallel: False for Houlsby's, True for AdaptFormer's.
        scale: 1 for Houlsby's; AdaptFormer uses 0.1.
    """

    bottleneck: int = 64
    parallel: bool = False
    scale: float = 1.0

    def __post_init__(self):
        _check_size("adapter.bottleneck", self.bottleneck)

    def on(self, backbone: nn.Module, noisy: Collection[str] = ()) -> contextlib.AbstractContextManager[None]:
        """Adapts the branches that are called inside.

        Raises:
            InputError: AdaptFormer's on a backbone without an MLP.
        """
        del noisy
        if not self.parallel:
            return _at(backbone.branches, self._after)
        _refuse_resnets(backbone, "adapter.parallel goes beside the MLP of a transformer's block")
        return _at(r"block_\d+/mlp", self._beside)

    def _after(self, module, call, *args):
        y = call(*args)
        return y + self._bottleneck(module, y, ops.gelu)

    def _beside(self, module, call, x):
        return call(x) + self._bottleneck(module, x, nn.relu)

    def _bottleneck(self, module, x, activation):
        width = x.shape[-1]
        down = module.param("adapter_down", _kaiming, (width, self.bottleneck))
        down_bias = module.param("adapter_down_bias", _zeros, (self.bottleneck,))
        up = module.param("adapter_up", _zeros, (self.bottleneck, width))
        up_bias = module.param("adapter_up_bias", _zeros, (width,))
        return self.scale * ops.linear(activation(ops.linear(x, down, down_bias)), up, up_bias)


@dataclass(frozen=True)
class Prompt:
    """Learned tokens after the first token (VPT, 2203.12119); in a text they are attended to like any word.

    Shallow prompts go in before `block_0` and are taken out after the last block, so what groups in between give
    holds them. Deep ones are new before each block and out after it. For images they start uniform within
    ±sqrt(6 / (3 * patch_size² + width)), as VPT's do; for text normal with standard deviation 0.02.

    Attributes:
        tokens: how many; a block's leaf `prompt` is [tokens, width].
        deep: whether every block has its own.
    """

    tokens: int = 10
    deep: bool = False

    def __post_init__(self):
        _check_size("prompt.tokens", self.tokens)

    def on(self, backbone: nn.Module, noisy: Collection[str] = ()) -> contextlib.AbstractContextManager[None]:
        """Puts prompts before the blocks that are called inside.

        Raises:
            InputError: a backbone without tokens.
        """
        del noisy
        _refuse_resnets(backbone, "prompts are tokens of a transformer")
        blocks = _blocks(backbone)
        init = _prompt_init(backbone)

        def act(module, call, x):
            if self.deep or _path(module) == blocks[0]:
                x = _with_prompt(x, module.param("prompt", init, (self.tokens, backbone.width)))
            x = call(x)
            return _without_prompt(x, self.tokens) if self.deep or _path(module) == blocks[-1] else x

        return _at(r"block_\d+", act)


@dataclass(frozen=True)
class MlpHead:
    """A head of two layers, `head/hidden` and, after GELU, `head/out`, in place of `head`.

    Attributes:
        hidden: units between them.
    """

    hidden: int = 512

    def __post_init__(self):
        _check_size("mlp_head.hidden", self.hidden)


Addition = Lora | Adapter | Prompt | MlpHead
ADDITIONS: dict[str, type] = {"lora": Lora, "adapter": Adapter, "prompt": Prompt, "mlp_head": MlpHead}


def is_added(path: str) -> bool:
    """Whether a parameter's path (`…/qkv/lora_a`) is one that `Lora`, `Adapter` or `Prompt` made."""
    return path.rsplit("/", 1)[-1] in _ADDED


@contextlib.contextmanager
def added(
    backbone: nn.Module,
    additions: tuple[Addition, ...],
    *,
    noisy: Collection[str] = (),
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Iterator[None]:
    """Every call of `backbone` inside has the additions and, in the groups `noisy`, dropout and stochastic depth.

    Both act on what `backbone.branches` give, after adapters and before LayerScale and the sum. Dropout as BERT's
    (1810.04805) hidden dropout; stochastic depth (1603.09382) silences a branch for a whole example, in block i of n
    at the rate `drop_path * i / (n - 1)` as timm does. What stays is scaled up by 1 / (1 - rate).

    Raises:
        InputError: two additions of one kind, a rate outside [0, 1), or an addition that the backbone cannot take.
    """
    kinds = [type(addition) for addition in additions]
    for name, kind in ADDITIONS.items():
        if kinds.count(kind) > 1:
            raise InputError(f"{name} twice among the additions: their parameters would have the same names")
    _check_rate("dropout", dropout)
    _check_rate("drop_path", drop_path)
    with contextlib.ExitStack() as stack:
        if noisy and (dropout or drop_path):  # entered first, so that it acts last
            stack.enter_context(_noise(backbone, noisy, dropout, drop_path))
        for addition in additions:
            if not isinstance(addition, MlpHead):
                stack.enter_context(addition.on(backbone, noisy))
        yield


def merge_lora(params: Mapping[str, Any], additions: tuple[Addition, ...]) -> dict[str, Any]:
    """A classifier's `params` with every LoRA pair folded into its kernel, `W + scale * A @ B`, and gone.

    The sum is taken in float32 and rounded to the kernel's own dtype.

    Raises:
        InputError: there are pairs, and the additions have no `Lora` to scale them by.
    """
    leaves = flatten_dict(params, sep="/")
    layers = [path.removesuffix("/lora_a") for path in leaves if path.endswith("/lora_a")]
    scale = next((addition.scale for addition in additions if isinstance(addition, Lora)), None)
    if layers and scale is None:
        raise InputError(f"{layers[0]} has LoRA parameters, but lora is not among the additions")
    for layer in layers:
        a, b = (leaves.pop(f"{layer}/{name}").astype(jnp.float32) for name in ("lora_a", "lora_b"))
        kernel = leaves[f"{layer}/kernel"]
        change = scale * jnp.matmul(a, b, precision="highest").reshape(kernel.shape)
        leaves[f"{layer}/kernel"] = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
    return unflatten_dict(leaves, sep="/")


def drop(key: jax.Array, x: jax.Array, rate: float, shape: tuple[int, ...] | None = None) -> jax.Array:
    """`x` with a share `rate` of the entries of `shape` (by default its own) silenced, and the rest scaled up."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def _at(pattern: str, act: Callable) -> contextlib.AbstractContextManager[None]:
    """Has `act(module, call, *args)` answer for the modules at paths like `pattern`; `call` is their own `__call__`."""
    regex = re.compile(pattern)

    def intercept(call, args, kwargs, context):
        if context.method_name != "__call__" or not regex.fullmatch(_path(context.module)):
            return call(*args, **kwargs)
        return act(context.module, functools.partial(call, **kwargs), *args)

    return nn.intercept_methods(intercept)


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

    return _at(backbone.branches, act)


def _prompt_init(backbone):
    if not isinstance(backbone, ViT):
        return nn.initializers.normal(0.02)
    limit = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.width))
    return lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def _after_first(x, prompt):
    """`prompt` [tokens, …] put into each row of `x` [batch, length, …]."""
    return jnp.concatenate([x[:, :1], jnp.broadcast_to(prompt, (len(x), *prompt.shape)), x[:, 1:]], axis=1)


def _with_prompt(x, prompt):
    if not isinstance(x, Mapping):
        return _after_first(x, prompt)
    ones = jnp.ones(len(prompt), x["attention_mask"].dtype)
    return {"hidden": _after_first(x["hidden"], prompt), "attention_mask": _after_first(x["attention_mask"], ones)}


def _without_prompt(x, tokens):
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf[:, :1], leaf[:, 1 + tokens :]], axis=1), x)


def _refuse_resnets(backbone, why: str):
    if isinstance(backbone, ResNet | BiT):
        raise InputError(f"{why}, and a {type(backbone).__name__} has none")


def _check_size(name: str, value: int):
    if value < 1:
        raise InputError(f"{name} must be at least 1, not {value}")


def _check_rate(name: str, value: float):
    if not 0 <= value < 1:
        raise InputError(f"{name} must be at least 0 and below 1, not {value}")
