"""dlib's face recognition network as an ONNX file that takes aligned crops: the teacher of the shipped weights.

    python tools/dlib_to_onnx.py dlib_face_recognition_resnet_model_v1.dat --out dlib.onnx
    facemetric embed CROPS --weights dlib.onnx --flip --out teacher.npz

The .dat is dlib's own file, in the public domain; PyPI's package face_recognition_models has it. The ONNX file takes
crops of 112 pixels aligned to the usual template, cuts dlib's own chip of 150 pixels out of them, and gives its 128
numbers; `dlib.toml` beside it says which pixels it takes. The network: 29 convolutions in residual blocks (He et al.
2016, arXiv:1512.03385), as Davis King describes it. Needs the package onnx.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from facemetric.errors import DataError, FacemetricError
from facemetric.files import write_text_whole, write_whole

BLOCKS = (32,) * 3 + (64,) * 4 + (128,) * 3 + (256,) * 4  # channels of the residual blocks
HALVING = (3, 7, 10, 13)  # the blocks that halve the picture
CROP, SIDE = 112, 150  # of the aligned crop and of dlib's chip, pixels
# Left, top, right, bottom of the chip in the crop, found by the teacher's own embeddings; below the crop its last row
# goes on.
CHIP = (7, 22, 106, 121)
MEAN = (122.782, 117.001, 104.298)
SIZE = 128
PIXELS = f"""size = [{CROP}, {CROP}]
color = "rgb"
mean = {[round(value / 255, 8) for value in MEAN]}
std = {[round(256 / 255, 8)] * 3}
pictures = "faces"
"""  # of the .toml: the network takes (pixel - MEAN) / 256
OPSET, IR = 17, 8
MARK = b"\x01\x02"  # dlib's version of a tensor, before its four sizes


def read_tensors(data: bytes) -> Iterator[np.ndarray]:
    """The tensors of a network in dlib's format, from the input on: (N,) or the last layer's (inputs, outputs)."""
    at = data.find(MARK)
    while at >= 0:
        sizes, start = read_sizes(data, at + len(MARK))
        count = int(np.prod(sizes))
        if sizes and sizes[2:] == [1, 1] and count >= SIZE // 2 and start + 4 * count <= len(data):
            values = np.frombuffer(data, "<f4", count, start)
            yield values.reshape(sizes[:2]) if sizes[1] > 1 else values
            at = data.find(MARK, start + 4 * count)
        else:
            at = data.find(MARK, at + 1)


def read_sizes(data: bytes, at: int) -> tuple[list[int], int]:
    """Four whole numbers as dlib writes them (a byte that counts the others, then these), and where they end; none
    where there are no such numbers."""
    sizes = []
    for _ in range(4):
        length = data[at] if at < len(data) else 0
        if not 1 <= length <= 4:
            return [], at
        sizes.append(int.from_bytes(data[at + 1 : at + 1 + length], "little"))
        at += 1 + length
    return (sizes, at) if all(sizes) else ([], at)


class Graph:
    """The graph in the making; each step gives the name of what it makes."""

    def __init__(self, tensors: Iterator[np.ndarray]) -> None:
        self.tensors = tensors
        self.nodes: list[Any] = []
        self.numbers: list[Any] = []

    def number(self, values: np.ndarray) -> str:
        """Stored numbers."""
        name = f"number_{len(self.numbers)}"
        self.numbers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def take(self, *shape: int) -> np.ndarray:
        """The next tensor of the file. Raises DataError where it has another shape."""
        found = next(self.tensors, None)
        if found is None or found.shape != shape:
            what = "no more" if found is None else f"one of shape {found.shape}"
            raise DataError(
                f"a tensor of shape {shape} was needed, the file has {what}; give "
                "dlib_face_recognition_resnet_model_v1.dat, unpacked"
            )
        return found

    def conv(self, seen: str, into: int, channels: int, kernel: int, stride: int) -> str:
        """A convolution with the scale and shift behind it folded in. dlib pads where it does not stride."""
        weights, affine = self.take(channels * into * kernel**2 + channels), self.take(2 * channels)
        scale, shift = affine[:channels], affine[channels:]
        kernels = weights[:-channels].reshape(channels, into, kernel, kernel) * scale[:, None, None, None]
        pad = kernel // 2 if stride == 1 else 0
        return self.add(
            "Conv",
            seen,
            self.number(kernels),
            self.number(weights[-channels:] * scale + shift),
            strides=[stride] * 2,
            pads=[pad] * 4,
        )

    def grow(self, seen: str, channels: int, side: int) -> str:
        """Zeros behind the channels, and below and to the right."""
        if not channels and not side:
            return seen
        return self.add("Pad", seen, self.number(np.array([0, 0, 0, 0, 0, channels, side, side])))

    def block(self, seen: str, into: int, channels: int, side: int, halve: bool) -> tuple[str, int]:
        """A residual block, and the side of what it gives. dlib adds what differs in size as if zeros lay beyond."""
        stride = 2 if halve else 1
        inner = self.add("Relu", self.conv(seen, into, channels, 3, stride))
        inner = self.conv(inner, channels, channels, 3, 1)
        if halve:
            seen = self.grow(
                self.add("AveragePool", seen, kernel_shape=[2, 2], strides=[2, 2]), channels - into, 0
            )
            convolved, side = (side - 3) // 2 + 1, side // 2
            inner = self.grow(inner, 0, side - convolved)
        return self.add("Relu", self.add("Add", inner, seen)), side


def chip_places() -> np.ndarray:
    """Where the chip's pixels lie in the crop (1, SIDE, SIDE, 2), x and y, -1..1 from edge to edge."""
    left, top, right, bottom = CHIP
    steps = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    across, down = (low + steps * (high - low) for low, high in ((left, right), (top, bottom)))
    grid = np.stack(np.meshgrid(across, down), axis=-1)
    return grid[None].astype(np.float32) / (CROP / 2) - 1


def build(data: bytes) -> Any:
    """The ONNX model of dlib's file. Raises DataError for another file."""
    graph = Graph(read_tensors(data))
    batch = graph.add("Shape", "pixels", start=0, end=1)
    shape = graph.add("Concat", batch, graph.number(np.array([SIDE, SIDE, 2])), axis=0)
    places = graph.add("Expand", graph.number(chip_places()), shape)
    seen = graph.add("GridSample", "pixels", places, mode="bicubic", padding_mode="border")
    for limit, pixel in (("Max", 0.0), ("Min", 255.0)):  # what bicubic sampling shoots beyond
        edge = (pixel - np.array(MEAN, np.float32)) / 256
        seen = graph.add(limit, seen, graph.number(edge.astype(np.float32)[:, None, None]))
    seen = graph.add("Relu", graph.conv(seen, 3, BLOCKS[0], 7, 2))
    seen = graph.add("MaxPool", seen, kernel_shape=[3, 3], strides=[2, 2])
    side = ((SIDE - 7) // 2 + 1 - 3) // 2 + 1
    before = (BLOCKS[0], *BLOCKS)
    for number, (into, channels) in enumerate(itertools.pairwise(before)):
        seen, side = graph.block(seen, into, channels, side, number in HALVING)
    seen = graph.add("Flatten", graph.add("GlobalAveragePool", seen))
    graph.nodes.append(
        helper.make_node("MatMul", [seen, graph.number(graph.take(BLOCKS[-1], SIZE))], ["embedding"])
    )
    taken = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, CROP, CROP])
    given = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", SIZE])
    made = helper.make_graph(graph.nodes, "dlib", [taken], [given], graph.numbers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file", type=Path, help="dlib_face_recognition_resnet_model_v1.dat")
    parser.add_argument("--out", type=Path, default=Path("dlib.onnx"))
    options = parser.parse_args()
    beside = options.out.with_suffix(".toml")
    if options.out.suffix != ".onnx":
        parser.error(f"--out is {options.out}; give a name that ends in .onnx")
    for path in (options.out, beside):
        if path.exists():
            parser.error(f"{path} is there already; give another --out")
    try:
        model = build(options.file.read_bytes())
        write_text_whole(beside, PIXELS)
        write_whole(options.out, lambda part: onnx.save(model, part))
    except (FacemetricError, OSError) as error:
        parser.error(str(error))
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.0f} MB; {beside} says which pixels it takes")


if __name__ == "__main__":
    main()
