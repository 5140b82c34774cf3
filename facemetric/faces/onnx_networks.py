"""The three networks of MTCNN by ONNX Runtime: faster than by torch, which need not be imported.

The graphs (weights/mtcnn/*.onnx, 2 kB each) hold no numbers: they name places in the safetensors file beside them, so
that there is one copy of the weights. tools/make_detector_graphs.py makes them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from facemetric.errors import WeightsError
from facemetric.files import file_hash

SHA256 = "weights_sha256"  # key of a graph's metadata: of the file that holds its numbers


def can_run() -> bool:
    """Whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


class OnnxNetworks:
    """As TorchNetworks, by ONNX Runtime on one thread, so that a result does not depend on how many there are.

    WeightsError where a graph or the file of its numbers is missing, damaged or of another time."""

    # What fits into a core's cache is twice as fast: one photograph of 250 pixels, eight cells of 24, two of 48.
    together = (16_000, 5_000)

    def __init__(self, weights: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        sha256 = file_hash(weights)
        self.sessions = {}
        for name in ("proposal", "refinement", "output"):
            file = weights.with_name(f"{name}.onnx")
            try:
                session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # the runtime's own kinds, one for each way a file can be wrong
                reason = str(error).strip().splitlines()[-1]
                raise WeightsError(f"{file} cannot be read ({reason}); install facemetric again") from error
            if session.get_modelmeta().custom_metadata_map.get(SHA256) != sha256:
                raise WeightsError(f"{file} was made for another {weights.name}; install facemetric again")
            self.sessions[name] = session

    def __call__(self, name: str, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the network of a name gives for some pixels."""
        score, *rest = self.sessions[name].run(None, {"pixels": np.ascontiguousarray(pixels)})
        return (score if name == "proposal" else score[:, 1], *rest)
