"""Valid cuts against what torch.export shows, and bottlenecks against the published tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fogline import cuts


def exported_cuts(model: nn.Module, example: dict[str, torch.Tensor]) -> tuple[set[str], set[str]]:
    """Modules of the exported graph, and those at whose end one value is alive, which they computed."""
    program = torch.export.export(model, (), example, strict=False)
    given = set(program.graph_signature.user_inputs)
    nodes = list(program.graph.nodes)
    position = {node: n for n, node in enumerate(nodes)}
    from_input: set[torch.fx.Node] = set()
    inside: dict[torch.fx.Node, set[str]] = {}
    last: dict[str, int] = {}
    for node in nodes:
        if node.name in given or from_input & set(node.all_input_nodes):
            from_input.add(node)
        inside[node] = {path for path, _ in node.meta.get("nn_module_stack", {}).values() if path}
        for path in inside[node]:
            last[path] = position[node]
    first = min(position[node] for node in nodes if node.op == "call_function")
    valid = set()
    for path, end in last.items():
        alive = [
            node for node in nodes[: end + 1] if node in from_input and any(position[user] > end for user in node.users)
        ]
        rest = any(node.op == "call_function" for node in nodes[end + 1 :])
        if len(alive) == 1 and path in inside[alive[0]] and end >= first and rest:
            valid.add(path)
    return set(last), valid


@pytest.mark.parametrize("name", ["resnet", "vit", "mobilenet", "efficientnet"])
def test_agrees_with_the_exported_graph(families, name):
    family = families[name]
    model, example = family.build().eval(), family.example()
    modules, valid = exported_cuts(model, example)
    assert len(valid) >= 5
    ours = {n for cut in cuts(model, example) for n in (cut.name, *cut.aliases)}
    # A module that computes nothing in evaluation mode (dropout, identity) isn't in the exported graph.
    assert {n for n in ours if n in modules} == valid


def _resnet(layer_type: str, depths: list[int], sizes: list[int]) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=64, hidden_sizes=sizes, depths=depths, layer_type=layer_type)
    )


def _mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=224, finegrained_output=False))


def bottlenecks(ratios: list[float]) -> tuple[int, list[float]]:
    """How many ratios are below 1, and the strict new minima below 1 along the depth (Dynamic Split Computing)."""
    best, compressive = 1.0, []
    for ratio in ratios:
        if ratio < best:
            best = ratio
            compressive.append(round(ratio, 3))
    return sum(r < 1 for r in ratios), compressive


@pytest.mark.parametrize(
    ("build", "blocks", "count", "below", "compressive"),
    [
        # arXiv 2205.11269, block outputs only; the library's stem holds MobileNetV2's first block.
        (lambda: _resnet("basic", [2, 2, 2, 2], [64, 128, 256, 512]), "stages", 8, 6, [0.667, 0.333, 0.167]),
        (lambda: _resnet("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]), "stages", 16, 3, [0.667]),
        (_mobilenet, "mobilenet_v2", 16, 16, [0.5, 0.167, 0.083, 0.052]),
    ],
    ids=["resnet-18", "resnet-50", "mobilenet-v2"],
)  # fmt: skip
def test_natural_bottlenecks(build, blocks, count, below, compressive):
    model = build()
    blocks = {"stages": "resnet.encoder.stages.#.layers.#"}.get(blocks, "mobilenet_v2.layer.#")
    table = cuts(model, {"pixel_values": torch.zeros(1, 3, 224, 224)})
    ratios = []
    for cut in table:
        for name in (cut.name, *cut.aliases):
            if ".".join("#" if part.isdigit() else part for part in name.split(".")) == blocks:
                ratios.append(cut.ratio)
    assert len(ratios) == count
    assert bottlenecks(ratios) == (below, compressive)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    for cut in table:
        assert cut.head_params_bytes + cut.tail_params_bytes == parameters
        assert cut.bytes == cut.tensors[0].elements * 4
        assert cut.head_macs + cut.tail_macs == table[0].head_macs + table[0].tail_macs


@pytest.mark.parametrize(
    ("build", "macs", "parameters"),
    [
        # As torchvision publishes them: GFLOPS (of multiply-adds) and parameters of 1000 classes.
        (lambda: _resnet("basic", [2, 2, 2, 2], [64, 128, 256, 512]), 1.814e9, 11_689_512),
        (lambda: _resnet("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]), 4.089e9, 25_557_032),
    ],
)
def test_multiply_adds_and_parameters(build, macs, parameters):
    model = build()
    model.classifier[1] = nn.Linear(model.classifier[1].in_features, 1000)
    cut = cuts(model, {"pixel_values": torch.zeros(1, 3, 224, 224)})[3]
    assert cut.head_macs + cut.tail_macs == pytest.approx(macs, rel=0.001)
    assert (cut.head_params_bytes + cut.tail_params_bytes) // 4 == parameters
