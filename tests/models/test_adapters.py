"""LoRA, adapters, prompts, the MLP head and noise, against formulas written out and peft's own numbers."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.conftest import GOLDEN, golden
from tljax.core.classifier import Classifier
from tljax.errors import InputError
from tljax.models.base import Backbone
from tljax.models.kernels import ops
from tljax.models.layers import Dense
from tljax.models.registry import BACKBONES
from tljax.models.text.bert import Bert
from tljax.models.vision.bit import BiT
from tljax.models.vision.convnext import ConvNeXt
from tljax.models.vision.efficientnet import EfficientNet
from tljax.models.vision.mobilenetv3 import MobileNetV3
from tljax.models.vision.regnet import RegNet
from tljax.models.vision.resnet import ResNet
from tljax.models.vision.swin import Swin
from tljax.models.vision.vit import ViT
from tljax.peft.config import ADAPTERS, Adapter, Lora, MlpHead, Prompt, is_adapter_param
from tljax.peft.interceptors import apply_adapters, drop, merge_lora
from tljax.weights.readers import files

VIT = ViT(width=24, depth=3, heads=3, patch_size=8, grid=(2, 3))
BERT = Bert(width=24, depth=3, heads=3, vocabulary=50, positions=16)
RESNET = ResNet(depths=(1, 2), widths=(8, 16), stem_width=8)
BASIC = RESNET.clone(kind="basic")
BIT = BiT(depths=(1, 1), widths=(32, 32), stem_width=32)
MBCONV = EfficientNet(
    operators=("conv", "mbconv", "fused"),
    depths=(1, 2, 1),
    widths=(8, 8, 8),
    sizes=(3, 5, 3),
    strides=(1, 2, 1),
    expansions=(1, 4, 2),
    stem_width=8,
    head_width=16,
)
SWIN = Swin(width=8, depths=(2, 1), heads=(2, 4), window=2, grid=(4, 6))
CONVNEXT = ConvNeXt(depths=(1, 2), widths=(8, 16), response_norm=True)
TINY = {"swin": SWIN, "vit": VIT, "bert": BERT, "resnet": RESNET, "basic": BASIC, "bit": BIT, "efficientnet": MBCONV}
TINY |= {"convnext": CONVNEXT}
TRANSFORMERS = {"vit": VIT, "bert": BERT}
ADAPTED = {name: module for name, module in TINY.items() if name != "bit"}


def some_input(backbone):
    if backbone.input_spec.kind == "text":
        ids = jax.random.randint(jax.random.key(0), (2, 7), 1, 50)
        return {"input_ids": ids, "attention_mask": jnp.ones((2, 7), jnp.int32).at[1, 5:].set(0)}
    return jax.random.normal(jax.random.key(0), (2, 16, 24, 3))


@functools.cache
def some_variables(backbone, *adapters, scale: float = 0.2):
    """Every leaf drawn, so that nothing is zero by luck; variances positive. A leaf's path decides its values."""
    model = Classifier(backbone, 5, adapters=adapters)
    abstract = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), some_input(backbone)), sep="/")

    def draw(path, leaf):
        rng = np.random.default_rng(list(path.encode()))
        values = scale * rng.standard_normal(leaf.shape)
        return jnp.asarray(np.abs(values) + 0.5 if path.endswith(("var", "scale")) else values, jnp.float32)

    return unflatten_dict({path: draw(path, leaf) for path, leaf in abstract.items()}, sep="/")


def _logits(backbone, *adapters, params=None, **options):
    weights = some_variables(backbone, *adapters)
    weights = weights | ({"params": params} if params else {})
    return Classifier(backbone, 5, adapters=adapters).apply(weights, some_input(backbone), **options)


def _without(params):
    """The pretrained part, which has the same paths with adapters and without."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: leaf for path, leaf in flat.items() if not is_adapter_param(path)}, sep="/")


class _Peft(Backbone):
    """The network of the golden case."""

    adapter_targets = ("q_proj", "fc", "v_proj")

    @nn.compact
    def __call__(self, x):
        dense = {name: Dense(24, nn.initializers.zeros, name=f"{name}_proj") for name in "qkvo"}
        q, k, v = (dense[name](x).reshape(2, 6, 3, 8).transpose(0, 2, 1, 3) for name in "qkv")
        mixed = ops.attention(q, k, v).transpose(0, 2, 1, 3).reshape(2, 6, 24)
        return Dense(5, nn.initializers.zeros, name="fc")(jnp.mean(x + dense["o"](mixed), axis=1))


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_pefts(rslora):
    facts, io = golden("peft_lora")
    lora = Lora(facts["lora"]["r"], facts["lora"]["lora_alpha"], rslora=rslora)
    folder = GOLDEN / "peft_lora"
    params = {}
    for source in (files.read(folder / "weights.safetensors"), files.read(folder / "adapter_model.safetensors")):
        for name, array in source.items():
            layer, leaf, *_ = name.removeprefix("base_model.model.").split(".")
            leaf = {"weight": "kernel"}.get(leaf, leaf.lower())
            params[f"{layer}/{leaf}"] = jnp.asarray(np.asarray(array).T)
    params = unflatten_dict(params, sep="/")
    io = jax.tree.map(jnp.asarray, io)
    suffix = "_rslora" if rslora else ""
    model = _Peft()
    with apply_adapters(model, (lora,)):
        found = model.apply({"params": params}, io["x"])
        start = jax.tree_util.tree_map_with_path(lambda path, leaf: 0 * leaf if "lora_b" in str(path) else leaf, params)
        initial = model.apply({"params": start}, io["x"])
    np.testing.assert_allclose(found, io[f"y_lora{suffix}"], atol=1e-6)
    np.testing.assert_allclose(initial, io[f"y_lora_at_init{suffix}"], atol=1e-6)
    merged = merge_lora(params, (lora,))
    np.testing.assert_allclose(merged["q_proj"]["kernel"].T, io[f"q_proj_merged_weight{suffix}"], atol=1e-6)
    np.testing.assert_allclose(model.apply({"params": merged}, io["x"]), io[f"y_merged{suffix}"], atol=1e-6)
    assert np.abs(io["y_lora"] - io["y_lora_rslora"]).max() > 1e-3, "the other scale would pass"


def test_lora_starts_as_pefts_does():
    lora = Lora(rank=16)
    model = Classifier(VIT, 5, adapters=(lora,))
    params = jax.jit(model.init)(jax.random.key(0), some_input(VIT))["params"]["backbone"]
    layers = [params[f"block_{i}"]["attention"]["qkv"] for i in range(3)]
    a = np.stack([layer["lora_a"] for layer in layers])
    bound = 1 / np.sqrt(24)
    assert a.shape == (3, 24, 16)
    assert 0.97 * bound < np.abs(a).max() <= bound
    assert abs(np.std(a) - bound / np.sqrt(3)) < 0.01
    assert not any(np.any(layer["lora_b"]) for layer in layers)
    assert layers[0]["lora_b"].shape == (16, 72)
    assert not np.array_equal(a[0], a[1])


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        *((name, adapter) for name in ADAPTED for adapter in (Lora(rank=2), Adapter(3))),
        *((name, Adapter(3, parallel=True, scale=0.1)) for name in (*TRANSFORMERS, "convnext")),
        ("bit", Adapter(3)),
    ],
)
def test_a_new_addition_changes_nothing(name, adapter):
    backbone = TINY[name]
    model = Classifier(backbone, 5, "truncated_normal", adapters=(adapter,))
    new = jax.jit(model.init)(jax.random.key(0), some_input(backbone))
    plain = jax.jit(Classifier(backbone, 5, "truncated_normal").init)(jax.random.key(0), some_input(backbone))
    jax.tree.map(np.testing.assert_array_equal, _without(new["params"]), plain["params"])
    assert any(map(is_adapter_param, flatten_dict(new["params"], sep="/")))
    expected = Classifier(backbone, 5).apply(plain, some_input(backbone))
    assert np.any(expected)
    np.testing.assert_array_equal(model.apply(new, some_input(backbone)), expected)


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_give_the_logits_of_the_pair(name, rslora):
    backbone, lora = ADAPTED[name], Lora(rank=2, alpha=3.0, rslora=rslora)
    weights = some_variables(backbone, lora)
    merged = merge_lora(weights["params"], (lora,))
    assert not any(map(is_adapter_param, flatten_dict(merged, sep="/")))
    adapted, plain = _logits(backbone, lora), _logits(backbone)
    assert np.abs(adapted - plain).max() > 1e-3  # a hundred times what the two ways may differ by
    np.testing.assert_allclose(_logits(backbone, params=merged), adapted, atol=1e-5)


def test_lora_without_its_addition_cannot_be_merged():
    with pytest.raises(InputError, match=r"backbone/block_0/attention/qkv has LoRA parameters, but lora is not among"):
        merge_lora(some_variables(VIT, Lora(rank=2))["params"], (Adapter(),))


def test_merging_leaves_half_precision_as_it_is():
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), some_variables(VIT, Lora(rank=2))["params"])
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merge_lora(half, (Lora(rank=2),))))


def test_lora_goes_where_it_is_told():
    lora = Lora(rank=2, targets=(r"block_[02]/mlp/fc1", r"block_1/attention/.*"))
    found = {path for path in flatten_dict(some_variables(VIT, lora)["params"], sep="/") if path.endswith("lora_a")}
    layers = ("block_0/mlp/fc1", "block_2/mlp/fc1", "block_1/attention/qkv", "block_1/attention/out")
    assert found == {f"backbone/{layer}/lora_a" for layer in layers}


def test_loras_own_targets_are_joint_projections_and_1x1_convolutions_of_blocks():
    def layers(backbone):
        paths = flatten_dict(some_variables(backbone, Lora(rank=2))["params"], sep="/")
        return sorted(path.split("/", 1)[1].rsplit("/", 1)[0] for path in paths if path.endswith("lora_a"))

    assert layers(BERT) == [f"block_{i}/attention/qkv" for i in range(3)]
    ends = [f"block_{i}/conv{n}/conv" for i in range(3) for n in (1, 3)]
    assert layers(RESNET) == sorted([*ends, "block_0/downsample/conv", "block_1/downsample/conv"])
    assert layers(BASIC) == ["block_1/downsample/conv"]
    ends = [f"block_{i}/{end}/conv" for i in (1, 2) for end in ("expand", "project")]
    assert layers(MBCONV) == [*ends, "block_3/project/conv"]
    assert layers(TINY["convnext"]) == [f"block_{i}/mlp/fc{n}" for i in range(3) for n in (1, 2)]


@pytest.mark.parametrize(
    ("backbone", "adapter", "message"),
    [
        (VIT, Lora(targets=("block_0/atention/qkv",)), "'block_0/atention/qkv' matches no layer .* block_0/attention"),
        (RESNET, Lora(targets=(r".*/conv1/conv", r"block_0/conv2/conv")), r"conv2/conv' matches .* block_0/conv1/conv"),
        (BIT, Lora(), "no LoRA on BiT: it standardizes its weights"),
        (RESNET, Adapter(parallel=True), "beside the MLP of a transformer's block, and a ResNet has none"),
        (BIT, Adapter(parallel=True), "a BiT has none"),
        (RESNET, Prompt(), "prompts are tokens of a transformer, and a ResNet has none"),
        (BIT, Prompt(deep=True), "a BiT has none"),
        (SWIN, Prompt(), "prompts are tokens of a transformer, and a Swin has none"),
        (CONVNEXT, Prompt(), "a ConvNeXt has none"),
    ],
)
def test_what_a_backbone_cannot_take_is_refused(backbone, adapter, message):
    model = Classifier(backbone, 5, adapters=(adapter,))
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), some_input(backbone))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lora(rank=0), "tuning.rank must be at least 1, not 0"),
        (lambda: Lora(dropout=1.0), "tuning.dropout must be at least 0 and below 1, not 1.0"),
        (lambda: Adapter(bottleneck=0), "tuning.bottleneck"),
        (lambda: Prompt(tokens=0), "tuning.tokens"),
        (lambda: MlpHead(hidden=0), "tuning.hidden"),
        (lambda: _logits(VIT, Adapter(2), Adapter(3)), "adapter twice among the adapters"),
    ],
)
def test_sizes_and_rates_that_cannot_be_are_refused(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def _seen(backbone, variables, x, *adapters, rngs=None, **noise):
    """Module path -> its arguments, what it gave by itself, and what the adapters made of that, in one pass."""
    by_itself, in_all = {}, {}

    def record(seen):
        def intercept(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if context.method_name == "__call__":
                seen["/".join(context.module.path)] = args, y
            return y

        return nn.intercept_methods(intercept)

    with record(in_all), apply_adapters(backbone, adapters, **noise), record(by_itself):
        backbone.apply(variables, x, rngs=rngs)
    return {path: (*by_itself[path], in_all[path][1]) for path in in_all}


def _bare(backbone, *adapters):
    """The backbone's own variables."""
    return {kind: tree["backbone"] for kind, tree in some_variables(backbone, *adapters).items()}


def _bottleneck(leaves, x, activation):
    hidden = activation(x @ leaves["adapter_down"] + leaves["adapter_down_bias"])
    return hidden @ leaves["adapter_up"] + leaves["adapter_up_bias"]


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        *((name, f"block_1/{branch}") for name in TRANSFORMERS for branch in ("attention", "mlp")),
        *(("resnet", "block_1/conv3"), ("basic", "block_1/conv2"), ("bit", "block_1/conv3")),
        *(("efficientnet", "block_0/conv"), ("efficientnet", "block_3/project")),
    ],
)
def test_houlsbys_adapter_is_its_formula(name, branch):
    backbone, adapter = TINY[name], Adapter(3, scale=0.5)
    weights = _bare(backbone, adapter)
    _, y, found = _seen(backbone, weights, some_input(backbone), adapter)[branch]
    group, layer = branch.split("/")
    gelu = functools.partial(jax.nn.gelu, approximate=False)
    expected = y + 0.5 * _bottleneck(weights["params"][group][layer], y, gelu)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - y).max() > 1e-2


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_adaptformer_is_its_formula_and_leaves_attention_alone(name):
    backbone, adapter = TINY[name], Adapter(3, parallel=True, scale=0.1)
    weights = _bare(backbone, adapter)
    (x,), y, found = _seen(backbone, weights, some_input(backbone), adapter)["block_1/mlp"]
    expected = y + 0.1 * _bottleneck(weights["params"]["block_1"]["mlp"], x, jax.nn.relu)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - y).max() > 1e-2
    assert not any(is_adapter_param(path) for path in flatten_dict(weights["params"], sep="/") if "/attention/" in path)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_prompts_are_tokens_put_in_by_hand(name, deep):
    backbone, prompt = TRANSFORMERS[name], Prompt(4, deep)
    weights = some_variables(backbone, prompt)
    params = weights["params"]["backbone"]
    plain = {"params": _without(params)}
    x = backbone.apply(plain, some_input(backbone), stop=1)
    for i in range(3):
        if deep or i == 0:
            x = _inserted(x, params[f"block_{i}"]["prompt"])
        x = backbone.apply(plain, x, start=i + 1, stop=i + 2)
        if deep or i == 2:
            x = jax.tree.map(lambda leaf: jnp.asarray(np.delete(leaf, np.s_[1:5], axis=1)), x)
    expected = backbone.apply(plain, x, start=4)
    with apply_adapters(backbone, (prompt,)):
        found = backbone.apply({"params": params}, some_input(backbone))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - backbone.apply(plain, some_input(backbone))).max() > 1e-2


def _inserted(x, prompt):
    def rows(tokens, new):
        return jnp.stack([jnp.concatenate([row[:1], new, row[1:]]) for row in tokens])

    if isinstance(x, dict):
        mask = rows(x["attention_mask"], jnp.ones(4, jnp.int32))
        return {"hidden": rows(x["hidden"], prompt), "attention_mask": mask}
    return rows(x, prompt)


@pytest.mark.parametrize("deep", [False, True])
def test_groups_cut_in_two_with_prompts_are_the_whole_and_show_shallow_ones_in_between(deep):
    prompt = Prompt(4, deep)
    weights = {"params": some_variables(VIT, prompt)["params"]["backbone"]}
    tokens = {0: 0, 1: 7, 2: 7 if deep else 11, 3: 7 if deep else 11, 4: 7}
    with apply_adapters(VIT, (prompt,)):
        whole = VIT.apply(weights, some_input(VIT))
        for cut in range(len(VIT.groups)):
            half = VIT.apply(weights, some_input(VIT), stop=cut)
            # The last cut is below the norm: only the whole knows that no token but the first is wanted there.
            atol = 1e-6 if VIT.groups[cut] == "norm" else 0
            np.testing.assert_allclose(VIT.apply(weights, half, start=cut), whole, rtol=0, atol=atol)
            assert cut == 0 or half.shape == (2, tokens[cut], 24)


def test_prompts_start_as_wide_as_vpts():
    model = Classifier(VIT, 5, adapters=(Prompt(50, deep=True),))
    prompts = jax.jit(model.init)(jax.random.key(0), some_input(VIT))
    values = np.stack([prompts["params"]["backbone"][f"block_{i}"]["prompt"] for i in range(3)])
    limit = np.sqrt(6 / (3 * 8**2 + 24))
    assert 0.99 * limit < np.abs(values).max() <= limit
    text = jax.jit(Classifier(BERT, 5, adapters=(Prompt(50),)).init)(jax.random.key(0), some_input(BERT))
    assert abs(np.std(text["params"]["backbone"]["block_0"]["prompt"]) - 0.02) < 0.002


def test_an_mlp_head_is_two_layers_with_gelu_between():
    weights = some_variables(VIT, MlpHead(6))
    head = weights["params"]["head"]
    assert {path: leaf.shape for path, leaf in flatten_dict(head, sep="/").items()} == {
        "hidden/kernel": (24, 6),
        "hidden/bias": (6,),
        "out/kernel": (6, 5),
        "out/bias": (5,),
    }
    features = VIT.apply({"params": weights["params"]["backbone"]}, some_input(VIT))
    hidden = jax.nn.gelu(features @ head["hidden"]["kernel"] + head["hidden"]["bias"], approximate=False)
    expected = hidden @ head["out"]["kernel"] + head["out"]["bias"]
    np.testing.assert_allclose(_logits(VIT, MlpHead(6)), expected, atol=1e-5)
    new = jax.jit(Classifier(VIT, 5, bias=False, adapters=(MlpHead(6),)).init)(jax.random.key(0), some_input(VIT))[
        "params"
    ]["head"]
    assert np.any(new["hidden"]["kernel"]) and not np.any(new["out"]["kernel"]) and "bias" not in new["out"]
    assert not any(map(is_adapter_param, flatten_dict(weights["params"], sep="/")))


def test_adapters_combine():
    adapters = (Prompt(2), Lora(rank=2), Adapter(3), MlpHead(6))
    weights = some_variables(VIT, *adapters)
    leaves = {path.split("/", 1)[1] for path in flatten_dict(weights["params"], sep="/") if is_adapter_param(path)}
    assert {path for path in leaves if path.startswith("block_0/")} == {
        "block_0/prompt",
        *(f"block_0/attention/qkv/lora_{name}" for name in "ab"),
        *(
            f"block_0/{branch}/adapter_{name}"
            for branch in ("attention", "mlp")
            for name in ("down", "down_bias", "up", "up_bias")
        ),
    }
    merged = merge_lora(weights["params"], adapters)
    rest = tuple(adapter for adapter in adapters if not isinstance(adapter, Lora))
    np.testing.assert_allclose(_logits(VIT, *rest, params=merged), _logits(VIT, *adapters), atol=1e-5)
    assert np.abs(_logits(VIT, *adapters) - _logits(VIT, *adapters[1:], params=weights["params"])).max() > 1e-3


def test_dropped_entries_are_counted_and_the_rest_scaled():
    found = np.asarray(drop(jax.random.key(0), jnp.ones((200, 500)), 0.3))
    assert set(np.unique(found)) == {0, np.float32(1 / 0.7)}
    assert abs(np.mean(found == 0) - 0.3) < 0.01
    rows = np.asarray(drop(jax.random.key(0), jnp.ones((5000, 4), jnp.bfloat16), 0.3, (5000, 1)))
    assert rows.dtype == jnp.bfloat16
    assert np.all((rows == 0).all(axis=1) | (rows != 0).all(axis=1))
    assert abs(np.mean(rows == 0) - 0.3) < 0.03


def _branch_ends(backbone, examples, **noise):
    """Each residual branch's output with noise over that without: 0, or what the rest is scaled by."""
    x = jnp.repeat(some_input(backbone)[:1], examples, axis=0)
    seen = _seen(backbone, _bare(backbone), x, rngs={"dropout": jax.random.key(1)}, **noise)
    ends = {path: pair for path, (_, *pair) in seen.items() if re.fullmatch(backbone.residual_branches, path)}
    return {path: np.asarray(noisy) / np.asarray(calm) for path, (calm, noisy) in ends.items()}


@pytest.mark.parametrize("name", ["vit", "resnet", "basic"])
def test_stochastic_depth_silences_whole_branches_at_a_rate_that_rises_with_depth(name):
    found = _branch_ends(TINY[name], 400, noisy=TINY[name].groups, drop_path=0.5)
    assert len(found) == (6 if name == "vit" else 3)
    for path, ratio in found.items():
        rate = 0.5 * int(path.split("/")[0].removeprefix("block_")) / 2
        rows = np.nanmax(ratio.reshape(400, -1), axis=1)
        np.testing.assert_allclose(np.nanmin(ratio.reshape(400, -1), axis=1), rows, atol=1e-3)
        assert abs(np.mean(rows == 0) - rate) < 0.08, path
        np.testing.assert_allclose(rows[rows != 0], 1 / (1 - rate), rtol=1e-3)
    if name == "vit":
        assert not np.array_equal(found["block_2/attention"] == 0, found["block_2/mlp"] == 0), "drawn once for both"


def test_dropout_silences_entries_of_noisy_groups_only():
    for path, ratio in _branch_ends(VIT, 20, noisy=("block_1", "head"), dropout=0.25).items():
        if path.startswith("block_1/"):
            assert abs(np.mean(ratio == 0) - 0.25) < 0.02
            np.testing.assert_allclose(ratio[ratio != 0], 1 / 0.75, rtol=1e-3)
        else:
            np.testing.assert_array_equal(ratio, 1)


def test_a_noisy_head_drops_pooled_features():
    model = Classifier(VIT, 24, dropout=0.25)
    weights = jax.jit(model.init)(jax.random.key(0), some_input(VIT))
    weights["params"]["head"]["kernel"] = jnp.eye(24)
    x = jnp.repeat(some_input(VIT), 100, axis=0)
    ratio = model.apply(weights, x, noisy=("head",), rngs={"dropout": jax.random.key(1)}) / model.apply(weights, x)
    assert abs(np.mean(ratio == 0) - 0.25) < 0.03
    np.testing.assert_allclose(ratio[ratio != 0], 1 / 0.75, rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_without_noisy_groups_training_is_evaluation_to_the_bit(name):
    backbone = TINY[name]
    model = Classifier(backbone, 5, dropout=0.3, drop_path=0.3)
    weights = some_variables(backbone)
    calm = model.apply(weights, some_input(backbone))
    np.testing.assert_array_equal(model.apply(weights, some_input(backbone), noisy=()), calm)
    np.testing.assert_array_equal(_logits(backbone), calm)
    noisy = model.apply(weights, some_input(backbone), noisy=backbone.groups, rngs={"dropout": jax.random.key(0)})
    assert np.abs(noisy - calm).max() > 1e-3
    again = model.apply(weights, some_input(backbone), noisy=backbone.groups, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(noisy, again)


def test_what_is_below_a_noisy_group_keeps_its_bits():
    weights = {"params": some_variables(VIT)["params"]["backbone"]}
    with apply_adapters(VIT, (), noisy=("block_2",), dropout=0.5, drop_path=0.5):
        found = VIT.apply(weights, some_input(VIT), stop=3, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(found, VIT.apply(weights, some_input(VIT), stop=3))


def test_loras_dropout_acts_on_its_inputs_in_noisy_groups():
    lora = Lora(rank=2, dropout=0.5)
    weights = some_variables(VIT, lora)
    model = Classifier(VIT, 5, adapters=(lora,))
    calm = model.apply(weights, some_input(VIT))
    np.testing.assert_array_equal(calm, _logits(VIT, Lora(rank=2)))
    noisy = model.apply(weights, some_input(VIT), noisy=("block_0",), rngs={"dropout": jax.random.key(0)})
    assert np.abs(noisy - calm).max() > 1e-3
    silent = jax.tree_util.tree_map_with_path(lambda path, leaf: 0 * leaf if "lora_b" in str(path) else leaf, weights)
    noisy = model.apply(silent, some_input(VIT), noisy=VIT.groups, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(noisy, _logits(VIT))


def test_nothing_is_intercepted_where_there_is_nothing_to_do(monkeypatch):
    def entered(_):
        raise AssertionError("an interceptor")

    monkeypatch.setattr("tljax.peft.interceptors.nn.intercept_methods", entered)
    weights = some_variables.__wrapped__(VIT, MlpHead(6))
    model = Classifier(VIT, 5, adapters=(MlpHead(6),), dropout=0.5)
    assert model.apply(weights, some_input(VIT)).shape == (2, 5)
    assert Classifier(VIT, 5).apply(some_variables.__wrapped__(VIT), some_input(VIT), noisy=VIT.groups).shape == (2, 5)


def test_blocks_that_are_alike_are_traced_once_where_nothing_is_adapter_param():
    """The last one is not quite alike: of what it gives, the class token alone is used."""

    def traced(mlp_width, adapters=(), noisy=()) -> int:
        backbone = VIT.clone(mlp_width=mlp_width)  # one of its own, or a block that was traced before stands for these
        model = Classifier(backbone, 5, adapters=adapters, dropout=0.5)
        weights, x = some_variables.__wrapped__(backbone, *adapters), some_input(backbone)
        found = []

        def count(call, args, kwargs, context):
            found.append(type(context.module).__name__)
            return call(*args, **kwargs)

        program = jax.jit(functools.partial(model.apply, noisy=noisy))
        with nn.intercept_methods(count):
            logits = program(weights, x, rngs={"dropout": jax.random.key(0)})
        if not noisy:
            np.testing.assert_allclose(logits, model.apply(weights, x), atol=1e-6)
        return found.count("Attention")

    assert VIT.depth > 2
    assert traced(31) == traced(33, (MlpHead(6),)) == 2
    assert traced(35, (Lora(rank=2),)) == traced(37, noisy=VIT.groups) == VIT.depth


def test_gradients_reach_every_added_leaf_but_the_first_of_a_zero_pair():
    adapters = (Prompt(2), Lora(rank=2), Adapter(3))
    model = Classifier(VIT, 5, "truncated_normal", adapters=adapters)
    weights = jax.jit(model.init)(jax.random.key(0), some_input(VIT))
    grads = jax.grad(lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, some_input(VIT)))))(
        weights["params"]
    )
    for path, leaf in flatten_dict(grads, sep="/").items():
        if is_adapter_param(path):
            silent = path.endswith(("lora_a", "adapter_down", "adapter_down_bias"))
            assert np.any(leaf) != silent, path


# One of each family, and the reasons for which an adapter is refused.
FAMILIES = ("resnet18", "resnet50", "resnet50_half_v1_folded", "resnet50d", "resnetv2_50x1_bit", "vit_tiny_patch16")
FAMILIES += ("vit_small_patch14_reg4_dinov2", "deit_small_distilled_patch16", "minilm_l6", "distilbert_base")
FAMILIES += ("roberta_base", "tf_efficientnet_lite0", "swin_tiny_patch4_window7", "beit_base_patch16")
FAMILIES += ("convnext_tiny", "regnety_002", "mobilenetv3_small_100")
FAMILIES += ("eva02_base_patch14", "mpnet_base", "electra_small", "albert_base", "modernbert_base", "deberta_v3_xsmall")
EVERY = [Lora(), Adapter(), Adapter(parallel=True), Prompt(), Prompt(deep=True), MlpHead()]


@pytest.mark.parametrize("adapter", EVERY, ids=repr)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_adapter_fits_every_family_or_is_refused(name, adapter):
    backbone = BACKBONES[name]
    # Few blocks, which are alike in most.
    if isinstance(backbone, ResNet | BiT | Swin | ConvNeXt):
        backbone = backbone.clone(depths=(1, 1, 1, 1))
    elif not isinstance(backbone, EfficientNet | MobileNetV3 | RegNet):
        backbone = backbone.clone(depth=2)
    spec = backbone.input_spec
    text = dict.fromkeys(("input_ids", "attention_mask"), jax.ShapeDtypeStruct((1, 9), jnp.int32))
    x = text if spec.kind == "text" else jax.ShapeDtypeStruct((1, *(spec.size or (64, 64)), 3), jnp.float32)
    init = functools.partial(jax.eval_shape, Classifier(backbone, 3, adapters=(adapter,)).init, jax.random.key(0))
    is_convolutional = isinstance(backbone, ResNet | BiT | EfficientNet | MobileNetV3 | RegNet | ConvNeXt)
    refused = isinstance(backbone, BiT) and isinstance(adapter, Lora)
    refused |= (is_convolutional or isinstance(backbone, Swin)) and isinstance(adapter, Prompt)
    refused |= is_convolutional and not backbone.mlp_branches and adapter == Adapter(parallel=True)
    if refused:
        with pytest.raises(InputError):
            init(x)
        return
    paths = flatten_dict(init(x)["params"], sep="/")
    assert any(map(is_adapter_param, paths)) != isinstance(adapter, MlpHead)


def test_every_adapter_and_every_kind_of_backbone_is_tried():
    assert {type(adapter) for adapter in EVERY} == set(ADAPTERS.values())
    assert {type(backbone) for backbone in BACKBONES.values()} == {type(BACKBONES[name]) for name in FAMILIES}
