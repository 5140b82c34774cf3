"""The three networks of the default detector as ONNX graphs, whose numbers stay in weights/mtcnn/model.safetensors.

    python tools/make_detector_graphs.py [--out weights/mtcnn]

An ONNX file may keep its tensors in another file, at a place and of a length that it names: each graph is some 3 kB
and names places in the safetensors file, so that torch and ONNX Runtime read the same bytes. To be run again when that
file changes. Needs the package onnx; to use the graphs only ONNX Runtime is.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper

from facemetric.faces.onnx_networks import SHA256
from facemetric.files import file_hash

WEIGHTS = "model.safetensors"
OPSET, IR = 17, 8


class Net(NamedTuple):
    """A network: side of its pixels (0: any), pools (kernel, stride) after its convolutions, and whether it ends in
    linear layers; `outputs` are its last layers. The layers' numbers are those of facemetric/faces/networks.py."""

    side: int
    pools: tuple[tuple[int, int] | None, ...]
    linear: bool
    outputs: tuple[str, ...]


NETS = {
    "proposal": Net(0, ((2, 2), None, None), False, ("score", "box")),
    "refinement": Net(24, ((3, 2), (3, 2), None), True, ("score", "box")),
    "output": Net(48, ((3, 2), (3, 2), (2, 2), None), True, ("score", "box", "landmarks")),
}


class Graph:
    """A graph in the making."""

    def __init__(self, name: str, tensors: dict[str, tuple[list[int], int, int]]) -> None:
        self.name, self.tensors = name, tensors
        self.nodes: list[Any] = []
        self.numbers: list[Any] = []

    def tensor(self, name: str, shape: list[int] | None = None) -> str:
        """A tensor of the safetensors file, by its place there."""
        own, offset, length = self.tensors[f"{self.name}.{name}"]
        made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape or own)
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
            made.external_data.add(key=key, value=value)
        self.numbers.append(made)
        return name

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """A node; the name of what it gives."""
        out = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def body(self, net: Net) -> str:
        """From the pixels to what the last layers see."""
        seen, layer = "pixels", 0
        for pool in net.pools:
            seen = self.add(
                "Conv", seen, self.tensor(f"body.{layer}.weight"), self.tensor(f"body.{layer}.bias")
            )
            seen = self.prelu(seen, layer + 1, [1, 1])
            layer += 2
            if pool:
                kernel, stride = pool
                seen = self.add("MaxPool", seen, kernel_shape=[kernel] * 2, strides=[stride] * 2, ceil_mode=1)
                layer += 1
        if net.linear:
            seen = self.linear(self.add("Flatten", seen), f"body.{layer + 1}")
            seen = self.prelu(seen, layer + 2, [])
        return seen

    def prelu(self, seen: str, layer: int, ones: list[int]) -> str:
        name = f"body.{layer}.weight"
        slope = self.tensor(name, [*self.tensors[f"{self.name}.{name}"][0], *ones])
        # slope x + (1 - slope) max(x, 0): a quarter faster than PRelu, which ONNX Runtime takes number by number
        if "one" not in [each.name for each in self.numbers]:
            self.numbers.append(helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]))
        rest = self.add("Sub", "one", slope)
        return self.add("Add", self.add("Mul", seen, slope), self.add("Mul", self.add("Relu", seen), rest))

    def linear(self, seen: str, name: str, out: str = "") -> str:
        return self.add(
            "Gemm", seen, self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), transB=1, out=out
        )


def tensors_of(file: Path) -> dict[str, tuple[list[int], int, int]]:
    """Shape, place and length in bytes of each tensor of a safetensors file."""
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        head = json.loads(opened.read(length))
    found = {}
    for name, record in head.items():
        if name != "__metadata__":
            assert record["dtype"] == "F32", name
            first, end = record["data_offsets"]
            found[name] = (record["shape"], 8 + length + first, end - first)
    return found


def make(name: str, tensors: dict[str, tuple[list[int], int, int]], sha256: str) -> onnx.ModelProto:
    """The graph of one network: float32 (N, 3, H, W), normalised, to score of both classes and the other layers."""
    net, graph = NETS[name], Graph(name, tensors)
    seen = graph.body(net)
    for output in net.outputs:
        last = "logits" if output == "score" else output
        if net.linear:
            graph.linear(seen, output, out=last)
        else:
            graph.add(
                "Conv", seen, graph.tensor(f"{output}.weight"), graph.tensor(f"{output}.bias"), out=last
            )
    graph.add("Softmax", "logits", out="score", axis=1)
    size = [net.side or "height", net.side or "width"]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["count", 3, *size])
    rest = [] if net.linear else ["down", "across"]
    outputs = [
        helper.make_tensor_value_info(
            output, TensorProto.FLOAT, ["count", tensors[f"{name}.{output}.bias"][0][0], *rest]
        )
        for output in net.outputs
    ]
    made = helper.make_graph(graph.nodes, name, [pixels], outputs, graph.numbers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    model.producer_name = "facemetric"
    helper.set_model_props(model, {SHA256: sha256})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "weights" / "mtcnn")
    args = parser.parse_args()
    tensors, sha256 = tensors_of(args.out / WEIGHTS), file_hash(args.out / WEIGHTS)
    for name in NETS:
        file = args.out / f"{name}.onnx"
        file.write_bytes(make(name, tensors, sha256).SerializeToString())
        onnx.checker.check_model(str(file))
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
