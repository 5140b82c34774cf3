"""A graph of ONNX made cheaper without changing what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np


def fold_affine(proto: Any) -> int:
    """Fold `scale * relu(conv(x)) + shift`, of one scale and one shift, into the convolution; how many were found.

    With w' = scale w and b' = scale b + shift it is max(conv'(x), shift) for a positive scale, min for a negative one,
    which ONNX Runtime computes inside the convolution. PP-HGNet (the shipped weights) has 30 of them."""
    graph = proto.graph
    values = {each.name: each for each in graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {each.name for each in graph.output}
    found = 0
    for conv in [node for node in graph.node if node.op_type == "Conv" and len(node.input) == 3]:
        chain = [conv]
        for kind in ("Relu", "Mul", "Add"):
            after = users.get(chain[-1].output[0], [])
            if len(after) != 1 or after[0].op_type != kind or chain[-1].output[0] in outputs:
                break
            chain.append(after[0])
        if len(chain) < 4 or any(name not in values for name in conv.input[1:]):
            continue
        scale, shift = _scalar(chain[2], chain[1], values), _scalar(chain[3], chain[2], values)
        if scale and shift is not None:
            _fold(graph, chain, values, (scale, shift), f"folded_{found}")
            found += 1
    used = {name for node in graph.node for name in node.input}
    for each in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(each)
    return found


def _scalar(node: Any, before: Any, values: dict[str, Any]) -> float | None:
    """The one constant number that a node combines with the output of the one before it."""
    from onnx import numpy_helper

    names = [name for name in node.input if name != before.output[0]]
    if len(names) != 1 or names[0] not in values:
        return None
    value = numpy_helper.to_array(values[names[0]])
    return float(value.ravel()[0]) if value.size == 1 and value.ndim < 2 else None


def _fold(
    graph: Any, chain: list[Any], values: dict[str, Any], affine: tuple[float, float], name: str
) -> None:
    """Rewrite one chain of Conv, Relu, Mul, Add as Conv, Clip."""
    from onnx import numpy_helper

    (conv, relu, mul, add), (scale, shift) = chain, affine
    weight, bias = (numpy_helper.to_array(values[each]).astype(np.float64) for each in conv.input[1:])
    new = {"weight": weight * scale, "bias": bias * scale + shift, "bound": np.array(shift)}
    for part, value in new.items():
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), f"{name}_{part}"))
    conv.input[1], conv.input[2] = f"{name}_weight", f"{name}_bias"
    relu.op_type = "Clip"
    del relu.input[:]
    relu.input.extend([conv.output[0], *([""] if scale < 0 else []), f"{name}_bound"])
    relu.output[0] = add.output[0]
    graph.node.remove(mul)
    graph.node.remove(add)
